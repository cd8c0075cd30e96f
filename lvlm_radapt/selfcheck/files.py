"""Files and layout: what is opened, and from where transformers opens the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lvlm_radapt.loading.adapter_files import base_name
from lvlm_radapt.loading.export_files import is_export
from lvlm_radapt.loading.llava_original import is_original
from lvlm_radapt.loading.load import load_any
from lvlm_radapt.loading.locate import embedded_models, locate, read_config
from lvlm_radapt.loading.open_clip import is_open_clip
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.selfcheck.result import Check, checked

NAMES = ("files and layout",)


def check_files(name: str, place: dict[str, Any], opened: list[PixelModel]) -> Iterator[Check]:
    """Opens the model into `opened`: every file is read and checked, a first image and question go through it."""
    model = load_any(name, **place)
    opened.append(model)
    numbers = {
        "family": type(model).__name__,
        "weights": sum(weight.numel() for weight in model.hf.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "image_processor": type(model.image_processor).__name__,
        "defence": None if model.radapt is None else model.radapt.describe(),
    }
    defence = "" if model.radapt is None else f", with {model.radapt.describe()}"
    yield checked(
        NAMES[0],
        True,
        f"{numbers['family']}, {numbers['weights']:,} weights in {numbers['dtype']}, "
        f"{numbers['image_processor']}{defence}",
        **numbers,
    )


def stock_source(name: str, model: PixelModel) -> tuple[str | None, str]:
    """(what transformers opens as this model, "") or (None, why there is nothing)."""
    base = base_name(name) if name not in embedded_models() else name
    if model.tower_name is not None:
        return None, "its vision tower is another model's, so transformers has no such checkpoint"
    if base not in embedded_models() and is_export(base):
        return None, "the folder carries its defence as code, which is never run here: check its base"
    if base not in embedded_models() and is_open_clip(base):
        return None, "transformers does not open open_clip's layout"
    source, shown = locate(base)
    if is_original(read_config(source, shown)):
        return None, "transformers does not open LLaVA's original layout"
    return source, ""
