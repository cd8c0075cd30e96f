"""The short audit of a run that has just made its adaptive images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eval_tasks.audit.build import Scores, gather, lvlm_subject
from eval_tasks.audit.findings import Audit
from eval_tasks.audit.short import short_audit
from eval_tasks.audit.subject import Subject
from eval_tasks.crafting import AttackPlan
from eval_tasks.data import Sample
from eval_tasks.presets import Protocol, TaskConfig
from eval_tasks.records import RunFolder
from lvlm_radapt.models.base import LVLM


def audit_of_run(
    model: LVLM,
    folder: RunFolder,
    samples: Sequence[Sample],
    scores: Scores,
    plan: AttackPlan,
    *,
    task: TaskConfig,
    protocol: Protocol,
    seed: int,
    steps: int,
    batch_size: int,
) -> Audit:
    """Audit the images in `folder` that `plan` made for `samples`, at `steps` gradient evaluations an image
    (restarts and stages included), on the first of them."""
    norm = plan.config.norm
    assert norm is not None
    attacked = [record.adversarial for record in folder.records() if record.adversarial is not None]

    def subject_of(count: int) -> Subject:
        material = gather(model, samples[:count], scores, task, protocol, seed)
        made = torch.stack([folder.load_image(s.id) for s in material.samples])
        return lvlm_subject(model, material, plan, made=made, batch_size=batch_size)

    return short_audit(
        subject_of,
        samples=len(samples),
        steps=steps,
        eps=plan.eps,
        norm=norm,
        distances=[a.linf if norm == "Linf" else a.l2 for a in attacked],
    )
