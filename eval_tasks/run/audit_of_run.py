"""The short audit of a run that has just made its adaptive images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from attacks.ensemble import CLEAN
from attacks.suite import SuiteSettings
from eval_tasks.audit.build_target import build_target, on_one_canvas
from eval_tasks.audit.findings import Audit
from eval_tasks.audit.short import short_audit
from eval_tasks.audit.target import AuditTarget
from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.crafted import sample_seed
from eval_tasks.data import Sample
from eval_tasks.run.records import RunFolder, SampleRecord
from eval_tasks.tasks.base import TaskRun
from lvlm_radapt.models.base import PixelBatch


def audit_of_run(
    folder: RunFolder,
    run: TaskRun,
    samples: Sequence[Sample],
    records: Sequence[SampleRecord],
    attack: Attack,
    *,
    seed: int,
) -> Audit:
    """Audit the images in `folder`, which `attack` made for all of these samples; `records` are theirs.

    An attack that stops early leaves an image alone when its score is low, its text is read or its class is wrong. The
    losses of such images say little: such runs are audited with a short climb of the audit's own.
    """
    steps = (attack.gradient_steps or SuiteSettings().steps) * (getattr(attack, "restarts", None) or 1)
    attacked = {r.id: r.adversarial for r in records if r.adversarial is not None}
    climbed = [a for a in attacked.values() if a.stage != CLEAN or not a.broken]
    sound = [s for s in samples if s.id in attacked and attacked[s.id].failed is None]

    def target_of(count: int) -> AuditTarget:
        chosen, pixels = on_one_canvas(run.model, sound[:count], seed)
        made = None
        if not attack.stops_early:
            made = torch.stack([folder.load_image(s.id, attacked[s.id].image_sha256) for s in chosen])
        return target_of_run(run, chosen, pixels, attack, seed=seed, made=made)

    audit = short_audit(
        target_of,
        samples=len(sound),
        steps=steps,
        work=sum(attack.least_work(a.steps, a.stage if a.broken else None) for a in climbed) * attack.has_loss,
        own_climb=attack.stops_early,
        eps=attack.eps,
        norm=attack.norm,
        distances=[a.linf if attack.norm == "Linf" else a.l2 for a in climbed],
        nearest=attack.nearest,
    )
    if attack.has_loss:
        return audit
    return replace(audit, skipped=dict.fromkeys(audit.skipped, f"--attack {attack.name} gives no loss to check"))


def target_of_run(
    run: TaskRun,
    samples: Sequence[Sample],
    pixels: PixelBatch,
    attack: Attack,
    *,
    seed: int,
    made: torch.Tensor | None = None,
) -> AuditTarget:
    """What an audit of `attack` looks at; `made`: images that it has made already."""
    seeds = [sample_seed(seed, s.id) for s in samples]

    def craft(other: Attack) -> torch.Tensor:
        return run.craft(pixels, samples, other, seeds=seeds).pixels

    return build_target(run.model, pixels, run.batch(samples), attack, craft, seed=seed, made=made)
