"""The fixed robustness anchor: what it is, and how the training-free one is taken from the encoder itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_radapt.errors import UserError
from lvlm_radapt.towers import Tower, find_tower
from lvlm_radapt.towers.base import resize_rows

# Channel mean and standard deviation of CLIP's preprocessing on pixels in [0, 1], also Qwen2-VL's and 2.5's.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class Anchor:
    """A fixed first-attention output.

    `values` is float32 [T, D]: `prefix_tokens` rows (the CLS token) first, then the patches of `grid`
    (high, wide) in raster order. T = 1 with grid None is one vector for every token of every image.
    Anything else is a `UserError`.
    """

    values: Tensor
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0

    def __post_init__(self) -> None:
        values = self.values
        if values.dim() != 2 or not values.is_floating_point() or not bool(values.isfinite().all()):
            raise UserError(
                f"an anchor's values are finite floating point numbers [T, D], not {values.dtype} "
                f"{tuple(values.shape)}: recompute the anchor"
            )
        rows = 1 if self.grid is None else self.prefix_tokens + self.grid[0] * self.grid[1]
        if len(values) != rows or (self.grid is None and self.prefix_tokens):
            raise UserError(
                f"an anchor of {len(values)} rows does not fit grid {self.grid} and {self.prefix_tokens} "
                "prefix tokens: give prefix + high * wide rows, or one row with no grid and no prefix"
            )
        object.__setattr__(self, "values", values.detach().to(torch.float32))

    @property
    def width(self) -> int:
        """D, the encoder's hidden size."""
        return int(self.values.shape[1])

    def resized(self, grid: tuple[int, int]) -> Anchor:
        """The anchor on another patch grid (bicubic, antialiased when shrinking); prefix rows stay.

        An anchor of one vector and one already on `grid` come back unchanged.
        """
        if self.grid is None or self.grid == grid:
            return self
        return replace(self, values=resize_rows(self.values, self.prefix_tokens, self.grid, grid), grid=grid)


def white_anchor(
    model: nn.Module | Tower,
    image_mean: Sequence[float] = CLIP_MEAN,
    image_std: Sequence[float] = CLIP_STD,
) -> Anchor:
    """The training-free anchor (R-Adapt_CLIP): the encoder's own first attention output, after the output
    projection and before the residual, on a uniform white image (pixel value 1).

    A filter or an anchor already injected stays out of it. Where all tokens answer alike (Qwen2-VL and 2.5,
    whose positions enter by rotation only) the anchor is that one vector; else it has a row per token.

    Args:
        model: a transformers model that `find_tower` knows, or its tower.
        image_mean, image_std: the three channels' normalisation on pixels in [0, 1]; CLIP's unless given.
    """
    tower = model if isinstance(model, Tower) else find_tower(model)
    white = (1 - torch.tensor(image_mean)) / torch.tensor(image_std)
    if white.shape != (3,) or not bool(white.isfinite().all()):
        raise UserError(
            "image_mean and image_std are three finite numbers each, std not 0: see the model's preprocessor"
        )
    args, kwargs = tower.uniform_input(white)
    rows = _first_attention_output(tower, args, kwargs)
    spread = (rows - rows.mean(0)).abs().max()
    # equal up to the rounding of the dtype the tower computes in
    if spread <= rows.abs().max() * max(1e-5, 32 * torch.finfo(tower.dtype).eps):
        return Anchor(rows.mean(0, keepdim=True))
    order = tower.order(args, kwargs)
    if order is not None:
        raster = torch.empty_like(rows)
        raster[order.to(rows.device)] = rows
        rows = raster
    return Anchor(rows, grid=tower.grid(args, kwargs), prefix_tokens=tower.prefix_tokens)


def _first_attention_output(tower: Tower, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The stock tower's first attention output for one image, float32 [T, D], on the tower's device."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        caught.append(out.detach().reshape(-1, out.shape[-1]).to(torch.float32))

    modes = [(module, module.training) for module in tower.module.modules()]
    handle = tower.first_attention.register_forward_hook(catch)
    try:
        tower.module.eval()
        with tower.stock(), torch.no_grad():
            tower.module(*args, **kwargs)
    finally:
        handle.remove()
        for module, mode in modes:
            module.training = mode
    if not caught:
        raise UserError("the vision tower is compiled already and its hooks do not run: inject before compiling")
    return caught[0]
