"""The first attention of Pixtral and of Gemma 4 by hand, and images of several sizes as their towers take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _normed(x: Tensor, weight: Tensor | float, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def _attended(query: Tensor, key: Tensor, value: Tensor, angles: Tensor, scale: float, parts: int) -> Tensor:
    """One head's output [N, d]; each of the head's `parts` is turned as complex numbers, its first half real."""

    def turned(x: Tensor) -> Tensor:
        pairs = [torch.complex(*part.chunk(2, -1)) for part in x.chunk(parts, -1)]
        return torch.cat(pairs, -1) * torch.polar(torch.ones_like(angles), angles)

    scores = (turned(query) @ turned(key).conj().T).real * scale
    return scores.softmax(1) @ value


def pixtral_first_attention(weights: dict[str, Tensor], image: Tensor, patch: int, heads: int) -> Tensor:
    """[N, D] of an image [3, H, W], its patches in raster order, in double precision."""
    weights = {name: value.double() for name, value in weights.items()}
    own = {name.removeprefix("transformer.layers.0."): value for name, value in weights.items()}
    corners = [(y, x) for y in range(0, image.shape[1], patch) for x in range(0, image.shape[2], patch)]
    kernel = weights["patch_conv.weight"].flatten(1)
    tokens = [kernel @ image[:, y : y + patch, x : x + patch].double().flatten() for y, x in corners]
    hidden = _normed(_normed(torch.stack(tokens), weights["ln_pre.weight"], 1e-5), own["attention_norm.weight"], 1e-5)
    query, key, value = (hidden @ own[f"attention.{name}_proj.weight"].T for name in "qkv")
    size = hidden.shape[1] // heads
    speeds = [10_000 ** (-2 * i / size) for i in range(size // 2)]
    # every other one turns with the row, those between with the column
    angles = [
        [y // patch * speed for speed in speeds[::2]] + [x // patch * speed for speed in speeds[1::2]]
        for y, x in corners
    ]
    outputs = [
        _attended(query[:, part], key[:, part], value[:, part], torch.tensor(angles).double(), 1 / math.sqrt(size), 1)
        for part in (slice(start, start + size) for start in range(0, hidden.shape[1], size))
    ]
    return torch.cat(outputs, 1) @ own["attention.o_proj.weight"].T


def gemma4_first_attention(weights: dict[str, Tensor], image: Tensor, patch: int, heads: int) -> Tensor:
    """The same of Gemma 4, pixels in [0, 1]."""
    weights = {name: value.double() for name, value in weights.items()}
    own = {name.removeprefix("encoder.layers.0."): value for name, value in weights.items()}
    corners = [(y, x) for y in range(0, image.shape[1], patch) for x in range(0, image.shape[2], patch)]
    matrix, table = weights["patch_embedder.input_proj.weight"], weights["patch_embedder.position_embedding_table"]
    tokens = [
        matrix @ (2 * image[:, y : y + patch, x : x + patch].double() - 1).permute(1, 2, 0).flatten()
        + table[0, x // patch]
        + table[1, y // patch]
        for y, x in corners
    ]
    hidden = _normed(torch.stack(tokens), own["input_layernorm.weight"], 1e-6)

    def bounded(x: Tensor, name: str) -> Tensor:
        low, high = own.get(f"{name}.input_min"), own.get(f"{name}.input_max")
        return (x if low is None or high is None else x.clamp(float(low), float(high))) @ own[f"{name}.linear.weight"].T

    query, key, value = (bounded(hidden, f"self_attn.{name}_proj") for name in "qkv")
    size = hidden.shape[1] // heads
    speeds = [100 ** (-2 * i / (size // 2)) for i in range(size // 4)]
    angles = torch.tensor([[at // patch * speed for at in (x, y) for speed in speeds] for y, x in corners]).double()
    outputs = []
    for part in (slice(start, start + size) for start in range(0, hidden.shape[1], size)):
        q, k = (_normed(x[:, part], own[f"self_attn.{n}_norm.weight"], 1e-6) for x, n in ((query, "q"), (key, "k")))
        outputs.append(_attended(q, k, _normed(value[:, part], 1.0, 1e-6), angles, 1.0, 2))
    return bounded(torch.cat(outputs, 1), "self_attn.o_proj")


def pixtral_call(images: Sequence[Tensor], patch: int) -> dict[str, Any]:
    """Keywords of a call of the tower with images [3, H, W] of several sizes, padded as its image processor does."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    pixels = torch.zeros(len(images), 3, height, width)
    for row, image in zip(pixels, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return {"pixel_values": pixels, "image_sizes": torch.tensor([image.shape[1:] for image in images])}


def gemma4_call(images: Sequence[Tensor], patch: int) -> dict[str, Any]:
    """The same of Gemma 4, whose images are rows of patches."""
    most = 4 + max(image[0].numel() for image in images) // patch**2
    most += -most % 4
    rows, places = torch.zeros(len(images), most, 3 * patch**2), torch.full((len(images), most, 2), -1)
    for number, image in enumerate(images):
        corners = [(y, x) for y in range(0, image.shape[1], patch) for x in range(0, image.shape[2], patch)]
        for at, (y, x) in enumerate(corners):
            rows[number, at] = image[:, y : y + patch, x : x + patch].permute(1, 2, 0).flatten()
            places[number, at] = torch.tensor([x // patch, y // patch])
    return {"pixel_values": rows, "pixel_position_ids": places}
