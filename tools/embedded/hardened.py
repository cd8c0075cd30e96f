"""Pack a fine-tuned tiny-llava's low-rank change for the demo: `python -m tools.embedded.hardened TUNED --out DIR`.

TUNED is what `lvlm-radapt harden tiny-llava` leaves in `models/low-rank-weights-tiny-llava`. DIR gets the change's
factors in float16, and the training log.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lvlm_radapt.embedded.hardened import BASE, CHANGE
from lvlm_radapt.loading.load import load_model
from lvlm_radapt.loading.locate import TRAINING_LOG
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json

LARGEST_ERROR = 1e-3
"""Of a weight, relative to the largest change of its matrix: what float16 and the rank lose."""


def pack(tuned: Path, out: Path) -> None:
    """UserError where TUNED differs from tiny-llava by more than changes of its rank in the vision tower."""
    rank = int(read_json(tuned / TRAINING_LOG)["settings"]["rank"])
    before, after = load_model(BASE), load_model(tuned)
    inside = {id(weight) for weight in before.tower.parameters()}
    was, now = before.hf.state_dict(keep_vars=True), after.hf.state_dict()
    if any(id(was[name]) not in inside and not torch.equal(was[name], now[name]) for name in was):
        raise UserError(f"{tuned} has changes outside of the vision tower")
    change: dict[str, Tensor] = {}
    weights = dict(after.tower.named_parameters())
    for name, weight in before.tower.named_parameters():
        moved = (weights[name] - weight).detach()
        if not moved.any():
            continue
        left, size, right = torch.linalg.svd(moved.flatten(1).double(), full_matrices=False)
        root = size[:rank].sqrt()
        up, down = (left[:, :rank] * root).half().contiguous(), (root[:, None] * right[:rank]).half().contiguous()
        error = (up.double() @ down.double() - moved.flatten(1)).abs().max() / moved.abs().max()
        if error > LARGEST_ERROR:
            raise UserError(f"{tuned}: {name} has no change of rank {rank} (error {error:.1e})")
        change |= {f"{name}.up": up, f"{name}.down": down}
    out.mkdir(parents=True)
    save_file(change, out / CHANGE)
    shutil.copy(tuned / TRAINING_LOG, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tuned", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    pack(given.tuned, given.out)
