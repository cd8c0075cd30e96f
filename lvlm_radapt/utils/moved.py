"""Old import paths of public modules: they still work for one release, with a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "eval_tasks.eps": "lvlm_radapt.utils.budget",
    "eval_tasks.evaluation": "eval_tasks.api",
    "eval_tasks.data.images": "lvlm_radapt.utils.images",
    "eval_tasks.presets": "eval_tasks.config.presets",
    "eval_tasks.records": "eval_tasks.run.records",
    "eval_tasks.runner": "eval_tasks.run.evaluate",
    "eval_tasks.table": "eval_tasks.report.table_formats",
    "eval_tasks.tabulate": "eval_tasks.report.build_table",
    "lvlm_radapt.checkpoint": "lvlm_radapt.saving.adapter",
    "lvlm_radapt.config": "lvlm_radapt.defences.radapt.config",
    "lvlm_radapt.errors": "lvlm_radapt.utils.errors",
    "lvlm_radapt.export": "lvlm_radapt.saving.export",
    "lvlm_radapt.fold": "lvlm_radapt.saving.fold",
    "lvlm_radapt.guides": "lvlm_radapt.loading.guides",
    "lvlm_radapt.models.load": "lvlm_radapt.loading.load",
    "lvlm_radapt.models.open_clip": "lvlm_radapt.loading.open_clip",
    "lvlm_radapt.tiny": "lvlm_radapt.embedded",
    "lvlm_radapt.tiny.dataset": "lvlm_radapt.embedded.dataset",
    "lvlm_radapt.tiny.scenes": "lvlm_radapt.embedded.scenes",
}


class _OldPaths(MetaPathFinder, Loader):
    """Finds a module under its old name: the same module object, not a second copy."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is {new} now; the old path goes in the next release", DeprecationWarning, 2)
        self._spec = (module := import_module(new)).__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # it has been run already, under its own name


def allow_old_paths() -> None:
    """Let the paths of MOVED be imported."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OldPaths())  # before a moved package's files are found under its old name, too
