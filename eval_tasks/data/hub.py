"""Data sets of the Hugging Face hub by id: `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION`."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lvlm_radapt.utils.errors import UserError, first_sentence

PREFIX = "hf:"
_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


def is_hub(data: str | os.PathLike[str]) -> bool:
    """Whether a data folder is one of the hub."""
    return os.fspath(data).startswith(PREFIX)


def fetched(data: str | os.PathLike[str], split: str, places: Sequence[str]) -> Path:
    """The folder in the hub's local cache with the parquet files of that split, fetched where they are not there yet.

    places: the folders of the data set in which they may lie. Nothing else is fetched, and no code of the data set is
    run. A fetch that was cut off goes on where it was. UserError for what is no id, cannot be reached or has no such
    files.
    """
    from huggingface_hub import snapshot_download

    found = _ID.fullmatch(os.fspath(data).removeprefix(PREFIX))
    if found is None:
        raise UserError(f"{data} is no data set of the hub: write hf:OWNER/NAME, such as hf:lmms-lab/VQAv2")
    wanted = [f"{place}/{split}-*.parquet".lstrip("/") for place in places]
    try:
        with _quiet():
            folder = snapshot_download(found[1], repo_type="dataset", revision=found[2], allow_patterns=wanted)
    except Exception as error:  # the hub's library raises many kinds, httpx's and the system's among them
        raise UserError(f"{data}: cannot be fetched from the hub: {first_sentence(error)}") from error
    if not any(True for one in wanted for _ in Path(folder).glob(one)):
        raise UserError(f"{data}: the hub has no parquet files of the split {split} there ({' or '.join(wanted)})")
    return Path(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the hub's library logs nothing, and shows its bars on a terminal alone."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    library = logging.getLogger("huggingface_hub")
    level, hidden = library.level, are_progress_bars_disabled()
    library.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        library.setLevel(level)
        if not hidden:
            enable_progress_bars()
