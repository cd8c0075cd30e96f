"""An image that lies in a row of a data set, not in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from eval_tasks.data.layout import Row, read_rows, safe_name
from eval_tasks.data.unpacked_size import check_unpacked
from lvlm_radapt.utils.errors import UserError

STATE = "state.json"
"""The file by which a folder that `save_to_disk` wrote is known."""

_OTHER_NAMES = ("img", "jpg", "webp", "png")  # what some sets call the column of images

Found = TypeVar("Found")


@dataclass(frozen=True)
class RowImage:
    """The image of a row, read when it is asked for. `files` are what `open_rows` takes, in the order that numbers the
    rows; `name` is what messages call the image."""

    files: tuple[str, ...]
    row: int
    name: str

    def __str__(self) -> str:
        return self.name

    def is_file(self) -> bool:
        """Whether the row holds an image, as `Path.is_file` says of a file."""
        return self._content() is not None

    def read(self) -> bytes:
        """The image as it was stored; UserError when the row has none."""
        content = self._content()
        if content is None:
            raise UserError(f"cannot read image {self.name}: the row holds no image bytes")
        return content

    def _content(self) -> bytes | None:
        held = _told(self.files, lambda: open_rows(self.files)[self.row]["image"])
        # a path without bytes points at somebody else's disk: it is never followed
        content = held.get("bytes") if isinstance(held, dict) else None
        return content if isinstance(content, bytes) else None


def column_names(files: tuple[str, ...]) -> list[str]:
    """The columns of a data set; UserError as for `open_rows`."""
    return list(open_rows(files).column_names)


def read_columns(files: tuple[str, ...], names: Sequence[str]) -> list[dict[str, Any]]:
    """These columns of all rows; UserError as for `open_rows`."""
    rows: list[dict[str, Any]] = _told(files, lambda: open_rows(files).select_columns(list(names)).to_list())
    return rows


class _File(Row):
    filename: str


class _State(Row):
    files: list[_File] = Field(alias="_data_files", min_length=1)


@lru_cache(maxsize=4)
def open_rows(files: tuple[str, ...]) -> Any:
    """The `datasets.Dataset` of these parquet files, or of the one folder that `save_to_disk` wrote, its images left as
    stored. UserError without the library and for what is damaged or none of these."""
    try:
        import datasets
        from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    except ImportError as error:
        raise UserError("data sets in rows need the library datasets: pip install 'lvlm-radapt[hf]'") from error
    saved = not files[0].endswith(".parquet")
    state = Path(files[0]) / STATE
    parts: list[str] = []
    if saved:
        parts = [str(state.parent / safe_name(state, one.filename)) for one in read_rows(state, _State).files]
    hidden = are_progress_bars_disabled()
    disable_progress_bars()

    def read() -> Any:
        if saved:
            check_unpacked(parts)
            found = datasets.load_from_disk(files[0]).with_format(None)  # it may ask for tensors in place of values
        else:
            found = _from_parquet(files)
        other = next((name for name in _OTHER_NAMES if name in found.column_names), None)
        if "image" not in found.column_names and other is not None:
            found = found.rename_column(other, "image")
        return found.cast_column("image", datasets.Image(decode=False)) if "image" in found.column_names else found

    try:
        return _told(files, read)
    finally:
        if not hidden:
            enable_progress_bars()


def _from_parquet(files: tuple[str, ...]) -> Any:
    from datasets.io.parquet import ParquetDatasetReader

    reader = ParquetDatasetReader([*files])
    if not Path(reader.builder.cache_dir).exists():  # it writes a copy there now, which may be larger by any factor
        check_unpacked(files)
    return reader.read()


def _told(files: tuple[str, ...], read: Callable[[], Found]) -> Found:
    """What `read()` gives; UserError for whatever it raises."""
    try:
        return read()
    except UserError:
        raise
    except Exception as error:  # the readers behind it raise many kinds
        what = f"parquet files from {files[0]} on" if files[0].endswith(".parquet") else f"data set {files[0]}"
        cause = error.__cause__ or error
        raise UserError(f"cannot read the {what}: {' '.join(str(cause).split())}") from error
