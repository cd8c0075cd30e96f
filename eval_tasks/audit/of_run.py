"""The short audit of a run that has just made its adaptive images."""

from __future__ import annotations

from dataclasses import replace

import torch

from attacks.ensemble import CLEAN
from eval_tasks.asked import Asked
from eval_tasks.audit.build import lvlm_subject, on_one_canvas
from eval_tasks.audit.findings import Audit
from eval_tasks.audit.short import short_audit
from eval_tasks.audit.subject import Subject
from eval_tasks.crafting import AttackPlan
from eval_tasks.records import Attacked, RunFolder
from lvlm_radapt.models.base import LVLM


def audit_of_run(model: LVLM, folder: RunFolder, asked: Asked, plan: AttackPlan, *, seed: int) -> Audit:
    """Audit the images in `folder`, which `plan` made on `model` for all of `asked`'s samples.

    An ensemble leaves an image alone when its score is low, and a targeted attack when its text is read, so that
    their losses say little: such runs are audited with a short climb of the audit's own.
    """
    assert plan.config.norm is not None
    assert plan.config.apgd is not None
    assert plan.steps is not None
    norm, steps = plan.config.norm, plan.steps * plan.config.apgd.restarts
    attacked = {r.id: r.adversarial for r in folder.records() if r.adversarial is not None}
    climbed = {i: a for i, a in attacked.items() if a.stage != CLEAN or not a.broken}
    stops_early = plan.config.loss in ("ensemble", "targeted")
    sound = [s for s in asked.samples if s.id in attacked and attacked[s.id].failed is None]

    def subject_of(count: int) -> Subject:
        chosen, batch = on_one_canvas(model, replace(asked, samples=sound[:count]))
        made = None
        if not stops_early:
            made = torch.stack([folder.load_image(s.id) for s in chosen.samples])
        return lvlm_subject(model, batch, chosen, plan, seed=seed, made=made)

    return short_audit(
        subject_of,
        samples=len(sound),
        steps=steps,
        work=sum(_least_steps(a, steps) for a in climbed.values()),
        own_climb=stops_early,
        eps=plan.eps,
        norm=norm,
        distances=[a.linf if norm == "Linf" else a.l2 for a in climbed.values()],
    )


def _least_steps(attacked: Attacked, steps: int) -> int:
    """Gradient steps that were surely spent on an image: a whole stage, or up to where a target may be read first."""
    return min(steps, 10) if attacked.success else steps
