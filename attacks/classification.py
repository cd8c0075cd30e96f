"""Losses on the logits of a classifier, all to be maximised, and who is fooled.

A classifier is `logits(x, index) -> [len(index), K]`, differentiable in x, called as a `LossFn` is; `labels` int64 [B]
are the true classes, their rows addressed by `index`. Logits in half precision are compared in float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.losses import LossFn

LogitsFn = Callable[[Tensor, list[int]], Tensor]
"""`logits(x, index) -> [len(index), K]`: x holds the samples `index` of the original batch."""

_TINY = 1e-12  # AutoAttack's guard against division by zero


def ce_loss(logits: LogitsFn, labels: Tensor) -> LossFn:
    """The cross entropy (nats) of the true class."""
    return _on_logits(logits, labels, lambda z, y: F.cross_entropy(z, y, reduction="none"), classes=2)


def margin_loss(logits: LogitsFn, labels: Tensor) -> LossFn:
    """The largest wrong logit less the true one: Carlini & Wagner's f (arXiv 1608.04644, f6) without the cut at its
    confidence, since the attacks here keep the best point. Positive where the classifier is fooled."""
    return _on_logits(logits, labels, margin, classes=2)


def dlr_loss(logits: LogitsFn, labels: Tensor) -> LossFn:
    """The difference of logits ratio (Croce & Hein 2020, arXiv 2003.01690, eq. 6): the margin over the distance of the
    largest logit from the third largest. It does not change with the scale of the logits."""

    def ratio(z: Tensor, y: Tensor) -> Tensor:
        ordered = z.sort(dim=1).values
        return margin(z, y) / (ordered[:, -1] - ordered[:, -3] + _TINY)

    return _on_logits(logits, labels, ratio, classes=3)


def targeted_dlr_loss(logits: LogitsFn, labels: Tensor, targets: Tensor) -> LossFn:
    """The targeted difference of logits ratio (arXiv 2003.01690, eq. 7): how far the logit of `targets` int64 [B] is
    above the true one, over the distance of the largest logit from the mean of the third and fourth largest."""
    if targets.shape != labels.shape:
        raise ValueError(f"targets must be shaped as labels, {tuple(labels.shape)}, got {tuple(targets.shape)}")

    def ratio(z: Tensor, pair: Tensor) -> Tensor:
        ordered = z.sort(dim=1).values
        true, wanted = z.gather(1, pair).unbind(dim=1)
        return (wanted - true) / (ordered[:, -1] - (ordered[:, -3] + ordered[:, -4]) / 2 + _TINY)

    return _on_logits(logits, torch.stack([labels, targets], dim=1), ratio, classes=4)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """[b] largest wrong logit less the true one. logits [b, K >= 2], labels int64 [b]."""
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).amax(dim=1) - logits[true]


def fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """bool [b]: whether the largest logit, the first among equals, is a wrong class's."""
    return logits.argmax(dim=1) != labels


def likely_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """int64 [b, K - 1]: the wrong classes, the most likely first. logits [b, K], labels int64 [b]."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    return order[order != labels[:, None]].view(len(labels), -1)


def full_precision(logits: Tensor) -> Tensor:
    """Logits of any shape [...] in float32 in place of half precision, anything else as it is."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _on_logits(logits: LogitsFn, rows: Tensor, value: Callable[[Tensor, Tensor], Tensor], *, classes: int) -> LossFn:
    """`value(z, rows[index]) -> [b]` of the logits as a loss; ValueError for fewer than `classes` classes."""

    def loss_fn(x: Tensor, index: list[int]) -> Tensor:
        z = full_precision(logits(x, index))
        if z.ndim != 2 or len(z) != len(index):
            raise ValueError(f"logits must have shape ({len(index)}, K), got {tuple(z.shape)}")
        if z.shape[1] < classes:
            raise ValueError(f"this loss needs at least {classes} classes, the classifier has {z.shape[1]}")
        return value(z, rows[index].to(z.device))

    return loss_fn
