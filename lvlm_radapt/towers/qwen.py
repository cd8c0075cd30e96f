"""Qwen2-VL, 2.5 and 3 vision encoders: flat patches of many images in one call, in merge-block order.

A row of the pixel input is one patch, its columns (C, T, p, p); the rows of a frame run over merge blocks in
raster order and over the patches inside a block. Qwen2.5-VL then sorts the blocks by attention window. Qwen3-VL
adds learned positions, a square table interpolated to each image's grid; the others rotate queries and keys alone.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lvlm_radapt.towers.base import (
    PLACED_ANCHOR,
    AnyGridTower,
    Args,
    Kwargs,
    PartLayout,
    argument,
    encoder_classes,
    softmax_weights,
    with_argument,
)
from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from lvlm_radapt.defences.radapt.modules import GaussianFilter

Grids = Tensor | Sequence[Sequence[int]]


def frames_to_rows(frames: Tensor, patch_size: int, merge_size: int, temporal: int = 2) -> Tensor:
    """Patch rows of equally large clips.

    Args:
        frames: [B, F, C, H, W]; F a multiple of `temporal`, H and W of patch_size * merge_size.

    Returns:
        [B * F / temporal * H / p * W / p, C * temporal * p * p], clip after clip; a mere reordering.

    Raises:
        ValueError: a size that does not divide.
    """
    clips, count, channels, height, width = frames.shape
    side = patch_size * merge_size
    if count % temporal or height % side or width % side:
        raise ValueError(
            f"{count} frames of {height}x{width} px do not divide into patches: "
            f"give multiples of {temporal} frames and of {side} px"
        )
    steps, high, wide = count // temporal, height // side, width // side
    cells = frames.reshape(clips, steps, temporal, channels, high, merge_size, patch_size, wide, merge_size, patch_size)
    cells = cells.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return cells.reshape(-1, channels * temporal * patch_size**2)


def images_to_rows(x: Tensor, patch_size: int, merge_size: int, temporal: int = 2) -> Tensor:
    """Patch rows of still images [B, 3, H, W], each frame-repeated `temporal` times: see `frames_to_rows`."""
    return frames_to_rows(x.unsqueeze(1).expand(-1, temporal, -1, -1, -1), patch_size, merge_size, temporal)


def rows_to_frames(
    rows: Tensor, grid: tuple[int, int, int], patch_size: int, merge_size: int, temporal: int = 2
) -> Tensor:
    """The inverse of `frames_to_rows` for clips of one grid (t, h, w): [B, t * temporal, C, H, W]."""
    steps, high, wide = grid
    cells = rows.reshape(
        -1,
        steps,
        high // merge_size,
        wide // merge_size,
        merge_size,
        merge_size,
        rows.shape[-1] // (temporal * patch_size**2),
        temporal,
        patch_size,
        patch_size,
    )
    cells = cells.permute(0, 1, 7, 6, 2, 4, 8, 3, 5, 9)
    return cells.reshape(len(cells), steps * temporal, -1, high * patch_size, wide * patch_size)


def rows_to_images(rows: Tensor, grid_thw: Grids, patch_size: int, merge_size: int, temporal: int = 2) -> list[Tensor]:
    """The images behind patch rows [N, C*T*p*p]: per (t, h, w) of `grid_thw` [t * temporal, C, H, W].

    A still image has t = 1 and gives `temporal` equal frames.
    """
    grids = _grids(grid_thw)
    parts = rows.split([t * h * w for t, h, w in grids])
    return [
        rows_to_frames(part, grid, patch_size, merge_size, temporal)[0] for part, grid in zip(parts, grids, strict=True)
    ]


def token_order(grid_thw: Grids, merge_size: int, window: int | None = None) -> Tensor:
    """Which patch each row of the first block shows.

    Args:
        grid_thw: [images, 3], every image's (t, h, w) in patches.
        merge_size: side of a merge block in patches.
        window: side of an attention window in merge blocks (Qwen2.5-VL), None for no windows (Qwen2-VL, 3).

    Returns:
        Long [N] on the CPU: row r shows patch order[r] of the raster order, frame by frame, image by image.
    """
    parts = []
    start = 0
    for frames, high, wide in _grids(grid_thw):
        raster = torch.arange(high * wide).reshape(high // merge_size, merge_size, wide // merge_size, merge_size)
        blocks = raster.transpose(1, 2).flatten(2)  # [blocks high, blocks wide, patches of a block]
        if window is not None:
            # slices of a window that sticks out over the right or lower edge are cut by the indexing itself
            corners = itertools.product(range(0, high // merge_size, window), range(0, wide // merge_size, window))
            pieces = [blocks[y : y + window, x : x + window].reshape(-1) for y, x in corners]
            one = torch.cat(pieces)
        else:
            one = blocks.flatten()
        for _ in range(frames):
            parts.append(one + start)
            start += high * wide
    return torch.cat(parts)


class QwenTower(AnyGridTower):
    """The encoders of Qwen2-VL to Qwen3.6, and those that derive from it."""

    family = "qwen"
    encoders: ClassVar[tuple[str, ...]] = (
        "Qwen2VisionTransformerPretrainedModel",
        "Qwen2_5_VisionTransformerPretrainedModel",
        "Qwen3VLVisionModel",
        "Qwen3VLMoeVisionModel",
        "Qwen3_5VisionModel",
        "Qwen3_5MoeVisionModel",
    )
    layout = PartLayout(("patch_embed.", "pos_embed."), "blocks.", "norm1")

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        embed: Any = module.patch_embed
        self.patch_size = int(embed.patch_size)
        self.temporal = int(embed.temporal_patch_size)
        self.merge_size = int(module.spatial_merge_size)  # type: ignore[arg-type]
        pixels = getattr(module, "window_size", None)  # side of an attention window; only 2.5 has them
        self.window = None if pixels is None else int(pixels) // self.merge_size // self.patch_size
        self.absolute_positions = hasattr(module, "pos_embed")
        if self.absolute_positions:  # Qwen3-VL, which has also left CLIP's normalisation
            self.image_mean = self.image_std = (0.5, 0.5, 0.5)

    @property
    def first_attention(self) -> nn.Module:
        module: Any = self.module
        return module.blocks[0].attn

    def attention_weights(self, hidden: Tensor, **kwargs: Any) -> list[Tensor]:
        """Of `hidden` [N, D], whose sequences (images, or windows in 2.5) lie between the bounds `cu_seqlens`."""
        attention: Any = self.first_attention
        q, k, _ = attention.qkv(hidden).reshape(len(hidden), 3, attention.num_heads, -1).unbind(1)
        modeling: Any = sys.modules[type(attention).__module__]
        q, k = modeling.apply_rotary_pos_emb_vision(q, k, *kwargs["position_embeddings"])
        return [
            softmax_weights(q[start:stop].transpose(0, 1), k[start:stop].transpose(0, 1), attention.scaling)
            for start, stop in itertools.pairwise(kwargs["cu_seqlens"].tolist())
        ]

    @property
    def width(self) -> int:
        attention: Any = self.first_attention
        return int(attention.dim)

    def filter_pixels(self, args: Args, kwargs: Kwargs, gaussian: GaussianFilter) -> tuple[Args, Kwargs]:
        rows = argument(args, kwargs, 0, "hidden_states")
        grids = _grids(argument(args, kwargs, 1, "grid_thw"))
        layout = (self.patch_size, self.merge_size, self.temporal)
        done = []
        start = 0
        for grid, run in itertools.groupby(grids):  # neighbours of one grid are filtered in one go
            stop = start + len(list(run)) * grid[0] * grid[1] * grid[2]
            frames = rows_to_frames(rows[start:stop], grid, *layout)
            done.append(frames_to_rows(gaussian(frames), *layout))
            start = stop
        return with_argument(args, kwargs, 0, "hidden_states", torch.cat(done))

    def place_anchor_per_grid(
        self, rows_on: Callable[[tuple[int, int]], Tensor], args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs]:
        grids = _grids(argument(args, kwargs, 1, "grid_thw"))
        raster = torch.cat([rows_on((high, wide)).repeat(t, 1) for t, high, wide in grids])
        order = token_order(grids, self.merge_size, self.window).to(raster.device)
        return args, {**kwargs, PLACED_ANCHOR: raster[order]}

    def order(self, args: Args, kwargs: Kwargs) -> Tensor:
        return token_order(argument(args, kwargs, 1, "grid_thw"), self.merge_size, self.window)

    def grids(self, args: Args, kwargs: Kwargs) -> list[tuple[int, int]]:
        return [(high, wide) for _, high, wide in _grids(argument(args, kwargs, 1, "grid_thw"))]

    def uniform_input(self, colour: Tensor, grid: tuple[int, int] | None = None) -> tuple[Args, Kwargs]:
        high, wide = self._usual_grid() if grid is None else grid
        image = colour.to(device=self.device, dtype=self.dtype).reshape(1, 3, 1, 1)
        image = image.expand(1, 3, high * self.patch_size, wide * self.patch_size)
        rows = images_to_rows(image, self.patch_size, self.merge_size, self.temporal)
        grid_thw = torch.tensor([[1, high, wide]], device=self.device)
        return (), {"hidden_states": rows, "grid_thw": grid_thw}

    def _usual_grid(self) -> tuple[int, int]:
        if self.absolute_positions:  # that of the learned positions
            module: Any = self.module
            blocks = int(module.num_grid_per_side) // self.merge_size
        else:
            blocks = 2 if self.window is None else 2 * self.window  # more than one window, where there are windows
        return blocks * self.merge_size, blocks * self.merge_size


def batch_equal_windows(hf_model: nn.Module) -> nn.Module:
    """Makes a vision encoder of Qwen2-VL, 2.5 or 3 attend to all sequences of one length in one call.

    The stock code loops in Python over every image and window unless flash attention is on. Here q, k and v
    of equally long sequences are stacked and go through the model's own attention function (eager or sdpa)
    once a length. Results and gradients are the stock ones up to rounding. Weights, configuration and
    state dict stay untouched; calling it again changes nothing. `hf_model` is changed in place and returned.

    Raises:
        UserError: there is no vision encoder of Qwen2-VL, 2.5 or 3 in `hf_model`.
    """
    encoders: list[Any] = [
        module
        for module in hf_model.modules()
        if any(cls.__name__ in encoder_classes(QwenTower) for cls in type(module).__mro__)
    ]
    if not encoders:
        raise UserError(f"{type(hf_model).__name__} is no Qwen2-VL, 2.5 or 3: there is nothing to batch")
    for attention in (block.attn for encoder in encoders for block in encoder.blocks):
        # accelerate's dispatch wraps forward and keeps the original under this name
        slot = "_old_forward" if hasattr(attention, "_hf_hook") else "forward"
        setattr(attention, slot, functools.partial(_batched_attention, attention))
    return hf_model


def _batched_attention(
    attention: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any
) -> Tensor:
    """The vision attention's forward: `hidden_states` [N, D], sequences between the bounds `cu_seqlens`."""
    if "flash" in attention.config._attn_implementation:
        return type(attention).forward(
            attention, hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs
        )
    kwargs.pop("max_seqlen", None)
    modeling: Any = sys.modules[type(attention).__module__]
    count = hidden_states.shape[0]
    query, key, value = attention.qkv(hidden_states).reshape(count, 3, attention.num_heads, -1).unbind(1)
    query, key = modeling.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    attend = modeling.ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, modeling.eager_attention_forward
    )
    bounds = cu_seqlens.tolist()
    starts: dict[int, list[int]] = {}
    for start, stop in itertools.pairwise(bounds):
        starts.setdefault(stop - start, []).append(start)
    outputs = []
    places = []
    for length, begins in starts.items():
        place = (torch.tensor(begins)[:, None] + torch.arange(length)).to(hidden_states.device)
        # [count, heads, d] -> [sequences of this length, heads, length, d]
        stacked = (tensor[place].transpose(1, 2) for tensor in (query, key, value))
        out, _ = attend(
            attention,
            *stacked,
            attention_mask=None,
            scaling=attention.scaling,
            dropout=attention.attention_dropout if attention.training else 0.0,
            is_causal=False,
            **kwargs,
        )
        outputs.append(out.reshape(place.numel(), -1))
        places.append(place.flatten())
    back = torch.argsort(torch.cat(places))
    return attention.proj(torch.cat(outputs)[back])


def _grids(grid_thw: Grids) -> list[tuple[int, int, int]]:
    rows = grid_thw.tolist() if isinstance(grid_thw, Tensor) else grid_thw
    return [(int(t), int(high), int(wide)) for t, high, wide in rows]
