"""Loss functions for attacks on image encoders: distances of image tokens, and texts that an image is to miss."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

LossFn = Callable[[Tensor, list[int]], Tensor]
"""`loss_fn(x, index) -> [len(index)]`: x holds the samples `index` of the original batch; one value each."""

Distance = Literal["cosine", "l2"]


def embedding_loss(features: LossFn, clean: Tensor, *, distance: Distance = "cosine") -> LossFn:
    """Loss that drives image tokens away from the clean image's (VEAttack, arXiv 2505.17440), to maximise.

    `features(x, index) -> [len(index), T, D]`, differentiable in x; `clean`: [B, T, D], the tokens of the
    clean images, its rows addressed by `index`. A sample's value is the mean over its T tokens of
      - "cosine": 1 - cos, in [0, 2];
      - "l2": the squared Euclidean distance, >= 0.
    Half-precision tokens are compared in float32.

    Both distances have their minimum at the clean image, where the gradient vanishes: an attack that starts
    there stays there. Give it a random start (`apgd` reports the other case in `zero_grad`).

    Raises ValueError for an unknown distance and for a `clean` of another rank, with values that are not
    finite or, for the cosine, with a token of length 0; the returned function does when token shapes differ.
    """
    if distance not in get_args(Distance):
        raise ValueError(f"distance must be one of {', '.join(get_args(Distance))}, got {distance!r}")
    if clean.ndim != 3:
        raise ValueError(f"clean must be tokens [B, T, D], got shape {tuple(clean.shape)}")
    target = _full(clean.detach())
    if not bool(target.isfinite().all()):
        raise ValueError("clean holds tokens that are not finite: run the model in a wider precision")
    if distance == "cosine":
        if bool((target == 0).all(dim=-1).any()):
            raise ValueError("clean holds a token of length 0, which has no cosine: use distance='l2'")
        target = normalize(target, dim=-1)

    def loss_fn(x: Tensor, index: list[int]) -> Tensor:
        tokens = _full(features(x, index))
        wanted = target[index].to(tokens)
        if tokens.shape != wanted.shape:
            raise ValueError(f"features gave tokens {tuple(tokens.shape)}, the clean ones are {tuple(wanted.shape)}")
        if distance == "cosine":
            # |u - v|^2 / 2 is 1 - cos of unit vectors, without the cancellation that leaves only rounding
            # noise of it (and of its gradient's sign) close to the clean image.
            return (normalize(tokens, dim=-1) - wanted).square().sum(dim=-1).mean(dim=-1) / 2
        return (tokens - wanted).square().sum(dim=-1).mean(dim=-1)

    return loss_fn


def contrastive_loss(logits: LossFn, own: Tensor, count: Tensor) -> LossFn:
    """Log odds of the wrong texts of a gallery against an image's own, to maximise.

    `logits(x, index) -> [len(index), U]`: scaled similarities of an image and the U texts, differentiable in x; `own`:
    bool [B, U], its rows addressed by `index`; `count`: [U], how often each text stands in the gallery.

    The softplus of the value is CLIP's contrastive loss of an image (Radford et al. 2021, arXiv 2103.00020, section
    2.3), several texts of one image summed inside the logarithm (MIL-NCE, arXiv 1912.06430, eq. 1). It grows with the
    value, and so has its maxima where this has them; but where the own texts are certain it and its gradient round to
    0, and these do not.

    Raises ValueError where an image has no text of its own, or no other; the returned function for other shapes.
    """
    if own.ndim != 2 or own.dtype != torch.bool or count.shape != own.shape[1:]:
        raise ValueError(f"own must be bool [B, U] and count [U], got {tuple(own.shape)} and {tuple(count.shape)}")
    if not bool(own.any(dim=1).all()) or bool(own.all(dim=1).any()):
        raise ValueError("every image needs a text of its own and one that is not")

    def loss_fn(x: Tensor, index: list[int]) -> Tensor:
        z = _full(logits(x, index))
        if z.shape != (len(index), own.shape[1]):
            raise ValueError(f"logits must have shape ({len(index)}, {own.shape[1]}), got {tuple(z.shape)}")
        z = z + count.to(z).log()
        mine = own[index].to(z.device)
        return z.masked_fill(mine, -torch.inf).logsumexp(dim=1) - z.masked_fill(~mine, -torch.inf).logsumexp(dim=1)

    return loss_fn


def _full(tokens: Tensor) -> Tensor:
    return tokens.float() if tokens.dtype in (torch.float16, torch.bfloat16) else tokens
