"""Vision-language models and image encoders behind one interface."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.siglip import SiglipEncoder

__all__ = ["LVLM", "CLIPEncoder", "PixelBatch", "PixelModel", "SiglipEncoder"]

_NOW_IN_LOADING = ("embedded_models", "load_encoder", "load_model")


def __getattr__(name: str) -> Any:
    """Names that were here before: they work for one release more."""
    if name not in _NOW_IN_LOADING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = "lvlm_radapt.loading.load"
    warnings.warn(
        f"{__name__}.{name} is {new}.{name} now; the old path goes in the next release", DeprecationWarning, 2
    )
    return getattr(import_module(new), name)
