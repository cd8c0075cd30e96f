"""Small analytic classifiers and inputs for them."""

import math

import torch

K = 6

SHAPE = (3, 4, 4)


def classifier(*, classes=K, seed=0, dtype=torch.float64):
    """logits(x, index) with bends: W tanh(V x)."""
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(math.prod(SHAPE), 12, generator=g, dtype=torch.float64).to(dtype)
    w = torch.randn(12, classes, generator=g, dtype=torch.float64).to(dtype)
    return lambda x, index: torch.tanh(x.flatten(1) @ v / 3) @ w


def images(count, *, seed=1, dtype=torch.float64):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labelled(count=12, *, seed=1):
    """Images with the class the classifier sees as label, but for the first, which is misclassified."""
    x = images(count, seed=seed)
    y = classifier()(x, []).argmax(1)
    y[0] = (y[0] + 1) % K
    return x, y
