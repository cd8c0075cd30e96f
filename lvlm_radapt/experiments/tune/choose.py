"""The recommendation: the most adaptive robustness at no more than a stated clean loss, or none at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from eval_tasks.metrics import Interval
from eval_tasks.metrics.intervals import LEAST, count_images
from eval_tasks.report.table_formats import Cell
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.experiments.tune.knobs import DEFAULT, Knobs, point_text, settled
from lvlm_radapt.experiments.tune.measured import Measured

LEVEL = 0.95


@dataclass(frozen=True)
class Choice:
    """best: the setting with the highest adaptive score among the `allowed` ones, those whose clean loss is within
    bounds; None when there are none. beats: whether its gain is above 0, beyond the interval `gain`, which is widened
    for having chosen the best of so many (Bonferroni). `said`: all that in a sentence."""

    best: Measured | None
    allowed: int
    gain: Interval | None
    beats: bool
    said: str


def allowed(measured: Sequence[Measured], *, clean: float, max_loss: float) -> list[Measured]:
    """Those that lose at most `max_loss` percent of the undefended model's clean score."""
    return [one for one in measured if _loss(one) <= max_loss / 100 * clean + 1e-9]


def choose(measured: Sequence[Measured], *, clean: float, max_loss: float, n: int) -> Choice:
    """clean: the undefended model's clean score; max_loss: in percent of it; n: samples, for the sentence."""
    within = allowed(measured, clean=clean, max_loss=max_loss)
    price = f"at no more than {max_loss:g} % clean loss"
    if not within:
        least = min(measured, key=_loss)
        lost = 100 * _loss(least) / clean if clean else 0.0
        said = (
            f"Nothing to recommend {price}: of {len(measured)} settings none is that cheap. "
            f"The cheapest, {point_text(least.point)}, loses {lost:.1f} %."
        )
        return Choice(None, 0, None, False, said)
    best = most_robust(within)
    gain = best.gain_at(1 - (1 - LEVEL) / len(within))
    shown = str(Cell(value=sum(best.differences) / len(best.differences), interval=gain, signed=True))
    of = f"the best of {len(within)} such settings" if len(within) > 1 else "the one such setting"
    proof = f"{shown} under the adaptive attack, paired over {n} samples, interval widened for {len(within)} choices"
    count = count_images(n, best.images)
    if count < LEAST:
        said = (
            f"Too few samples to tell whether anything beats the undefended model {price}: {of}, "
            f"{point_text(best.point)}, has {proof}, over {count} images where {LEAST} are the least."
        )
        return Choice(best, len(within), gain, False, said)
    if gain.low > 0:
        said = f"{point_text(best.point)} beats the undefended model {price}: {proof}."
    elif gain.high < 0:
        said = f"Nothing beats the undefended model {price}: {of}, {point_text(best.point)}, is worse ({proof})."
    else:
        said = (
            f"Nothing beats the undefended model {price} as far as {n} samples can show: {of}, "
            f"{point_text(best.point)}, makes no clear difference ({proof})."
        )
    return Choice(best, len(within), gain, gain.low > 0, said)


def most_robust(measured: Sequence[Measured]) -> Measured:
    """The highest adaptive score; among equals the highest clean one, then the first."""
    return max(measured, key=lambda one: (_score(one.row.adaptive), _score(one.row.clean)))


def best_pair(knobs: Knobs, measured: Sequence[Measured], *, clean: float, max_loss: float) -> RAdaptConfig:
    """The cutoff that did best at the default anchor with the alpha and mix that did best at the default cutoff.

    On each line the best within the clean loss counts, or of all where none is: together they may be cheaper.
    """
    by_point = {one.point: one for one in measured}

    def best_of(line: Sequence[RAdaptConfig]) -> RAdaptConfig:
        points = [by_point[settled(point)] for point in (*line, DEFAULT) if settled(point) in by_point]
        return most_robust(allowed(points, clean=clean, max_loss=max_loss) or points).point

    cutoff = best_of(knobs.cutoff_line()).cutoff
    anchor = best_of([point for mix in knobs.mixes for point in knobs.alpha_line(mix)])
    return settled(replace(anchor, cutoff=cutoff))


def _loss(one: Measured) -> float:
    change = one.row.clean_change
    return 0.0 if change is None or change.value is None else -change.value


def _score(cell: Cell) -> float:
    return float("-inf") if cell.value is None else cell.value
