"""An image that lies in a row of a data set, not in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lvlm_radapt.errors import UserError

_OTHER_NAMES = ("img", "jpg", "webp", "png")  # what some sets call the column of images


@dataclass(frozen=True)
class RowImage:
    """The image of a row, read when it is asked for. `files` are the data set's, in the order that numbers its rows;
    `name` is what messages call the image."""

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
        held = open_rows(self.files)[self.row]["image"]
        # a path without bytes points at somebody else's disk: it is never followed
        content = held.get("bytes") if isinstance(held, dict) else None
        return content if isinstance(content, bytes) else None


@lru_cache(maxsize=4)
def open_rows(files: tuple[str, ...]) -> Any:
    """The `datasets.Dataset` of these parquet files, its images left as stored. UserError without the library and for
    files that are none."""
    try:
        import datasets
        from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    except ImportError as error:
        raise UserError("parquet files need the library datasets: pip install 'lvlm-radapt[hf]'") from error
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        found = datasets.Dataset.from_parquet(list(files))
        other = next((name for name in _OTHER_NAMES if name in found.column_names), None)
        if "image" not in found.column_names and other is not None:
            found = found.rename_column(other, "image")
        if "image" in found.column_names:
            found = found.cast_column("image", datasets.Image(decode=False))
        return found
    except Exception as error:  # the readers behind it raise many kinds
        cause = error.__cause__ or error
        raise UserError(f"cannot read the parquet files from {files[0]} on: {' '.join(str(cause).split())}") from error
    finally:
        if not hidden:
            enable_progress_bars()
