"""Several attacks in a row on the images that still stand, the worst-scored image of each sample kept.

The shape of FARE's evaluation of vision-language models (Schlarmann et al. 2024, arXiv 2402.12336): what is kept and
what ends the work on a sample is its score, not the loss, and a later stage may begin at the image kept so far.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks.apgd import SuccessFn, apgd
from attacks.losses import LossFn
from attacks.noise import sample_seeds
from attacks.norms import Norm
from attacks.success import check_on, geometric_schedule

CLEAN = "clean"
"""The name of what stands before the first stage: no attack at all."""

ScoreFn = Callable[[Tensor, list[int]], Tensor]
"""`score(x, index) -> [len(index)]`: how well the samples `index` still do on images x; attackers want it low."""

BrokenFn = Callable[[Tensor, list[int]], Tensor]
"""`broken(scores, index) -> bool [len(index)]`: which of these scores are low enough to leave the sample alone."""


@dataclass(frozen=True)
class Stage:
    """One attack of an ensemble.

    name: its own, and not "clean".
    loss: gives the loss to raise; it is handed the stages' scores so far by name, [B] each, infinite where a stage
        did not run on a sample. `index` in that loss counts in the whole batch.
    start: "clean" begins at the clean image (or at noise around it, where random_start says so), "best" exactly at the
        image kept so far.
    rows: the samples it is meant for; None: all.
    """

    name: str
    loss: Callable[[Mapping[str, Tensor]], LossFn]
    start: Literal["clean", "best"] = "clean"
    rows: Collection[int] | None = None


@dataclass(frozen=True)
class EnsembleResult:
    """What `ensemble` kept of each of the B samples.

    x_adv: [B, C, H, W], the image with the lowest score, the earliest among equals.
    score: [B], its score, never above the clean one.
    stage: the stage that made it, or "clean".
    loss: that stage's loss before `finish`; None for a clean image.
    broken: bool [B].
    steps: int64 [B], gradient steps spent on it, all stages together.
    zero_grad: bool [B], true where stages ran and every gradient of each of them was exactly zero.
    failed: None, or the first stage that could not be run to its end on a sample and why, where the sample still stands
        (where it is broken, nothing was missed).
    scores: by stage name [B], infinite where it did not run.
    """

    x_adv: Tensor
    score: Tensor
    stage: list[str]
    loss: list[float | None]
    broken: Tensor
    steps: Tensor
    zero_grad: Tensor
    failed: list[str | None]
    scores: dict[str, Tensor]


def ensemble(
    stages: Sequence[Stage],
    x: Tensor,
    *,
    score: ScoreFn,
    broken: BrokenFn,
    clean_score: Tensor,
    eps: float,
    finish: Callable[[Tensor, list[int]], Tensor] = lambda x_adv, index: x_adv,
    beaten: SuccessFn | None = None,
    steps: int = 100,
    norm: Norm = "Linf",
    random_start: bool = True,
    step_scale: float = 2.0,
    restarts: int = 1,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    workers: Callable[[int], int] = lambda count: 1,
    tell: Callable[[str, int], None] = lambda name, count: None,
) -> EnsembleResult:
    """Run the stages in order, each on the samples that no stage before it has broken.

    x: [B, C, H, W] in [0, 1]. clean_score: [B], the score of x; a sample that is broken there is never attacked.
    score is asked once a stage, about the images `finish(x_adv, index)` makes of APGD's points (8-bit ones,
    say); those are what is kept.
    beaten: asked ever more rarely in the course of a stage, about APGD's points as they are; a sample leaves the stage
    where it is true.
    workers: how many threads for so many samples. tell: called with a stage's name and its number of samples when it
    begins. The other arguments are those of `apgd` and the same for every stage;
    a stage that starts at the kept image has neither noise nor restarts.

    Raises ValueError for stages without names of their own, scores of a wrong shape or that are no number, and as
    `apgd` does.
    """
    _check_names(stages)
    everyone = list(range(len(x)))
    seeds = sample_seeds(seed, len(x))
    lowest = _checked("clean_score", clean_score, everyone).clone()
    over = _decided(broken, lowest, everyone)
    x_adv = x.detach().clone()
    made = [CLEAN] * len(x)
    loss: list[float | None] = [None] * len(x)
    reasons: list[str | None] = [None] * len(x)
    attacked = torch.zeros(len(x), dtype=torch.bool)
    moved = torch.zeros(len(x), dtype=torch.bool)
    spent = torch.zeros(len(x), dtype=torch.long)
    scores: dict[str, Tensor] = {}
    for stage in stages:
        reach = torch.full_like(lowest, torch.inf)
        index = [i for i in everyone if not bool(over[i]) and (stage.rows is None or i in stage.rows)]
        if index:
            tell(stage.name, len(index))
            from_best = stage.start == "best"
            found = apgd(
                _of_rows(stage.loss(scores), index),
                x[index],
                eps=eps,
                steps=steps,
                norm=norm,
                random_start=random_start and not from_best,
                start=x_adv[index] if from_best else None,
                step_scale=step_scale,
                restarts=1 if from_best else restarts,
                seed=[seeds[i] for i in index],
                success=_early(beaten, index, steps),
                batch_size=batch_size,
                workers=workers(len(index)),
            )
            spent[index] += found.steps.cpu()
            candidates = finish(found.x_adv, index)
            reach[index] = _checked(f"score after {stage.name}", score(candidates, index), index)
            for place, i in enumerate(index):
                attacked[i] = True
                moved[i] |= not bool(found.zero_grad[place])
                if reasons[i] is None and found.failed[place] is not None:
                    reasons[i] = f"{stage.name}: {found.failed[place]}"
                if reach[i] < lowest[i]:
                    x_adv[i], lowest[i] = candidates[place], reach[i]
                    made[i], loss[i] = stage.name, float(found.loss[place])
            over[index] = _decided(broken, lowest[index], index)
        scores[stage.name] = reach
    failed = [None if bool(over[i]) else reasons[i] for i in everyone]
    return EnsembleResult(x_adv, lowest, made, loss, over, spent, attacked & ~moved, failed, scores)


def _of_rows(loss: LossFn, rows: list[int]) -> LossFn:
    """The loss of a part of the batch, whose samples count from 0."""
    return lambda x, index: loss(x, [rows[i] for i in index])


def _early(beaten: SuccessFn | None, rows: list[int], steps: int) -> SuccessFn | None:
    """When a stage on a part of the batch, whose samples count from 0, lets one leave."""
    if beaten is None:
        return None
    ask = beaten
    return check_on(geometric_schedule, lambda x, index: ask(x, [rows[i] for i in index]), count=len(rows), steps=steps)


def _checked(what: str, scores: Tensor, index: list[int]) -> Tensor:
    """Scores on the CPU in double precision: where they are compared, rounding must not break ties."""
    if scores.shape != (len(index),) or bool(scores.isnan().any()):
        raise ValueError(f"{what} must be one number per sample, shape ({len(index)},), got {scores}")
    return scores.detach().to("cpu", torch.float64)


def _decided(broken: BrokenFn, scores: Tensor, index: list[int]) -> Tensor:
    over = broken(scores, index)
    if over.shape != (len(index),) or over.dtype != torch.bool:
        raise ValueError(f"broken must return bool, shape ({len(index)},), got {over.dtype}, {tuple(over.shape)}")
    return over.to("cpu").clone()


def _check_names(stages: Sequence[Stage]) -> None:
    names = [CLEAN, *(stage.name for stage in stages)]
    if len(set(names)) < len(names):
        raise ValueError(f"stages need names of their own, other than {CLEAN!r}: got {', '.join(names[1:])}")
