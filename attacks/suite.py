"""Attacks on classifiers one after the other, each on the samples that are still standing.

"AutoAttack" means three things in this field, so a suite is always named by its members: see `configs/attacks`.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.apgd import apgd
from attacks.autoattack import TARGETS, fab, square, standard
from attacks.classification import (
    LogitsFn,
    ce_loss,
    dlr_loss,
    fooled,
    full_precision,
    likely_wrong,
    margin,
    margin_loss,
    targeted_dlr_loss,
)
from attacks.losses import LossFn
from attacks.noise import sample_seeds
from attacks.norms import Norm, at_rim
from attacks.pgd import pgd

Member = Literal["pgd-ce", "pgd-margin", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "square", "standard"]
"""Attacks by name: `apgd-t` is APGD on the targeted DLR loss, towards the 9 most likely wrong classes in turn;
`standard` is the library's whole ensemble, and has no other beside it."""

CLEAN = "clean"

_LEAST_CLASSES: dict[Member, int] = {"apgd-dlr": 3, "apgd-t": 4, "standard": 4}
LIBRARY: tuple[Member, ...] = ("fab", "square", "standard")
"""Members that are the library's."""

Judge = Callable[[Tensor, list[int]], Tensor]
"""`judge(x_adv, index) -> bool [len(index)]`: whether points that fool the classifier count, e.g. still do so after
rounding to 8 bits."""


@dataclass(frozen=True)
class SuiteSettings:
    """How the members are run. steps: of every gradient attack, FAB too. step_scale: the first step of APGD and the
    fixed one of PGD, in eps. restarts: of APGD. queries: of Square. `standard` heeds none of them."""

    steps: int = 100
    restarts: int = 1
    random_start: bool = True
    step_scale: float = 2.0
    queries: int = 5000


@dataclass(frozen=True)
class SuiteResult:
    """What a suite left of each of the B samples.

    x_adv: [B, C, H, W], in the ball and in [0, 1]: the first point that fooled the classifier (the clean image where
        that one does), else the point of the largest margin.
    margin: [B], at x_adv, in float32: the largest wrong logit less the true one.
    broken_by: the member that fooled the classifier, "clean" where nothing was needed, None where nobody did.
    steps: int64 [B], gradient steps that members of ours spent on it.
    zero_grad: bool [B], every gradient of some member of ours was exactly zero.
    failed: why a member of ours gave a sample up, None where none did.
    remarks: what the library says of an evaluation that looks broken.
    """

    x_adv: Tensor
    margin: Tensor
    broken_by: list[str | None]
    steps: Tensor
    zero_grad: Tensor
    failed: list[str | None]
    remarks: list[str]


@dataclass(frozen=True)
class _Found:
    x_adv: Tensor
    steps: list[int]
    zero_grad: list[bool]
    failed: list[str | None]


def check_members(members: Sequence[Member], classes: int) -> None:
    """ValueError for an empty or unknown suite, or one that `classes` classes are too few for."""
    unknown = [m for m in members if m not in get_args(Member)]
    if unknown or not members or ("standard" in members and len(members) > 1):
        raise ValueError(f"a suite is standard alone or some of {', '.join(get_args(Member))}, got {list(members)}")
    for member in members:
        if classes < _LEAST_CLASSES.get(member, 2):
            raise ValueError(f"{member} needs at least {_LEAST_CLASSES.get(member, 2)} classes, there are {classes}")


def run_suite(
    members: Sequence[Member],
    logits: LogitsFn,
    x: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "Linf",
    settings: SuiteSettings | None = None,
    seed: int | Sequence[int] = 0,
    judge: Judge | None = None,
    stop_early: bool = True,
    batch_size: int | None = None,
    workers: int = 1,
) -> SuiteResult:
    """Attack the classifier `logits` with every member of a suite, in order, on the samples not broken so far.

    logits: as `attacks.classification` says; the library's members call it with any samples of x under the index
        0, 1, ..., so for them it must not depend on the index.
    x: [B, C, H, W] in [0, 1]. labels: int64 [B]. eps, norm: the ball. seed: an int or one per sample.
    judge: asked about points that fool the classifier; only those it accepts break a sample. None accepts all.
    stop_early: False runs every gradient attack to its end and takes its highest loss, and attacks the samples that
        are misclassified as they are too: for images that are meant for another classifier.
    batch_size: how many samples `logits` gets at most; None for all. What the library's members find depends on it.
    workers: as for `apgd`.

    Raises ValueError for a bad suite, bad images or budget, fewer classes than a member needs, and
    `attacks.autoattack.LibraryMissingError`.
    """
    settings = settings or SuiteSettings()
    seeds = sample_seeds(seed, len(x))
    x, labels = x.detach(), labels.to(x.device)
    batch_size = len(x) if batch_size is None else batch_size
    if batch_size < 1:
        raise ValueError(f"batch_size must be an integer >= 1, got {batch_size!r}")
    with torch.no_grad():
        clean = torch.cat([full_precision(logits(x[rows], rows)) for rows in _slices(list(range(len(x))), batch_size)])
    check_members(members, clean.shape[1])
    own = margin(clean, labels)
    out = SuiteResult(
        x_adv=x.clone(),
        margin=own.clone(),
        broken_by=[None] * len(x),
        steps=torch.zeros(len(x), dtype=torch.long),
        zero_grad=torch.zeros(len(x), dtype=torch.bool, device=x.device),
        failed=[None] * len(x),
        remarks=[],
    )
    if stop_early:
        for rows in _slices(list(range(len(x))), batch_size):
            accepted = _accepted(fooled(clean[rows], labels[rows]), x[rows], rows, judge)
            for i, done in zip(rows, accepted.tolist(), strict=True):
                out.broken_by[i] = CLEAN if done else None
    attacked = [False] * len(x)
    for number, (member, rank) in enumerate(_stages(members, clean.shape[1])):
        standing = [i for i, by in enumerate(out.broken_by) if by is None]
        if not standing:
            break
        # a stage's noise is its own, and a function of the sample's seed and the stage
        noise = [(s << 8) + number for s in seeds]
        targets = None if rank is None else likely_wrong(clean, labels)[:, rank]
        # APGD keeps its batch full by itself: the next sample takes the place of one that has finished
        for rows in _slices(standing, len(standing) if member.startswith("apgd") else batch_size):
            stage = _Stage(logits, x[rows], labels[rows], rows, judge, stop_early, eps, norm, batch_size, workers)
            target = None if targets is None else targets[rows]
            found = stage.run(member, target, settings, [noise[i] for i in rows], out.remarks)
            for places in _slices(list(range(len(rows))), batch_size):
                points, margins, broken = stage.choose(member, found.x_adv[places], places)
                for at, place in enumerate(places):
                    i = rows[place]
                    out.steps[i] += found.steps[place]
                    out.zero_grad[i] |= found.zero_grad[place]
                    out.failed[i] = out.failed[i] or found.failed[place]
                    if bool(broken[at]):
                        out.broken_by[i] = member
                    # where nothing is finished the clean image is no candidate: it was made for nobody
                    first = not stop_early and not attacked[i]
                    if bool(broken[at]) or first or bool(margins[at] > out.margin[i]):
                        out.x_adv[i], out.margin[i] = points[at], margins[at]
                    attacked[i] = True
    return out


def _slices(rows: list[int], size: int) -> list[list[int]]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _stages(members: Sequence[Member], classes: int) -> list[tuple[Member, int | None]]:
    """(member, rank of the wrong class it aims at) in order."""
    stages: list[tuple[Member, int | None]] = []
    for member in members:
        if member == "apgd-t":
            stages += [(member, rank) for rank in range(min(TARGETS, classes - 1))]
        else:
            stages.append((member, None))
    return stages


def _accepted(wrong: Tensor, x: Tensor, index: list[int], judge: Judge | None) -> Tensor:
    """`wrong` bool [b] without the points that the judge refuses."""
    if judge is None or not bool(wrong.any()):
        return wrong
    rows = wrong.nonzero().flatten()
    accepted = wrong.clone()
    accepted[rows] = judge(x[rows], [index[i] for i in rows.tolist()]).to(wrong.device)
    return accepted


class _Stage:
    """One attack on the samples `index` of the suite's batch; inside, they are numbered 0, 1, ... .

    Each thread remembers the logits of its last points: `success` is asked about those the loss was just asked about.
    """

    def __init__(
        self,
        logits: LogitsFn,
        x: Tensor,
        labels: Tensor,
        index: list[int],
        judge: Judge | None,
        stop_early: bool,
        eps: float,
        norm: Norm,
        batch_size: int,
        workers: int,
    ) -> None:
        self._classify, self._x, self._labels, self._index, self._judge = logits, x, labels, index, judge
        self._stop_early, self._eps, self._norm = stop_early, eps, norm
        self._batch_size, self._workers = batch_size, workers
        self._memory = threading.local()

    def logits(self, x: Tensor, rows: list[int]) -> Tensor:
        z = full_precision(self._classify(x, [self._index[i] for i in rows]))
        self._memory.last = (x.detach(), z.detach())
        return z

    @torch.no_grad()
    def success(self, x: Tensor, rows: list[int]) -> Tensor:
        last: tuple[Tensor, Tensor] | None = getattr(self._memory, "last", None)
        if last is None or not torch.equal(last[0], x):
            return self._count(self.logits(x, rows), x, rows)
        return self._count(last[1], x, rows)

    def _count(self, z: Tensor, x: Tensor, rows: list[int]) -> Tensor:
        wrong = fooled(z, self._labels[rows])
        return _accepted(wrong, x, [self._index[i] for i in rows], self._judge)

    def run(
        self, member: Member, target: Tensor | None, settings: SuiteSettings, seeds: list[int], remarks: list[str]
    ) -> _Found:
        if member in LIBRARY:
            return self._run_library(member, settings, seeds, remarks)
        loss_fn = self._loss(member, target)
        success = self.success if self._stop_early else None
        if member in ("pgd-ce", "pgd-margin"):
            plain = pgd(
                loss_fn, self._x, eps=self._eps, norm=self._norm, steps=settings.steps, seed=seeds, success=success,
                step_size=settings.step_scale * self._eps, random_start=settings.random_start,
            )  # fmt: skip
            return _Found(plain.x_adv, plain.steps.tolist(), plain.zero_grad.tolist(), plain.failed)
        found = apgd(
            loss_fn, self._x, eps=self._eps, norm=self._norm, steps=settings.steps, seed=seeds, success=success,
            step_scale=settings.step_scale, random_start=settings.random_start, restarts=settings.restarts,
            batch_size=self._batch_size, workers=self._workers,
        )  # fmt: skip
        return _Found(found.x_adv, found.steps.tolist(), found.zero_grad.tolist(), found.failed)

    def _run_library(self, member: Member, settings: SuiteSettings, seeds: list[int], remarks: list[str]) -> _Found:
        def any_logits(x: Tensor) -> Tensor:
            return self._classify(x, list(range(len(x))))

        if member == "fab":
            x_adv = fab(
                any_logits, self._x, self._labels, eps=self._eps, norm=self._norm, steps=settings.steps, seed=seeds
            )
        elif member == "square":
            x_adv = square(
                any_logits, self._x, self._labels, eps=self._eps, norm=self._norm, queries=settings.queries, seed=seeds
            )
        else:
            x_adv, said = standard(any_logits, self._x, self._labels, eps=self._eps, norm=self._norm, seed=seeds)
            remarks += [text for text in said if text not in remarks]
        return _Found(x_adv, [0] * len(seeds), [False] * len(seeds), [None] * len(seeds))

    def _loss(self, member: Member, target: Tensor | None) -> LossFn:
        if target is not None:
            return targeted_dlr_loss(self.logits, self._labels, target)
        if member.endswith("-ce"):
            return ce_loss(self.logits, self._labels)
        return (dlr_loss if member == "apgd-dlr" else margin_loss)(self.logits, self._labels)

    @torch.no_grad()
    def choose(self, member: Member, x_adv: Tensor, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Of the stage's points for these rows: the points, their margins, and which of them break their samples.

        The library knows no judge, and FAB's points lie on the decision boundary: where one is refused, the point in
        the same direction at the rim of the ball is tried.
        """
        labels = self._labels[rows]
        z = self.logits(x_adv, rows)
        broken, margins, points = self._count(z, x_adv, rows), margin(z, labels), x_adv.clone()
        again = [at for at in (fooled(z, labels) & ~broken).nonzero().flatten().tolist() if member in LIBRARY]
        if again:
            over = [rows[at] for at in again]
            further = at_rim(x_adv[again], self._x[over], self._eps, self._norm)
            z = self.logits(further, over)
            better = self._count(z, further, over)
            for place, at in enumerate(again):
                if bool(better[place]):
                    points[at], broken[at] = further[place], True
                    margins[at] = margin(z[place : place + 1], labels[at : at + 1])[0]
        return points, margins, broken
