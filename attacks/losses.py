"""Loss functions for attacks that need no text: distances between clean and adversarial image tokens."""

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


def _full(tokens: Tensor) -> Tensor:
    return tokens.float() if tokens.dtype in (torch.float16, torch.bfloat16) else tokens
