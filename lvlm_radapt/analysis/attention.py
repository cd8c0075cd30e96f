"""Where the first block looks: its attention weights, computed again from its own queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.selfcheck.trial import inputs_of
from lvlm_radapt.towers import find_tower


@torch.no_grad()
def attention_maps(model: PixelModel, batch: PixelBatch) -> list[Tensor]:
    """How much attention each patch of an image gets in the first block: float32 [high, wide] in raster order.

    The mean over heads and over all queries of the weight on this patch, times the number of keys: 1 is what it would
    get if all were looked at alike. Of a model that cuts images into views, those of the whole image's.
    """
    tower = find_tower(model.hf)
    with inputs_of(tower.module) as called, inputs_of(tower.first_attention) as attended:
        model.run_tower(batch)
    args, kwargs = attended[-1]
    named = kwargs | ({"cu_seqlens": args[1]} if len(args) > 1 else {})
    hidden = args[0] if args else named.pop("hidden_states")
    weights = tower.attention_weights(hidden, **named)
    received = [one.mean((0, 1)) * one.shape[-1] for one in weights]
    high, wide = tower.grid(*called[-1])
    order = tower.order(*called[-1])
    if order is None:
        patches = torch.stack(received)[:, tower.prefix_tokens :]
    else:
        rows = torch.cat(received)
        patches = torch.empty_like(rows)
        patches[order.to(rows.device)] = rows
        patches = patches.reshape(len(batch), -1)
    views = len(patches) // len(batch)
    return [one.reshape(high, wide).cpu() for one in patches[model.whole_view % views :: views]]


def evenness(weights: Tensor) -> float:
    """Entropy of an attention map over that of an even one: 1 looks everywhere alike, 0 at a single patch."""
    share = (weights / weights.sum()).flatten().double()
    return float(-(share * share.clamp_min(1e-300).log()).sum() / torch.tensor(float(len(share))).log())


def moved(before: Tensor, after: Tensor) -> float:
    """The share of the attention, 0 to 1, that lies on other patches after than before (total variation)."""
    return float((before / before.sum() - after / after.sum()).abs().sum() / 2)
