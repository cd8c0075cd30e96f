"""R-Adapt for large vision-language models: a defence at the entrance of a frozen vision tower.

The names below are imported on first use, so that `import lvlm_radapt` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lvlm_radapt.utils.moved import allow_old_paths

if TYPE_CHECKING:
    from lvlm_radapt.defences.radapt.config import RAdaptConfig
    from lvlm_radapt.defences.radapt.hooks import inject, remove
    from lvlm_radapt.hub import load_pretrained, push_to_hub
    from lvlm_radapt.loading.load import load_encoder, load_model
    from lvlm_radapt.models.robustify import robustify
    from lvlm_radapt.saving.adapter import save_adapter
    from lvlm_radapt.saving.export import export_model
    from lvlm_radapt.saving.fold import fold_model

__all__ = [
    "RAdaptConfig",
    "export_model",
    "fold_model",
    "inject",
    "load_encoder",
    "load_model",
    "load_pretrained",
    "push_to_hub",
    "remove",
    "robustify",
    "save_adapter",
]

_HOMES = {
    "RAdaptConfig": "lvlm_radapt.defences.radapt.config",
    "export_model": "lvlm_radapt.saving.export",
    "fold_model": "lvlm_radapt.saving.fold",
    "inject": "lvlm_radapt.defences.radapt.hooks",
    "load_encoder": "lvlm_radapt.loading.load",
    "load_model": "lvlm_radapt.loading.load",
    "load_pretrained": "lvlm_radapt.hub",
    "push_to_hub": "lvlm_radapt.hub",
    "remove": "lvlm_radapt.defences.radapt.hooks",
    "robustify": "lvlm_radapt.models.robustify",
    "save_adapter": "lvlm_radapt.saving.adapter",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


allow_old_paths()
