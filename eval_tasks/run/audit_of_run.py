"""The short audit of a run that has just made its adaptive images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attacks.ensemble import CLEAN
from attacks.suite import SuiteSettings
from eval_tasks.audit.bench import FORWARD
from eval_tasks.audit.build import on_one_canvas
from eval_tasks.audit.classifier import keeps_near
from eval_tasks.audit.findings import Audit
from eval_tasks.audit.short import short_audit
from eval_tasks.audit.subject import Subject
from eval_tasks.crafting.craft import AttackPlan
from eval_tasks.data import Sample
from eval_tasks.run.records import Attacked, RunFolder
from eval_tasks.tasks.exams import Exam
from lvlm_radapt.models.base import PixelModel

# Gradient steps of the library's attacks, in the attack's number of steps, where there are the fewest classes they
# take; of `standard`, APGD, and APGD-T and FAB-T with three targets each.
_TIMES = {"fab": 1, "standard": 7}


def audit_of_run(
    model: PixelModel, folder: RunFolder, exam: Exam, samples: Sequence[Sample], plan: AttackPlan, *, seed: int
) -> Audit:
    """Audit the images in `folder`, which `plan` made on `model` for all of these samples.

    An ensemble leaves an image alone when its score is low, a targeted attack when its text is read, a line on a
    classifier when that is wrong, and an early exit any image that is answered wrongly, so that their losses say
    little: such runs are audited with a short climb of the audit's own.
    """
    norm, steps = plan.norm, _steps(plan)
    if plan.config.apgd is not None:
        steps *= plan.config.apgd.restarts
    attacked = {r.id: r.adversarial for r in folder.records() if r.adversarial is not None}
    climbed = {i: a for i, a in attacked.items() if a.stage != CLEAN or not a.broken}
    stops_early = plan.leaves_early or plan.config.loss in ("ensemble", "targeted", "classifier")
    sound = [s for s in samples if s.id in attacked and attacked[s.id].failed is None]

    def subject_of(count: int) -> Subject:
        chosen, batch = on_one_canvas(model, sound[:count])
        made = None
        if not stops_early:
            made = torch.stack([folder.load_image(s.id, attacked[s.id].image_sha256) for s in chosen])
        return exam.subject(batch, chosen, plan, seed=seed, made=made)

    return short_audit(
        subject_of,
        samples=len(sound),
        steps=steps,
        work=sum(_least_work(a, plan) for a in climbed.values()),
        own_climb=stops_early,
        eps=plan.eps,
        norm=norm,
        distances=[a.linf if norm == "Linf" else a.l2 for a in climbed.values()],
        nearest=keeps_near(plan),
    )


def _steps(plan: AttackPlan) -> int:
    return plan.steps or SuiteSettings().steps


def _least_work(attacked: Attacked, plan: AttackPlan) -> float:
    """Gradient evaluations that were surely spent on an image: those counted, and of a line what the library's members
    need that were done with before it was broken."""
    work = float(attacked.steps or 0)
    for member in plan.config.line or ():
        if attacked.broken and member == attacked.stage:
            break
        work += FORWARD * (plan.config.queries or 0) if member == "square" else _TIMES.get(member, 0) * _steps(plan)
    return work
