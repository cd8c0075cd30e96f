"""The short form, in every adaptive evaluation: at most 16 images and a tenth of what the attack itself cost.

Cost is counted, not timed, in gradient evaluations of one image, so that a run audits itself the same way on every
machine. Attack and answers of the evaluation are not repeated: its own images are what rivals are held against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from attacks.norms import Norm
from eval_tasks.audit.budget_checks import distances_in_ball
from eval_tasks.audit.context import ANSWER, FORWARD, AuditContext
from eval_tasks.audit.findings import Audit, Finding, NoSignal
from eval_tasks.audit.suite import CHECKS, Check, run_checks
from eval_tasks.audit.target import AuditTarget

SAMPLES = 16
SHARE = 0.1
_QUERIES, _MOST_QUERIES = 10, 100  # of the random search
_STEPS, _MOST_STEPS = 8, 100  # of the transfer attack
_DIRECTIONS = 1  # of the finite differences

# What a check costs an image, in the order in which the checks go in while the budget lasts. What several need
# (clean losses, clean answers, losses and answers of the evaluation's images) is counted where it is first needed.
COSTS: tuple[tuple[str, float], ...] = (
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
_WHOLE = sum(cost for _, cost in COSTS)


@dataclass(frozen=True)
class ShortBudget:
    """What the short form can afford: `checks` on `samples` images, so many losses for the random search and steps
    for the transfer attack."""

    samples: int
    checks: tuple[str, ...]
    queries: int
    steps: int


def short_budget(samples: int, work: float, *, steps: int, own_climb: bool = False) -> ShortBudget:
    """For a run of `samples` images whose attack spent `work` gradient evaluations in all, `steps` at most on each.

    As many images as all checks can be had for, but two at least, with as many checks as fit; the rest goes into
    attacks. own_climb: the run's images are not for comparing losses, so that an attack on them is in the price.
    """
    allowed = SHARE * work
    costs = [(name, cost + (_STEPS if own_climb and name == "noise" else 0)) for name, cost in COSTS]
    whole = sum(cost for _, cost in costs)
    count = min(SAMPLES, samples, max(2, int(allowed / whole)))
    left = allowed / count if count else 0.0
    checks = []
    for name, cost in costs:
        if cost > left:
            break
        checks.append(name)
        left -= cost
    queries, attack_steps = _QUERIES, _STEPS
    if len(checks) == len(costs):
        more = min(_MOST_QUERIES - _QUERIES, int(left / 2 / FORWARD))
        queries += more
        longer = int((left - more * FORWARD) / (2 if own_climb else 1))
        attack_steps = max(_STEPS, min(steps, _MOST_STEPS, _STEPS + longer))
    return ShortBudget(count if checks else 0, tuple(checks), queries, attack_steps)


def short_audit(
    target_of: Callable[[int], AuditTarget],
    *,
    samples: int,
    steps: int,
    work: float,
    eps: float,
    norm: Norm,
    distances: Sequence[float],
    own_climb: bool = False,
    nearest: bool = False,
) -> Audit:
    """The audit of a run that has just attacked `samples` images; `work`, `steps`, `own_climb` as in `short_budget`.

    target_of: `target_of(count)` gives the target for at most `count` of them, with the run's own images in
    `made` (None where own_climb); not called when a tenth of the run pays for no check. distances: of every image
    that the run attacked from its clean one, in `norm`, as it lies on disk; nearest: as in `AuditTarget`.
    """
    budget = short_budget(samples, work, steps=steps, own_climb=own_climb)
    findings: list[Finding] = []
    costly = {name for name, _ in COSTS}
    skipped = {c.name: "left to the full audit" for c in CHECKS if c.name not in costly and c.name != "ball"}
    try:
        findings.append(distances_in_ball(distances, eps=eps, norm=norm, nearest=nearest))
    except NoSignal as quiet:
        skipped["ball"] = str(quiet)
    skipped |= {name: "a tenth of so short a run does not pay for it" for name, _ in COSTS if name not in budget.checks}
    cost, count = 0.0, 0
    if budget.checks:
        target = replace(target_of(budget.samples), restarts=1)
        never = {c.name: c.lacks(target) for c in CHECKS if c.name in skipped}
        skipped |= {name: reason for name, reason in never.items() if reason is not None}
        count = len(target)
        context = AuditContext(target, steps=budget.steps, queries=budget.queries, directions=_DIRECTIONS)
        found, more = run_checks(context, _chosen(budget.checks))
        findings += found
        skipped |= more
        cost = context.cost
    return Audit("short", count, budget.steps, tuple(findings), skipped, cost)


def _chosen(names: Sequence[str]) -> list[Check]:
    by_name = {check.name: check for check in CHECKS}
    return [by_name[name] for name in names]
