"""R-Adapt for large vision-language models: a defence at the entrance of a frozen vision tower.

The names below are imported on first use, so that `import lvlm_radapt` stays light.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvlm_radapt.config import RAdaptConfig
    from lvlm_radapt.export import export_model
    from lvlm_radapt.fold import fold_model
    from lvlm_radapt.inject import inject, remove
    from lvlm_radapt.models.load import load_encoder, load_model
    from lvlm_radapt.models.robustify import robustify

__all__ = [
    "RAdaptConfig",
    "export_model",
    "fold_model",
    "inject",
    "load_encoder",
    "load_model",
    "remove",
    "robustify",
]

_HOMES = {
    "RAdaptConfig": "lvlm_radapt.config",
    "export_model": "lvlm_radapt.export",
    "fold_model": "lvlm_radapt.fold",
    "inject": "lvlm_radapt.inject",
    "load_encoder": "lvlm_radapt.models.load",
    "load_model": "lvlm_radapt.models.load",
    "remove": "lvlm_radapt.inject",
    "robustify": "lvlm_radapt.models.robustify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the submodule `inject` would otherwise hide the function of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "inject" and isinstance(value, ModuleType):
            value = value.inject
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
