"""Where the first block looks: its attention weights, computed again from its own queries and keys."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from torch import Tensor

from lvlm_radapt.analysis.passes import run_tower
from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.towers import Tower, find_tower


@torch.no_grad()
def first_attention(tower: Tower, hidden: Tensor, **kwargs: Any) -> list[Tensor]:
    """The softmax weights of the first attention, one tensor [heads, L, L] (query, key) a sequence, float32.

    No kernel but the eager one returns them, so they are made from q and k as the module itself makes these.

    hidden: what the attention gets: [B, T, D] of CLIP and SigLIP; [N, D] of Qwen, whose sequences (images, or windows
    in 2.5) lie between the bounds `cu_seqlens`, in the tower's own order. kwargs: the rest of its call.
    """
    attention: Any = tower.first_attention
    if tower.family != "qwen":
        heads = attention.num_heads
        q, k = (
            project(hidden).unflatten(-1, (heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
        return [*_softmax(q, k, attention.scale)]
    q, k, _ = attention.qkv(hidden).reshape(len(hidden), 3, attention.num_heads, -1).unbind(1)
    modeling: Any = sys.modules[type(attention).__module__]
    q, k = modeling.apply_rotary_pos_emb_vision(q, k, *kwargs["position_embeddings"])
    bounds = kwargs["cu_seqlens"].tolist()
    return [
        _softmax(q[start:stop].transpose(0, 1), k[start:stop].transpose(0, 1), attention.scaling)
        for start, stop in itertools.pairwise(bounds)
    ]


@torch.no_grad()
def attention_maps(model: PixelModel, batch: PixelBatch) -> list[Tensor]:
    """How much attention each patch of an image gets in the first block: float32 [high, wide] in raster order.

    The mean over heads and over all queries of the weight on this patch, times the number of keys: 1 is what it would
    get if all were looked at alike. Of a model that cuts images into views, the first view's.
    """
    tower = find_tower(model.hf)
    calls: dict[str, Any] = {}

    def keep_tower(_module: Any, args: Any, kwargs: Any) -> None:
        calls["tower"] = args, kwargs

    def keep_attention(_module: Any, args: Any, kwargs: Any) -> None:
        named = dict(kwargs)
        calls["hidden"] = args[0] if args else named.pop("hidden_states")
        calls["attention"] = named | ({"cu_seqlens": args[1]} if len(args) > 1 else {})

    handles = [
        tower.module.register_forward_pre_hook(keep_tower, with_kwargs=True),
        tower.first_attention.register_forward_pre_hook(keep_attention, with_kwargs=True),
    ]
    try:
        run_tower(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    weights = first_attention(tower, calls["hidden"], **calls["attention"])
    received = [one.mean((0, 1)) * one.shape[-1] for one in weights]
    high, wide = tower.grid(*calls["tower"])
    order = tower.order(*calls["tower"])
    if order is None:
        patches = torch.stack(received)[:, tower.prefix_tokens :]
    else:
        rows = torch.cat(received)
        patches = torch.empty_like(rows)
        patches[order.to(rows.device)] = rows
        patches = patches.reshape(len(batch), -1)
    views = len(patches) // len(batch)
    return [one.reshape(high, wide).cpu() for one in patches[::views]]


def evenness(weights: Tensor) -> float:
    """Entropy of an attention map over that of an even one: 1 looks everywhere alike, 0 at a single patch."""
    share = (weights / weights.sum()).flatten().double()
    return float(-(share * share.clamp_min(1e-300).log()).sum() / torch.tensor(float(len(share))).log())


def moved(before: Tensor, after: Tensor) -> float:
    """The share of the attention, 0 to 1, that lies on other patches after than before (total variation)."""
    return float((before / before.sum() - after / after.sum()).abs().sum() / 2)


def _softmax(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return (q.float() @ k.float().transpose(-1, -2) * scale).softmax(-1)
