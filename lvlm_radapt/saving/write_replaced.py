"""A robust twin's parts in a model's tower, written as plain stock weights that any server loads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from lvlm_radapt.loading.guides import load_guide
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.saving.plain_weights import refuse_unwritable, save_stock, weight_bytes
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.parts import replace_parts
from lvlm_radapt.utils.atomic_folder import new_folder
from lvlm_radapt.utils.errors import UserError

RECORD = "replaced_parts.json"


def write_replaced(
    model: PixelModel, guide: str | os.PathLike[str], parts: Sequence[str], out: str | os.PathLike[str]
) -> None:
    """Copy those parts of the guide's tower into the model's, in place, and write the model, of its stock class, to
    the new folder `out`: a checkpoint with neither filter nor anchor, which transformers and `load_any` open.

    guide: what `load_guide` opens. parts: of `lvlm_radapt.towers.parts.tower_parts`. Weights keep the dtype the model
    is opened in. replaced_parts.json says what was done; nothing reads it.

    UserError, one line, for a guide or parts that do not fit, a model with R-Adapt in it, quantised or offloaded
    weights, and `out` that is not empty or cannot be written.
    """
    refuse_unwritable(model)
    twin = load_guide(guide, model)
    try:
        replace_parts(find_tower(model.hf), twin, parts)
    except UserError as error:
        raise UserError(f"{os.fspath(guide)} into {model.name}: {error}") from error
    with new_folder(out, room=weight_bytes(model)) as folder:
        save_stock(model, folder)
        record = {"model": model.label, "guide": os.fspath(guide), "parts": [*parts]}
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
