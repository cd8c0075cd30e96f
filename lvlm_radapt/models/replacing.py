"""A robust twin's parts in a model's tower, written as plain stock weights that any server loads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from lvlm_radapt.errors import UserError
from lvlm_radapt.export import refuse_unwritable, save_companions
from lvlm_radapt.folders import new_folder
from lvlm_radapt.models.base import LVLM, PixelModel
from lvlm_radapt.models.load import is_robustified, load_any
from lvlm_radapt.parts import replace_parts
from lvlm_radapt.towers import find_tower

RECORD = "replaced_parts.json"


def open_guide(name: str | os.PathLike[str], model: PixelModel) -> PixelModel:
    """The robust twin of that name, on the model's device in its dtype; UserError for one with R-Adapt in it."""
    if is_robustified(name):
        raise UserError(f"{os.fspath(name)} is robustified: a guide is a plain robust encoder, name its base")
    return load_any(name, device=model.device, dtype=model.dtype)


def replace_from(model: PixelModel, guide: PixelModel, parts: Sequence[str]) -> None:
    """Copies those parts of the guide's tower into the model's, in place; see `lvlm_radapt.parts.replace_parts`."""
    try:
        replace_parts(find_tower(model.hf), find_tower(guide.hf), parts)
    except UserError as error:
        raise UserError(f"{guide.name} into {model.name}: {error}") from error


def write_plain(model: PixelModel, out: str | os.PathLike[str], *, guide: str, parts: Sequence[str]) -> None:
    """Write the model as it stands, of its stock class, to the new folder `out`.

    Weights keep the dtype they are opened in. replaced_parts.json says which parts are the guide's; nothing reads it.
    UserError when the weights are quantised or offloaded, or `out` is not empty or cannot be written.
    """
    refuse_unwritable(model)
    with new_folder(out) as folder:
        model.hf.save_pretrained(folder)
        if isinstance(model, LVLM):
            save_companions(model, folder)
        else:
            model.image_processor.save_pretrained(folder)
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(folder)
        record = {"base": model.label, "guide": guide, "parts": [*parts]}
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
