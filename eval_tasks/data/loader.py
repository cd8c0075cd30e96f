"""What reads a data folder: one function a data set, named by the task's YAML file as `package.module:function`."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module

from eval_tasks.data.sample import Sample
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.plugins import allow_working_folder

Read = Callable[[str | os.PathLike[str]], list[Sample]]


class Loader:
    """A function that reads a data folder. layout: the files that it wants there, on one line."""

    def __init__(self, read: Read, layout: str) -> None:
        self.read = read
        self.layout = layout
        self.__doc__ = read.__doc__

    def __call__(self, data_dir: str | os.PathLike[str]) -> list[Sample]:
        return self.read(data_dir)


def reads(layout: str) -> Callable[[Read], Loader]:
    """Marks a loader with the files that it wants in its folder."""
    return lambda read: Loader(read, layout)


def find_loader(path: str) -> Loader:
    """The loader that is named. UserError for one that does not import or is no function."""
    module, _, name = path.partition(":")
    if not module.startswith("eval_tasks."):
        allow_working_folder()
    try:
        found = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # an outside loader may raise anything
        raise UserError(f"loader {path} does not import: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UserError(f"loader {path} is no function: name one that takes the data folder")
    return found if isinstance(found, Loader) else Loader(found, "what its loader reads")
