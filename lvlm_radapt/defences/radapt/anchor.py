"""The fixed robustness anchor: what it is, and how the training-free one is taken from the encoder itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_radapt.towers.base import (
    BYPASS,
    CLIP_MEAN,
    CLIP_STD,
    AnyGridTower,
    Colour,
    Tower,
    find_tower,
    normalised_white,
    resize_rows,
)
from lvlm_radapt.utils.errors import UserError

__all__ = ["CLIP_MEAN", "CLIP_STD", "Anchor", "uniform_anchor", "uniform_rows", "white_anchor"]


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
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    grid: tuple[int, int] | None = None,
) -> Anchor:
    """The training-free anchor (R-Adapt_CLIP): the encoder's own first attention output, after the output
    projection and before the residual, on a uniform white image (pixel value 1).

    A filter or an anchor already injected stays out of it. Where theory says that all tokens answer alike
    (Qwen2-VL and 2.5, whose positions enter by rotation only) the anchor is that one vector; else it has a row
    per token, and on another grid it is other values, which `inject` without an anchor sees to.

    Args:
        model: a transformers model that `find_tower` knows, or its tower.
        image_mean, image_std: the three channels' normalisation on pixels in [0, 1]; the family's usual one
            unless given (CLIP's; one half for Qwen3-VL).
        grid: the image's (high, wide) in patches, for Qwen; None for the encoder's usual one.
    """
    tower = model if isinstance(model, Tower) else find_tower(model)
    mean = tower.image_mean if image_mean is None else image_mean
    std = tower.image_std if image_std is None else image_std
    return uniform_anchor(tower, normalised_white(mean, std), grid)


def uniform_anchor(tower: Tower, colour: Colour, grid: tuple[int, int] | None = None) -> Anchor:
    """`white_anchor` for a uniform image of any `colour`, in normalised pixels."""
    rows, grid = uniform_rows(tower, colour, grid)
    spread = (rows - rows.mean(0)).abs().max()
    # equal up to the rounding of the dtype the tower computes in
    tolerance = max(1e-5, 32 * torch.finfo(tower.dtype).eps)
    if not tower.absolute_positions and spread <= rows.abs().max() * tolerance:
        return Anchor(rows.mean(0, keepdim=True))
    return Anchor(rows, grid=grid, prefix_tokens=tower.prefix_tokens)


def uniform_rows(tower: Tower, colour: Colour, grid: tuple[int, int] | None = None) -> tuple[Tensor, tuple[int, int]]:
    """The stock encoder's first attention output on one image of a single normalised `colour`.

    Returns:
        float32 [prefix + high * wide, D], prefix rows first, then the patches in raster order, on the tower's
        device; and (high, wide), which is `grid` if that was given.

    Raises:
        UserError: a colour that is not three finite numbers; a `grid` for an encoder of fixed input size.
    """
    if len(colour) != 3 or not all(map(math.isfinite, colour)):
        raise UserError(f"a colour is three finite numbers, not {colour}: see the model's preprocessor")
    if grid is None:
        args, kwargs = tower.uniform_input(torch.tensor(colour))
    elif isinstance(tower, AnyGridTower):
        args, kwargs = tower.uniform_input(torch.tensor(colour), grid)
    else:
        raise UserError(f"a {tower.family} encoder has one grid: resize its anchor with anchor.resized({grid})")
    rows = _first_attention_output(tower, args, kwargs)
    order = tower.order(args, kwargs)
    if order is not None:
        raster = torch.empty_like(rows)
        raster[order.to(rows.device)] = rows
        rows = raster
    return rows, tower.grid(args, kwargs)


class _Seen(Exception):
    """Ends a forward pass whose rest is not needed."""


def _first_attention_output(tower: Tower, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The stock tower's first attention output for one image, float32 [T, D], on the tower's device."""
    caught: list[Tensor] = []
    # where it is asked for in the midst of a defended call, other threads' calls must neither be undefended nor caught
    bypass = {BYPASS: object()} if isinstance(tower, AnyGridTower) else {}

    def catch(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if kwargs.get(BYPASS) is not bypass.get(BYPASS):
            return
        out = output[0] if isinstance(output, tuple) else output
        caught.append(out.detach().reshape(-1, out.shape[-1]).to(torch.float32))
        raise _Seen

    modes = [(module, module.training) for module in tower.module.modules()]
    handle = tower.first_attention.register_forward_hook(catch, with_kwargs=True)
    try:
        tower.module.eval()
        plain = torch.autocast(tower.device.type, enabled=False)  # the answer is one of the grid, not of the caller
        with nullcontext() if bypass else tower.stock(), plain, torch.no_grad(), suppress(_Seen):
            tower.module(*args, **kwargs, **bypass)
    finally:
        handle.remove()
        for module, mode in modes:
            module.training = mode
    if not caught:
        raise UserError("the vision tower is compiled already and its hooks do not run: inject before compiling")
    return caught[0]
