"""A bound on what files of a data set unpack to: a repeated value costs a few bytes in the file, and its full size in
memory and in the library's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.memory_limit import memory_limit

_FREE = 100_000_000
"""Bytes that any data set may unpack to, however small its files."""
_TIMES = 20
"""How many times its own size a data set may unpack to beyond that: images do not shrink, texts to a fifth or so."""
_AT_ONCE = 64_000_000
"""Bytes that are unpacked at a time, if the file is honest about its parts."""


def check_unpacked(files: Sequence[str]) -> None:
    """UserError where the files, of kind parquet or Arrow, hold more rows or bytes than is allowed. They are unpacked a
    part at a time, and no further than the bound: the sizes in a file's own description leave out what repeats."""
    own = sum(Path(file).stat().st_size for file in files)
    room = _FREE + _TIMES * own
    rows = unpacked = 0
    for file in files:
        too_large = UserError(
            f"{file} unpacks to more than {room // 1_000_000:,} MB, {_TIMES} times its size and "
            f"{_FREE // 1_000_000} MB, so it is not read: write it anew with values that are not repeated"
        )
        try:
            for more_rows, more_bytes in (
                _rows_of_parquet(file) if file.endswith(".parquet") else _parts_of_arrow(file, room)
            ):
                rows, unpacked = rows + more_rows, unpacked + more_bytes
                if rows > MOST:
                    raise UserError(f"{file} has too many rows: a data set may have {MOST:,}")
                if unpacked > room:
                    raise too_large
        except MemoryError:
            raise too_large from None


def _rows_of_parquet(file: str) -> Iterator[tuple[int, int]]:
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


def _parts_of_arrow(file: str, room: int) -> Iterator[tuple[int, int]]:
    """(rows, bytes) of a part after the other; MemoryError where one part alone unpacks to more than `room`."""
    from pyarrow import ipc, memory_map

    # a part that is not compressed is not copied: its bytes are the file's
    with memory_limit(room + Path(file).stat().st_size), memory_map(file) as opened, ipc.open_stream(opened) as parts:
        for part in parts:
            yield part.num_rows, part.nbytes
