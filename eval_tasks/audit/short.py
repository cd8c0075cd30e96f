"""The short form, in every adaptive evaluation: at most 16 images and a tenth of what the attack itself cost.

Cost is counted, not timed, in gradient evaluations of one image, so that a run audits itself the same way on every
machine. Attack and answers of the evaluation are not repeated: its own images are what rivals are held against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from attacks.norms import Norm
from eval_tasks.audit.bench import ANSWER, FORWARD, Bench
from eval_tasks.audit.budget_checks import distances_in_ball
from eval_tasks.audit.findings import Audit
from eval_tasks.audit.subject import Subject
from eval_tasks.audit.suite import CHECKS, Check, run_checks

SAMPLES = 16
SHARE = 0.1
_QUERIES, _MOST_QUERIES = 10, 100  # of the random search
_STEPS, _MOST_STEPS = 8, 100  # of the transfer attack
_DIRECTIONS = 1  # of the finite differences

# What a check costs an image, in the order in which the checks go in while the budget lasts. What several need
# (clean losses, clean answers, losses and answers of the evaluation's images) is counted where it is first needed.
_COSTS: tuple[tuple[str, float], ...] = (
    ("gradients", 1 + FORWARD),
    ("determinism", 2 * FORWARD + 2 * ANSWER),
    ("batch invariance", 2 * FORWARD + ANSWER),
    ("noise", 3 * FORWARD),
    ("input resolution", 2 * FORWARD),
    ("gradient accuracy", 1 + 4 * _DIRECTIONS * FORWARD + 2 * FORWARD),
    ("random search", _QUERIES * FORWARD),
    ("prompts", FORWARD + ANSWER),
    ("transfer", _STEPS + FORWARD + 3 * ANSWER),
)
_WHOLE = sum(cost for _, cost in _COSTS)


@dataclass(frozen=True)
class ShortBudget:
    """What the short form can afford: `checks` on `samples` images, so many losses for the random search and steps
    for the transfer attack."""

    samples: int
    checks: tuple[str, ...]
    queries: int
    steps: int


def short_budget(samples: int, steps: int) -> ShortBudget:
    """For a run of `samples` images at `steps` gradient evaluations each (restarts and stages included): as many
    images as all checks can be had for, but two at least, with as many checks as fit; the rest goes into attacks."""
    allowed = SHARE * samples * steps
    count = min(SAMPLES, samples, max(2, int(allowed / _WHOLE)))
    left = allowed / count
    checks = []
    for name, cost in _COSTS:
        if cost > left:
            break
        checks.append(name)
        left -= cost
    queries, attack_steps = _QUERIES, _STEPS
    if len(checks) == len(_COSTS):
        more = min(_MOST_QUERIES - _QUERIES, int(left / 2 / FORWARD))
        queries += more
        attack_steps = max(_STEPS, min(steps, _MOST_STEPS, _STEPS + int(left - more * FORWARD)))
    return ShortBudget(count if checks else 0, tuple(checks), queries, attack_steps)


def short_audit(
    subject_of: Callable[[int], Subject],
    *,
    samples: int,
    steps: int,
    eps: float,
    norm: Norm,
    distances: Sequence[float],
) -> Audit:
    """The audit of a run that has just attacked `samples` images with `steps` gradient evaluations each.

    subject_of: `subject_of(count)` gives the subject for at most `count` of them, with the run's own images in
    `made`; not called when a tenth of the run pays for no check. distances: of every image of the run from its
    clean one, in `norm`, as it lies on disk.
    """
    budget = short_budget(samples, steps)
    findings = [distances_in_ball(distances, eps=eps, norm=norm)]
    skipped = {check.name: "left to the full audit" for check in CHECKS if check.name not in dict(_COSTS)}
    del skipped["ball"]
    skipped |= {
        name: "a tenth of so short a run does not pay for it" for name, _ in _COSTS if name not in budget.checks
    }
    cost, count = 0.0, 0
    if budget.checks:
        subject = replace(subject_of(budget.samples), restarts=1)
        count = len(subject)
        bench = Bench(subject, steps=budget.steps, queries=budget.queries, directions=_DIRECTIONS)
        found, more = run_checks(bench, _chosen(budget.checks))
        findings += found
        skipped |= more
        cost = bench.cost
    return Audit("short", count, budget.steps, tuple(findings), skipped, cost)


def _chosen(names: Sequence[str]) -> list[Check]:
    by_name = {check.name: check for check in CHECKS}
    return [by_name[name] for name in names]
