"""How much is done, what it takes, and what is cut where the time is limited."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lvlm_radapt.utils.errors import UserError

ENSEMBLE_STAGES = 8
"""Five references, the best again and two targets: of the scoring attack, at most."""
AUDIT_WORK = 31
"""Gradient evaluations of the full audit for each image and attack step, as one audit of tiny-llava counted."""
AUDIT_SAMPLES = 16
CANDIDATES = ("filter", "radapt", "learned", "low-rank", "low-rank+filter")
"""The rows of `compare` that are tried beside the model as it is."""
_SMALLEST = {"samples": 60, "steps": 10}
"""What a time limit cuts down to; training steps are cut to a quarter."""


@dataclass(frozen=True)
class Sizes:
    """samples: of both parts of the data. steps: of each attack. tuning, anchor: training steps of the low-rank
    changes and of the learned anchor."""

    samples: int
    steps: int
    tuning: int
    anchor: int


@dataclass(frozen=True)
class Costs:
    """Seconds. attack: a step on an image. answer: of an image. tuning, anchor: a training step. probes: what is
    measured while the anchor is learned. memory: peak bytes of an attack step and of a training step."""

    attack: float
    answer: float
    tuning: float
    anchor: float
    probes: float
    memory: tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """A piece of the work, in words, and its seconds."""

    name: str
    seconds: float
    memory: int


def stages(costs: Costs, sizes: Sizes) -> list[Stage]:
    """All pieces of the work in order. Attacks that stop early take less than is said here."""
    choosing = sizes.samples / 3
    scoring = sizes.samples - choosing
    attack, training = costs.memory
    candidate = choosing * (sizes.steps * costs.attack + 3 * costs.answer)
    scored = scoring * ENSEMBLE_STAGES * (sizes.steps * costs.attack + costs.answer)
    return [
        Stage("train the learned anchor", sizes.anchor * costs.anchor + costs.probes, training),
        Stage("train at low rank", sizes.tuning * costs.tuning, training),
        Stage(f"attack the model and {len(CANDIDATES)} candidates", (1 + len(CANDIDATES)) * candidate, attack),
        Stage("score the model and the winner (at most)", 2 * scored, attack),
        Stage("audit the winner", AUDIT_SAMPLES * AUDIT_WORK * sizes.steps * costs.attack, attack),
    ]


def total(costs: Costs, sizes: Sizes) -> float:
    """Seconds of all stages."""
    return sum(stage.seconds for stage in stages(costs, sizes))


def fit(costs: Costs, sizes: Sizes, hours: float | None) -> tuple[Sizes, str | None]:
    """Sizes that take at most `hours`, and what was cut, in words; None where nothing was.

    Samples are cut first, then attack steps, then training steps. UserError where the smallest sizes take longer.
    """
    for smaller in _smaller(sizes):
        if hours is None or total(costs, smaller) <= 3600 * hours:
            return smaller, _cut(sizes, smaller)
    least = total(costs, smaller) / 3600
    raise UserError(
        f"--hours {hours:g} is too short: the smallest search takes {least:.2g} hours here, give that or more"
    )


def _smaller(sizes: Sizes) -> Iterator[Sizes]:
    yield sizes
    for field, least in _SMALLEST.items():
        while getattr(sizes, field) > least:
            sizes = replace(sizes, **{field: max(least, int(0.8 * getattr(sizes, field)))})
            yield sizes
    for share in (0.7, 0.5, 0.35, 0.25):
        yield replace(sizes, tuning=_share(sizes.tuning, share), anchor=_share(sizes.anchor, share))


def _share(steps: int, share: float) -> int:
    return max(1, int(steps * share))


def _cut(before: Sizes, after: Sizes) -> str | None:
    names = {
        "samples": "samples",
        "steps": "attack steps",
        "tuning": "low-rank training steps",
        "anchor": "anchor steps",
    }
    cut = [
        f"{name} from {getattr(before, field)} to {getattr(after, field)}"
        for field, name in names.items()
        if getattr(before, field) != getattr(after, field)
    ]
    return f"cut to fit the time: {', '.join(cut)}" if cut else None
