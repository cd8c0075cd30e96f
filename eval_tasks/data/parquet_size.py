"""A bound on what parquet files unpack to: a repeated value costs a few bytes in the file, and its full size in
memory and in the library's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError

_FREE = 100_000_000
"""Bytes that any data set may unpack to, however small its files."""
_TIMES = 20
"""How many times its own size a data set may unpack to beyond that: images do not shrink, texts to a fifth or so."""
_AT_ONCE = 64_000_000
"""Bytes that are unpacked at a time, if the file is honest about its parts."""


def check_unpacked(files: Sequence[str]) -> None:
    """UserError where the files hold more rows or bytes than is allowed. They are unpacked a few rows at a time, and no
    further than the bound: the sizes in a file's own description leave out what repeats."""
    room = _FREE + _TIMES * sum(Path(file).stat().st_size for file in files)
    rows = unpacked = 0
    for file in files:
        for more_rows, more_bytes in _parts(file):
            rows, unpacked = rows + more_rows, unpacked + more_bytes
            if rows > MOST:
                raise UserError(f"{file} has too many rows: a data set may have {MOST:,}")
            if unpacked > room:
                raise UserError(
                    f"{file} unpacks to more than {room // 1_000_000:,} MB, {_TIMES} times its size and "
                    f"{_FREE // 1_000_000} MB, so it is not read: write it anew with values that are not repeated"
                )


def _parts(file: str) -> Iterator[tuple[int, int]]:
    """(rows, bytes) of a few rows after the other."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as opened:
        if opened.metadata.num_rows > MOST:
            yield opened.metadata.num_rows, 0
        for group in range(opened.metadata.num_row_groups):
            described = opened.metadata.row_group(group)
            # no value is larger than its whole part of the file
            largest = max(
                (described.column(index).total_uncompressed_size for index in range(described.num_columns)), default=0
            )
            rows = min(max(_AT_ONCE // max(largest, 1), 1), 1024)
            for batch in opened.iter_batches(rows, row_groups=[group]):
                yield batch.num_rows, batch.nbytes
