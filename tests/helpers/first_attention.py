"""The first attention of CLIP and of plain vision transformers by hand."""

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class VitNames:
    """What the modules of a plain vision transformer are called in one family, and the norm's eps."""

    block: str
    norm: str
    projection: str
    eps: float
    kernel: str = "embeddings.patch_embeddings.projection"


VIT = VitNames("layers.0", "layernorm_before", "o_proj", 1e-12)
INTERNVL = VitNames("encoder.layer.0", "layernorm_before", "projection_layer", 1e-6)


def vit_first_attention(weights: dict[str, Tensor], image: Tensor, patch: int, heads: int, names: VitNames) -> Tensor:
    """The same of ViT's or InternVL's, whose queries and keys have norms where the weights have them."""
    kernel = weights[f"{names.kernel}.weight"].flatten(1)
    corners = [(y, x) for y in range(0, image.shape[1], patch) for x in range(0, image.shape[2], patch)]
    patches = torch.stack([kernel @ image[:, y : y + patch, x : x + patch].flatten() for y, x in corners])
    tokens = torch.cat([weights["embeddings.cls_token"][0], patches + weights[f"{names.kernel}.bias"]])
    tokens = tokens + weights["embeddings.position_embeddings"][0]
    own = {key.removeprefix(f"{names.block}."): value for key, value in weights.items()}
    centred = tokens - tokens.mean(-1, keepdim=True)
    hidden = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + names.eps)
    hidden = hidden * own[f"{names.norm}.weight"] + own[f"{names.norm}.bias"]

    def project(x: Tensor, name: str) -> Tensor:
        return x @ own[f"attention.{name}.weight"].T + own[f"attention.{name}.bias"]

    def normed(x: Tensor, name: str) -> Tensor:
        scale = own.get(f"attention.{name}.weight")
        return x if scale is None else x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * scale

    query, key = normed(project(hidden, "q_proj"), "q_norm"), normed(project(hidden, "k_proj"), "k_norm")
    value, size = project(hidden, "v_proj"), hidden.shape[1] // heads
    mixed = []
    for part in (slice(start, start + size) for start in range(0, hidden.shape[1], size)):
        scores = (query[:, part] @ key[:, part].T / math.sqrt(size)).exp()
        mixed.append(scores / scores.sum(1, keepdim=True) @ value[:, part])
    return project(torch.cat(mixed, 1), names.projection)
