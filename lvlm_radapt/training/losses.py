"""The losses of adversarial fine-tuning, one value an image: what the inner attack raises and training lowers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, normalize

REFINEMENT, CONSTRAINT = 0.08, 0.05
"""TGA's weights of its two distances between attention maps (arXiv 2410.21802, equations 6 and 7)."""
_FLAT = 1e-6  # the spread of cosines under which a map has no shape to speak of


def fare_loss(features: Tensor, original: Tensor) -> Tensor:
    """[B] squared Euclidean distance of image features to the original encoder's features of the clean images, for
    tokens [B, T, D] the mean over T; of embeddings [B, D] it is FARE's (Schlarmann et al. 2024,
    arXiv 2402.12336).

    Raises:
        ValueError: shapes that differ or are neither [B, D] nor [B, T, D].
    """
    if features.shape != original.shape or features.ndim not in (2, 3):
        raise ValueError(f"features {tuple(features.shape)} and {tuple(original.shape)}: give two [B, D] or [B, T, D]")
    distance = (features.float() - original.float()).square().sum(dim=-1)
    return distance if distance.ndim == 1 else distance.mean(dim=1)


def tecoa_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """[B] cross entropy of the right class (TeCoA: Mao et al. 2023, arXiv 2212.07016).

    logits: [B, K], the cosines of image and class texts times the model's scale (CLIP's is 100). classes: long [B].
    """
    return cross_entropy(logits.float(), classes, reduction="none")


def tga_loss(logits: Tensor, classes: Tensor, adversarial: Tensor, clean: Tensor, original: Tensor) -> Tensor:
    """[B] TeCoA's loss with two distances between text-guided attention maps [B, N] on top (TGA: Yu et al. 2024,
    arXiv 2410.21802, equations 6 to 8): refinement draws the tuned encoder's map of the adversarial image, and
    constraint its map of the clean image, to the original encoder's map of the clean image.

    The distances are Euclidean lengths over the N pixels of a map, so they grow with the canvas as in the paper.
    """
    refinement = torch.linalg.vector_norm(adversarial - original, dim=1)
    constraint = torch.linalg.vector_norm(clean - original, dim=1)
    return tecoa_loss(logits, classes) + REFINEMENT * refinement + CONSTRAINT * constraint


def text_guided_attention(patches: Tensor, texts: Tensor, grid: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    """[B, H * W] how near each place of an image is to its class's text, from 0 (least) to 1 (most of this image).

    The cosine of each projected patch and the text, stretched to [0, 1] over the image's patches and interpolated
    (bilinear) to the canvas; a map without any shape is 0 everywhere. After arXiv 2410.21802, text-guided attention.

    patches: [B, h * w, P] in raster order; texts: [B, P], neither of unit length; grid: (h, w); canvas: (H, W).
    """
    near = (normalize(patches.float(), dim=-1) * normalize(texts.float(), dim=-1)[:, None]).sum(dim=-1)
    low, high = near.amin(dim=1, keepdim=True), near.amax(dim=1, keepdim=True)
    stretched = (near - low) / (high - low).clamp(min=_FLAT)
    shown = interpolate(stretched.view(-1, 1, *grid), size=canvas, mode="bilinear", align_corners=False)
    return shown.flatten(1)
