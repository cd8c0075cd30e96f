"""Adapters written: the defence without the model it defends, a few kilobytes to keep or to hand on.

`lvlm_radapt.loading.adapter_files` says what lies in the folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata

from safetensors.torch import save

from lvlm_radapt.defences.base import refuse_attached
from lvlm_radapt.defences.radapt.hooks import injected_anchor, injected_config, injected_white
from lvlm_radapt.loading.adapter import load_adapter
from lvlm_radapt.loading.adapter_files import (
    FORMAT,
    SETTINGS,
    TENSORS,
    VERSION,
    AdapterSettings,
    AnchorPlace,
    BaseRecord,
    ConversationRecord,
    is_adapter,
)
from lvlm_radapt.loading.locate import lasting_name
from lvlm_radapt.models.base import LVLM, PixelModel
from lvlm_radapt.towers.fingerprint import DTYPES, tower_fingerprints
from lvlm_radapt.utils.atomic_folder import new_folder
from lvlm_radapt.utils.errors import UserError

__all__ = ["is_adapter", "load_adapter", "save_adapter"]


def save_adapter(model: PixelModel, out: str | os.PathLike[str], *, notes: Mapping[str, str] | None = None) -> None:
    """Write the defence in `model` to the new folder `out`; `load_model` opens it, and `load_encoder` an encoder's.

    A model in half precision gives an adapter that opens in that precision, unless asked otherwise, and in float32.
    One in float32 opens in every precision. A conversation and a limit of pixels are kept too. notes: texts to lay
    beside it, by file name, for people.

    UserError when no defence is in the model, or `out` is not empty or cannot be written.
    """
    refuse_attached(model, "saving it")
    if model.answers_only:
        raise UserError(f"{model.name} is behind an API: there is nothing to save")
    config, white = injected_config(model.hf), injected_white(model.hf)
    anchor = injected_anchor(model.hf) if white is None else None
    if config is None:
        raise UserError(f"{model.name} has no R-Adapt in it: call robustify() before saving an adapter")
    own = next((name for name, dtype in DTYPES.items() if dtype == model.dtype), None)
    if own is None:
        raise UserError(f"{model.name} is opened in {model.dtype}: open it in one of {', '.join(DTYPES)}")
    asked = model.text.conversation if isinstance(model, LVLM) else None
    tensors = {} if anchor is None else {"anchor": anchor.values.cpu().contiguous()}
    content = save(tensors)
    settings = AdapterSettings(
        format=FORMAT,
        version=VERSION,
        package=_package_version(),
        config=config.to_dict(),
        anchor=None if anchor is None else AnchorPlace(grid=anchor.grid, prefix_tokens=anchor.prefix_tokens),
        white=white,
        tensors_sha256=hashlib.sha256(content).hexdigest(),
        base=BaseRecord(
            name=lasting_name(model.name),
            revision=model.revision,
            other_tower=None if model.tower_name is None else lasting_name(model.tower_name),
            tower=tower_fingerprints(model.tower, list(DTYPES) if own == "float32" else [own]),
        ),
        geometry=model.geometry,
        conversation=None if asked is None else ConversationRecord(**asdict(asked)),
        max_pixels=model.max_pixels,
    )
    with new_folder(out) as folder:
        (folder / TENSORS).write_bytes(content)
        (folder / SETTINGS).write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for name, text in (notes or {}).items():
            (folder / name).write_text(text, encoding="utf-8")


def _package_version() -> str | None:
    try:
        return metadata.version("lvlm-radapt")
    except metadata.PackageNotFoundError:  # run from a clone
        return None
