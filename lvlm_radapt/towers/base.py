"""What the defence must know of a vision encoder: where pixels enter, what comes first, how tokens lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from lvlm_radapt.defences.radapt.anchor import Anchor
    from lvlm_radapt.defences.radapt.modules import GaussianFilter

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Colour = tuple[float, float, float]  # a pixel after normalisation

STATE = "_radapt"  # the attribute of a tower that holds what is injected into it
PLACED_ANCHOR = "radapt_anchor"  # the keyword that takes a per-call anchor through the tower to its first attention
BYPASS = "radapt_bypass"  # the keyword that leaves one call undefended, and no other thread's


# Channel mean and standard deviation of CLIP's preprocessing on pixels in [0, 1], also Qwen2-VL's and 2.5's.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class PartLayout(NamedTuple):
    """Where an encoder keeps its parts, in names of its module."""

    embedding: tuple[str, ...]
    """Patch embedding, positions, class token and the norm before the first block: what their names begin with."""
    blocks: str
    norm: str
    """Of a block, the norm before its attention."""


class Tower(ABC):
    """Adapter of one vision encoder: a thin view on the model's own modules, holding no state of its own."""

    family: ClassVar[str]
    encoders: ClassVar[tuple[str, ...]]
    """The transformers classes that it adapts. Names, not classes: importing every modeling file would be slow."""
    layout: ClassVar[PartLayout]
    prefix_tokens: ClassVar[int]
    """Tokens before the patches: 1 where a CLS token comes first."""
    image_mean: Sequence[float] = CLIP_MEAN
    image_std: Sequence[float] = CLIP_STD
    """The family's usual normalisation of pixels in [0, 1]; a checkpoint may have another."""
    absolute_positions: bool = True
    """Whether a position is added to each patch. Where it only rotates queries and keys, all tokens of a
    uniform image have one value and so one attention output."""

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
    def place_anchor(
        self, values: Tensor, grid: tuple[int, int] | None, args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs]:
        """Prepares an anchor, `values` [T, D] on `grid`, for this call: checks that it fits and, where the
        tokens' order depends on the call, adds it in that order under the keyword `PLACED_ANCHOR`. A keyword
        and not a note on the side, so that a block recomputed in the backward pass sees its own again."""

    @abstractmethod
    def order(self, args: Args, kwargs: Kwargs) -> Tensor | None:
        """Long [T]: row r of the first block shows token order[r] of the raster order (images one after the
        other); None where the two orders are the same."""

    @abstractmethod
    def grid(self, args: Args, kwargs: Kwargs) -> tuple[int, int]:
        """(high, wide) in patches of the call's first image."""

    @abstractmethod
    def attention_weights(self, hidden: Tensor, **kwargs: Any) -> list[Tensor]:
        """The softmax weights of the first attention, one tensor [heads, L, L] (query, key) a sequence, float32.

        No kernel but the eager one returns them, so they are made from q and k as the module itself makes these.

        hidden, kwargs: what the attention is called with. Sequences are images, or windows of them, in the tower's own
        order.
        """

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

    def white(self) -> Colour:
        """A white pixel in the family's usual normalisation."""
        return normalised_white(self.image_mean, self.image_std)

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


class AnyGridTower(Tower):
    """An encoder that takes every image on a patch grid of its own, without a class token."""

    prefix_tokens = 0

    @abstractmethod
    def grids(self, args: Args, kwargs: Kwargs) -> list[tuple[int, int]]:
        """(high, wide) in patches of each image of the call."""

    def grid(self, args: Args, kwargs: Kwargs) -> tuple[int, int]:
        return self.grids(args, kwargs)[0]

    def order(self, args: Args, kwargs: Kwargs) -> Tensor | None:
        return None

    def place_anchor(
        self, values: Tensor, grid: tuple[int, int] | None, args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs]:
        if grid is None:
            return args, kwargs
        return self.place_anchor_per_grid(partial(resize_rows, values, 0, grid), args, kwargs)

    @abstractmethod
    def uniform_input(self, colour: Tensor, grid: tuple[int, int] | None = None) -> tuple[Args, Kwargs]:
        """As for `Tower`, the image on `grid` (high, wide) in patches; None for one the encoder knows well."""

    @abstractmethod
    def place_anchor_per_grid(
        self, rows_on: Callable[[tuple[int, int]], Tensor], args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs]:
        """`place_anchor` for an anchor whose rows, in raster order, `rows_on` tells for each image's grid."""


_PLACES = (
    "",
    "vision_tower",
    "visual",
    "vision_model",
    "model.vision_tower",
    "model.visual",
    "model.vision_model",
    "vit",
    "dinov2",
)
"""Where a transformers model keeps its vision encoder: it is one itself, or has it, or its inner model does."""


def find_tower(hf_model: nn.Module) -> Tower:
    """The adapter of the vision encoder in `hf_model`: a full model, its inner model or a bare encoder, also through
    torch.compile's wrapper. Subclasses, as those of exported checkpoints, are met through their bases.

    UserError where no known encoder is in it.
    """
    hf_model = getattr(hf_model, "_orig_mod", hf_model)
    known = encoder_classes(Tower)  # type: ignore[type-abstract]
    encoder: Any = hf_model
    for place in _PLACES:
        try:
            encoder = reduce(getattr, filter(None, place.split(".")), hf_model)
        except AttributeError:
            continue
        tower = next((known[cls.__name__] for cls in type(encoder).__mro__ if cls.__name__ in known), None)
        if tower is not None:
            # transformers 4 wrapped CLIP's and SigLIP's encoder once more
            return tower(getattr(encoder, "vision_model", encoder))
    inside = "" if encoder is hf_model else f" in {type(hf_model).__name__}"
    raise UserError(
        f"no R-Adapt support for the vision encoder {type(encoder).__name__}{inside}: supported are "
        f"{', '.join(sorted(known))}; to add one see docs/extend.md"
    )


def encoder_classes(kind: type[Tower]) -> dict[str, type[Tower]]:
    """Name of a transformers class -> its adapter, of all subclasses of `kind`; the last one defined wins."""
    found = dict.fromkeys(kind.__dict__.get("encoders", ()), kind)
    for below in kind.__subclasses__():
        found |= encoder_classes(below)
    return found


def normalised_white(image_mean: Sequence[float], image_std: Sequence[float]) -> Colour:
    """A white pixel (1, 1, 1) after normalisation, float32 values; UserError unless all are finite."""
    white = (1 - torch.tensor(image_mean)) / torch.tensor(image_std)
    if white.shape != (3,) or not bool(white.isfinite().all()):
        raise UserError(
            "image_mean and image_std are three finite numbers each, std not 0: see the model's preprocessor"
        )
    red, green, blue = white.tolist()
    return red, green, blue


def softmax_weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Attention weights [..., L, L] of queries and keys [..., L, d], float32."""
    return (q.float() @ k.float().transpose(-1, -2) * scale).softmax(-1)


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
