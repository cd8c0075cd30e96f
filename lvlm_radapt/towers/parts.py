"""The parts of a vision encoder, and one encoder's parts put into another's place.

The parts are what the source of R-Adapt replaces one after the other to find where an adversarially fine-tuned
encoder keeps its robustness (arXiv 2603.12799, progressive replacement): the embedding, the first block's attention,
the first block, the second, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_radapt.towers.base import STATE, Tower, resize_rows
from lvlm_radapt.utils.errors import UserError

EMBEDDING = "embedding"
"""Patch embedding, positions, class token and the norm before the first block, as far as the family has them."""
ATTENTION = "attention1"
"""The first block's attention with the norm before it: a part of block1."""
HEAD = "head"
"""Whatever follows the last block: the last norm, SigLIP's pooling, Qwen's mergers."""

_POSITIONS = "embeddings.position_embedding.weight"  # a row a token in CLIP and SigLIP, so that the image size shows
# What no weight's shape tells, under the names that transformers' configurations have for it.
_MUST_AGREE = (
    ("num_attention_heads", "attention heads"),
    ("num_heads", "attention heads"),
    ("hidden_act", "as activation"),
    ("patch_size", "px a patch"),
)


def tower_parts(tower: Tower) -> dict[str, list[str]]:
    """Part -> names of its parameters, relative to `tower.module`.

    In order: "embedding", "attention1", "block1", "block2", ..., "head". Each parameter stands in one part, those of
    "attention1" in "block1" too.
    """
    layout = tower.layout
    attention = next(name for name, module in tower.module.named_modules() if module is tower.first_attention)
    first = (f"{attention}.", f"{layout.blocks}0.{layout.norm}.")
    parts: dict[str, list[str]] = {EMBEDDING: [], ATTENTION: []}
    head = []
    for name, _ in tower.module.named_parameters():
        if name.startswith(layout.embedding):
            parts[EMBEDDING].append(name)
        elif name.startswith(layout.blocks):
            number = int(name.removeprefix(layout.blocks).partition(".")[0])
            parts.setdefault(f"block{number + 1}", []).append(name)
            if name.startswith(first):
                parts[ATTENTION].append(name)
        else:
            head.append(name)
    return parts | {HEAD: head}


def part_parameters(tower: Tower, parts: Sequence[str]) -> list[str]:
    """Names of the parameters of those parts, each once, in the module's order.

    parts: of `tower_parts`, or "attention2", "attention3", ...: what "attention1" is, of a later block.

    Raises:
        UserError: a part that the tower does not have, or none at all.
    """
    known = tower_parts(tower)
    prefix = tower.layout.blocks
    blocks = [part.removeprefix("block") for part in known if part.startswith("block")]
    for number in blocks[1:]:
        own = [f"{prefix}{int(number) - 1}.{n.removeprefix(f'{prefix}0.')}" for n in known[ATTENTION]]
        known[f"attention{number}"] = own
    foreign = [part for part in parts if part not in known]
    if foreign or not parts:
        what = f"part {foreign[0]!r} is unknown" if foreign else "no part is named"
        raise UserError(
            f"{what}: choose of {EMBEDDING}, {ATTENTION} to attention{blocks[-1]}, block1 to block{blocks[-1]}, {HEAD}"
        )
    chosen = {name for part in parts for name in known[part]}
    return [name for name, _ in tower.module.named_parameters() if name in chosen]


def tower_blocks(tower: Tower) -> Sequence[nn.Module]:
    """The tower's blocks, first to last."""
    module: Any = tower.module.get_submodule(tower.layout.blocks.rstrip("."))
    return list(module)


def patch_embedding(tower: Tower) -> nn.Conv2d | nn.Conv3d | nn.Linear:
    """What makes tokens of patches: a convolution with weight [D, 3, p, p], with a frame axis (Qwen) [D, 3, T, p, p],
    or a linear map of rows of pixels (Gemma 4) [D, p * p * 3]."""
    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)
    return next(module for module in tower.module.modules() if isinstance(module, kinds))


def replace_parts(tower: Tower, guide_tower: Tower, parts: Sequence[str]) -> None:
    """Copies those parts' weights from `guide_tower` into `tower`, in place; its dtype and device stay.

    Of CLIP and SigLIP encoders of another image size the learned positions are interpolated (bicubic) to this one's
    grid, as a larger image needs them.

    Raises:
        UserError: a part that the tower does not have; encoders of another family, width, patch size, number of
            heads or activation; a guide without that block; a tower with R-Adapt in it. Nothing is changed then.
    """
    names = part_parameters(tower, parts)
    for one in (tower, guide_tower):
        if getattr(one.module, STATE, None) is not None:
            raise UserError("R-Adapt is in one of the two encoders: replace the parts first, then robustify")
    _check_alike(tower, guide_tower)
    mine, theirs = dict(tower.module.named_parameters()), dict(guide_tower.module.named_parameters())
    found = {name: _fitting(name, mine[name], theirs.get(name), tower, guide_tower) for name in names}
    with torch.no_grad():
        for name, value in found.items():
            mine[name].copy_(value)


def _check_alike(tower: Tower, guide: Tower) -> None:
    ours: Any = tower.module.config
    its: Any = guide.module.config
    if its.model_type != ours.model_type:
        raise UserError(f"the guide is a {its.model_type}, this encoder a {ours.model_type}: take one of that kind")
    if guide.width != tower.width:
        raise UserError(f"the guide is {guide.width} wide, this encoder {tower.width}: take one of that width")
    for key, what in _MUST_AGREE:
        here, there = getattr(ours, key, None), getattr(its, key, None)
        if here != there:
            raise UserError(f"the guide has {there} {what}, this encoder {here}: take one like that")


def _fitting(name: str, mine: Tensor, theirs: Tensor | None, tower: Tower, guide: Tower) -> Tensor:
    """The guide's value of the weight, in the tower's shape."""
    if theirs is None:
        raise UserError(f"the guide has no {name}: take an encoder of the same architecture")
    if theirs.shape == mine.shape:
        return theirs
    sides = [math.isqrt(len(one) - tower.prefix_tokens) for one in (theirs, mine)]
    if name != _POSITIONS or any(
        side**2 + tower.prefix_tokens != len(one) for side, one in zip(sides, (theirs, mine), strict=True)
    ):
        raise UserError(
            f"the guide's {name} is {'x'.join(map(str, theirs.shape))}, this encoder's "
            f"{'x'.join(map(str, mine.shape))}: take an encoder of the same architecture"
        )
    there, here = sides
    return resize_rows(theirs.detach().float(), guide.prefix_tokens, (there, there), (here, here))
