"""The hardened tiny-llava of the demo: the low-rank change of its vision tower ships, not the whole weights again.

It is what `harden tiny-llava` trained in the run that docs/harden.md shows, on scenes of the training split alone.
`python -m tools.embedded.hardened` packs it.
"""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file

from lvlm_radapt.loading.load import load_model
from lvlm_radapt.loading.locate import TRAINING_LOG
from lvlm_radapt.saving.plain_weights import save_stock, weight_bytes
from lvlm_radapt.utils.atomic_folder import new_folder

BASE = "tiny-llava"
CHANGE = "change.safetensors"
"""`NAME.up` [O, rank] and `NAME.down` [rank, I] in float16, for each weight NAME of the tower."""


def shipped() -> Path:
    """The folder of the change and of its training log."""
    return Path(str(files("lvlm_radapt") / "embedded" / "weights" / "tiny-llava-low-rank"))


def write_low_rank(out: Path) -> None:
    """Write tiny-llava with the change in its weights to the new folder `out`, a stock checkpoint. UserError where it
    cannot be written."""
    model = load_model(BASE)
    change = load_file(shipped() / CHANGE)
    with torch.no_grad():
        for name, weight in model.tower.named_parameters():
            if f"{name}.up" in change:
                up, down = (change[f"{name}.{part}"].float() for part in ("up", "down"))
                weight.add_((up @ down).view_as(weight))
    with new_folder(out, room=weight_bytes(model)) as folder:
        save_stock(model, folder)
        shutil.copy(shipped() / TRAINING_LOG, folder)
