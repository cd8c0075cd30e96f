"""Attacks that see the values of a loss and never its gradient: what a masked gradient cannot hide from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.losses import LossFn
from attacks.noise import sample_seeds
from attacks.norms import Norm, ascent_direction, check_ball, check_images, length, project


@dataclass(frozen=True)
class BlackBoxResult:
    """What a search found for each of the B samples.

    x_adv: [B, C, H, W], in the ball and in [0, 1]. loss: [B], the loss there. queries: losses asked for a sample.
    """

    x_adv: Tensor
    loss: Tensor
    queries: int


@torch.no_grad()
def random_search(
    loss_fn: LossFn, x: Tensor, *, eps: float, queries: int, norm: Norm = "Linf", seed: int | Sequence[int] = 0
) -> BlackBoxResult:
    """Maximise `loss_fn` by trying random squares and keeping the ones that raise it.

    After Square Attack (Andriushchenko et al. 2020, arXiv 1912.00049), for any loss: it begins with vertical
    stripes of +-eps, then sets squares, smaller and smaller, to +-eps a channel (Linf), or adds them and goes back
    to the sphere (L2). A sample's proposals are a function of its own seed, whatever the batch.

    loss_fn, x, eps, norm, seed: as for `apgd`, but `loss_fn` needs no gradient. queries: losses a sample, at least 2;
    the clean image is the first. No loss is lower than the clean one. Raises ValueError for bad arguments or a
    loss that is not finite.
    """
    _check(x, eps, norm, queries, least=2)
    streams = _streams(seed, len(x), "random search")
    everyone = list(range(len(x)))
    best, best_loss = x.detach().clone(), _ask(loss_fn, x, everyone)
    # The search works on the point below; the clean image stays the answer as long as it is the better one.
    point, point_loss = best, best_loss.new_full((len(x),), -torch.inf)
    for query in range(1, queries):
        share = (query - 1) / max(queries - 2, 1)
        proposal = torch.stack(
            [_propose(p, c, eps, norm, s, query == 1, share) for p, c, s in zip(point, x, streams, strict=True)]
        )
        proposal = project(proposal, x, eps, norm)
        loss = _ask(loss_fn, proposal, everyone)
        rises = loss > point_loss
        point = torch.where(_wide(rises), proposal, point)
        point_loss = torch.where(rises, loss, point_loss)
    better = point_loss > best_loss
    return BlackBoxResult(torch.where(_wide(better), point, best), torch.maximum(point_loss, best_loss), queries)


@torch.no_grad()
def spsa(
    loss_fn: LossFn,
    x: Tensor,
    *,
    eps: float,
    steps: int,
    pairs: int = 4,
    norm: Norm = "Linf",
    seed: int | Sequence[int] = 0,
) -> BlackBoxResult:
    """Projected ascent along gradients estimated from pairs of losses (SPSA: Spall 1992; Uesato et al. 2018,
    arXiv 1802.05666).

    A step asks for `pairs` losses on either side of the point, along random signs, eps / 4 away; the estimates
    are averaged over steps with momentum 0.9, and the step shrinks from eps to eps / 10 in a straight line.

    Arguments and errors as for `random_search`; steps and pairs are at least 1. It asks 2 + steps (2 pairs + 1)
    losses a sample, the clean image's and the starting point's included.
    """
    _check(x, eps, norm, steps, least=1)
    if pairs < 1:
        raise ValueError(f"pairs must be an integer >= 1, got {pairs!r}")
    streams = _streams(seed, len(x), "spsa")
    everyone = list(range(len(x)))
    best, best_loss = x.detach().clone(), _ask(loss_fn, x, everyone)
    reach = eps / 4 if norm == "Linf" else eps / 4 / x[0].numel() ** 0.5
    signs = torch.stack([_signs(x.shape[1:], s) for s in streams]).to(x)
    point = project(x + ascent_direction(signs, norm) * eps / 2, x, eps, norm)
    trend = torch.zeros_like(x)

    def take(candidate: Tensor) -> None:
        nonlocal best, best_loss
        loss = _ask(loss_fn, candidate, everyone)
        better = loss > best_loss
        best = torch.where(_wide(better), candidate, best)
        best_loss = torch.where(better, loss, best_loss)

    take(point)
    for step in range(steps):
        slope = torch.zeros_like(x)
        for _ in range(pairs):
            away = torch.stack([_signs(x.shape[1:], s) for s in streams]).to(x)
            ahead = _ask(loss_fn, (point + reach * away).clamp(0, 1), everyone)
            behind = _ask(loss_fn, (point - reach * away).clamp(0, 1), everyone)
            slope += _wide((ahead - behind) / (2 * reach)) * away / pairs
        trend = 0.9 * trend + slope
        size = eps * (1 - 0.9 * step / max(steps - 1, 1))
        point = project(point + size * ascent_direction(trend, norm), x, eps, norm)
        take(point)
    return BlackBoxResult(best, best_loss, 2 + steps * (2 * pairs + 1))


def _propose(
    point: Tensor, clean: Tensor, eps: float, norm: Norm, stream: Generator, first: bool, share: float
) -> Tensor:
    """Stripes at first, then a square of the image; `share` of the search is behind us, its area shrinks."""
    channels, height, width = point.shape
    if first:
        stripes = (2 * torch.randint(0, 2, (channels, 1, width), generator=stream) - 1).to(point)
        change = stripes.expand_as(point)
        return clean + (eps * change if norm == "Linf" else eps * change / change.norm())
    # From a fifth of the pixels to some thousandth, as the queries are spent.
    side = max(1, round((0.2 * 0.005**share * height * width) ** 0.5))
    high, wide = min(side, height), min(side, width)
    top = int(torch.randint(0, height - high + 1, (1,), generator=stream))
    left = int(torch.randint(0, width - wide + 1, (1,), generator=stream))
    colour = (2 * torch.randint(0, 2, (channels, 1, 1), generator=stream) - 1).to(point)
    changed = point.clone()
    region = (slice(None), slice(top, top + high), slice(left, left + wide))
    if norm == "Linf":
        changed[region] = clean[region] + eps * colour
        return changed
    changed[region] += eps * colour / (channels * high * wide) ** 0.5
    delta = (changed - clean)[None]
    return clean + (eps * delta / length(delta, "L2").clamp(min=1e-12))[0]


def _signs(shape: torch.Size, stream: Generator) -> Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=stream) - 1


def _streams(seed: int | Sequence[int], count: int, purpose: str) -> list[Generator]:
    """A CPU generator a sample, so that neither its neighbours nor the device change what it draws."""
    digests = [hashlib.blake2b(f"{purpose} {s}".encode(), digest_size=4).digest() for s in sample_seeds(seed, count)]
    return [Generator().manual_seed(int.from_bytes(digest, "big")) for digest in digests]


def _ask(loss_fn: LossFn, x: Tensor, index: list[int]) -> Tensor:
    loss = loss_fn(x, list(index)).detach().to(x)
    if loss.shape != (len(index),) or not bool(loss.isfinite().all()):
        raise ValueError(f"loss_fn must return one finite loss per sample, got {tuple(loss.shape)}: {loss.tolist()}")
    return loss


def _check(x: Tensor, eps: float, norm: Norm, count: int, *, least: int) -> None:
    check_images(x)
    check_ball(eps, norm)
    if count < least:
        raise ValueError(f"queries or steps must be an integer >= {least}, got {count!r}")


def _wide(per_sample: Tensor) -> Tensor:
    return per_sample.view(-1, 1, 1, 1)
