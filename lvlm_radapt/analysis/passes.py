"""What a vision tower's blocks give on the way."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.selfcheck.trial import inputs_of, outputs_of
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.parts import tower_blocks


@torch.no_grad()
def layer_rows(model: PixelModel, batches: Sequence[PixelBatch], *, most: int, seed: int = 0) -> list[Tensor]:
    """Tokens of all images as each layer has them: float32 [rows, D], first what enters block 1, then what each block
    gives. A row is a token of an image (class token and views included).

    most: where there are more tokens, so many are kept, drawn by `seed`: the same ones in every layer, and for every
    model of the same grid.
    """
    tower = find_tower(model.hf)
    blocks = tower_blocks(tower)
    kept: list[list[Tensor]] = [[] for _ in range(len(blocks) + 1)]
    share = max(1, most // len(batches))
    for number, batch in enumerate(batches):
        with ExitStack() as stack:
            called = stack.enter_context(inputs_of(blocks[0]))
            given = [stack.enter_context(outputs_of(block, first=False)) for block in blocks]
            model.run_tower(batch)
        args, kwargs = called[-1]
        entered = args[0] if args else kwargs["hidden_states"]
        layers = [states.flatten(0, -2) for states in (entered, *(states for (states,) in given))]
        draw = torch.Generator().manual_seed(seed + number)
        rows = torch.randperm(len(layers[0]), generator=draw)[:share].sort().values.to(layers[0].device)
        for into, states in zip(kept, layers, strict=True):
            into.append(states[rows].float())
    return [torch.cat(states) for states in kept]
