"""What the defence must know of a vision encoder: where pixels enter, what comes first, how tokens lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lvlm_radapt.errors import UserError

if TYPE_CHECKING:
    from lvlm_radapt.anchor import Anchor
    from lvlm_radapt.modules import GaussianFilter

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

STATE = "_radapt"  # the attribute of a tower that holds what is injected into it
LAID_ANCHOR = "radapt_anchor"  # the keyword that takes a per-call anchor through the tower to its first attention


class Tower(ABC):
    """Adapter of one vision encoder: a thin view on the model's own modules, holding no state of its own."""

    family: ClassVar[str]
    prefix_tokens: ClassVar[int]
    """Tokens before the patches: 1 where a CLS token comes first."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        """The encoder; its forward takes the pixels."""

    @property
    @abstractmethod
    def first_attention(self) -> nn.Module:
        """The first block's self-attention; it returns its projected output, or a tuple beginning with it."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Hidden size D of the encoder."""

    @abstractmethod
    def filter_pixels(self, args: Args, kwargs: Kwargs, gaussian: GaussianFilter) -> tuple[Args, Kwargs]:
        """The call's arguments with every image filtered; the dtype of the pixels stays."""

    @abstractmethod
    def lay(self, values: Tensor, grid: tuple[int, int] | None, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Prepares an anchor, `values` [T, D] on `grid`, for this call: checks that it fits and, where the
        tokens' order depends on the call, adds it in that order under the keyword `LAID_ANCHOR`. A keyword
        and not a note on the side, so that a block recomputed in the backward pass sees its own again."""

    @abstractmethod
    def order(self, args: Args, kwargs: Kwargs) -> Tensor | None:
        """Long [T]: row r of the first block shows token order[r] of the raster order (images one after the
        other); None where the two orders are the same."""

    @abstractmethod
    def grid(self, args: Args, kwargs: Kwargs) -> tuple[int, int]:
        """(high, wide) in patches of the call's first image."""

    def check(self, anchor: Anchor) -> None:
        """A `UserError` where `anchor` cannot serve this encoder."""
        if anchor.width != self.width:
            raise UserError(f"the anchor is {anchor.width} wide, this encoder {self.width}: take one of that width")
        if anchor.grid is not None and anchor.prefix_tokens != self.prefix_tokens:
            raise UserError(
                f"the anchor has {anchor.prefix_tokens} prefix tokens, this {self.family} encoder "
                f"{self.prefix_tokens}: take one from an encoder of this family"
            )

    @abstractmethod
    def uniform_input(self, colour: Tensor) -> tuple[Args, Kwargs]:
        """Arguments of a call with one image of a single `colour` [3], given in normalised pixels."""

    @property
    def device(self) -> torch.device:
        """Where to put inputs; CPU for offloaded weights, whose own hooks move the inputs on."""
        device = next(self.module.parameters()).device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the encoder computes in."""
        for parameter in self.module.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
        return torch.float32

    def stock(self) -> AbstractContextManager[None]:
        """Within it the tower answers as if nothing were injected."""
        state = getattr(self.module, STATE, None)
        return nullcontext() if state is None else state.suspend()


def argument(args: Args, kwargs: Kwargs, position: int, name: str) -> Any:
    """The argument `name` of a call that may pass it by keyword or at `position`; None where it is absent."""
    if name in kwargs:
        return kwargs[name]
    return args[position] if len(args) > position else None


def with_argument(args: Args, kwargs: Kwargs, position: int, name: str, value: Any) -> tuple[Args, Kwargs]:
    """The same call with that argument replaced."""
    if name in kwargs or len(args) <= position:
        return args, {**kwargs, name: value}
    return (*args[:position], value, *args[position + 1 :]), kwargs


def resize_rows(values: Tensor, prefix: int, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Token rows [prefix + h * w, D] on another grid: patches bicubic (antialiased), prefix kept."""
    if grid == new_grid:
        return values
    image = values[prefix:].T.reshape(1, -1, *grid)
    image = nn.functional.interpolate(image, size=new_grid, mode="bicubic", antialias=True)
    return torch.cat([values[:prefix], image.flatten(2)[0].T])
