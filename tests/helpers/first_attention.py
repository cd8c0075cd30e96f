"""CLIP's first attention by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALF = (0.5, 0.5, 0.5)  # SigLIP's mean and standard deviation


def clip_first_attention(weights: dict[str, Tensor], image: Tensor, patch: int, heads: int) -> Tensor:
    """Embedding, LayerNorms and self-attention of CLIP's or SigLIP's first block, from weights alone; image
    [3, H, W]. SigLIP has a bias in the embedding, but no CLS token and no LayerNorm before the blocks."""
    is_clip = "embeddings.class_embedding" in weights

    def layer_norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + (1e-5 if is_clip else 1e-6))
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    kernel = weights["embeddings.patch_embedding.weight"].flatten(1)
    corners = [(y, x) for y in range(0, image.shape[1], patch) for x in range(0, image.shape[2], patch)]
    patches = [kernel @ image[:, y : y + patch, x : x + patch].flatten() for y, x in corners]
    if is_clip:
        tokens = torch.stack([weights["embeddings.class_embedding"], *patches])
    else:
        tokens = torch.stack(patches) + weights["embeddings.patch_embedding.bias"]
    hidden = tokens + weights["embeddings.position_embedding.weight"]
    if is_clip:
        hidden = layer_norm(hidden, "pre_layrnorm")
    hidden = layer_norm(hidden, "encoder.layers.0.layer_norm1")

    def project(x: Tensor, name: str) -> Tensor:
        path = f"encoder.layers.0.self_attn.{name}"
        return x @ weights[f"{path}.weight"].T + weights[f"{path}.bias"]

    query, key, value = (project(hidden, name) for name in ("q_proj", "k_proj", "v_proj"))
    size = hidden.shape[1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = (query[:, part] @ key[:, part].T / math.sqrt(size)).exp()
        mixed.append(scores / scores.sum(1, keepdim=True) @ value[:, part])
    return project(torch.cat(mixed, dim=1), "out_proj")
