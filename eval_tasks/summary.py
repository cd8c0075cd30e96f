"""metrics.json: the numbers of a run, and what a reader has to know of them, from its records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from attacks.ensemble import CLEAN
from eval_tasks.crafting import AttackPlan, says
from eval_tasks.metrics import bootstrap_ci
from eval_tasks.metrics.wilson import wilson_ci
from eval_tasks.presets import TaskConfig
from eval_tasks.records import Attacked, SampleRecord
from eval_tasks.stages import stage_plans


def metrics(
    records: Sequence[SampleRecord],
    task: TaskConfig,
    plan: AttackPlan | None,
    remarks: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """What metrics.json says of these records."""

    def summary(values: list[float | None]) -> dict[str, Any]:
        known = [v for v in values if v is not None]
        interval = bootstrap_ci(known)
        return {task.metric: sum(known) / len(known), "ci95": [interval.low, interval.high]}

    attacked = [r.adversarial for r in records if r.adversarial]
    stuck = sum(a.zero_grad for a in attacked)
    # at which step it happened is in samples.jsonl
    failed = Counter(a.failed.split(" at ")[0] for a in attacked if a.failed is not None)
    stages = _stages(attacked, task, plan)
    success = _success(records, plan)
    notes = list(remarks)
    if task.metric == "cider":
        notes.append(f"CIDEr-D x100, document frequency from the references of these {len(records)} images")
    if stages:
        notes.append(_stages_text(stages, len(attacked), task))
    if success:
        said = f"{success['hits']} of {len(records)} answers to attacked images, {success['clean_hits']} to clean ones"
        notes.append(f'the target "{success["target"]}" is in {said}')
    rounded = sum(a.rounded_back for a in attacked)
    if rounded:
        notes.append(f"{rounded} images were misclassified before they were rounded to 8 bits, and not after")
    # a library's own words, once each
    notes += dict.fromkeys(f"the attack's library remarks: {text}" for a in attacked for text in a.remarks)
    if stuck:
        notes.append(f"{stuck} samples had an all-zero gradient: their attack did nothing")
    if failed:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in failed.most_common())
        notes.append(f"{failed.total()} samples failed, scored with the best image found before: {reasons}")
    return {
        "n": len(records),
        "metric": task.metric,
        "threat": plan.threat if plan else None,
        "attack": plan.config.name if plan else None,
        "eps": plan.eps if plan else None,
        "steps": plan.steps if plan else None,
        "clean": summary([r.clean.score for r in records]),
        "adversarial": summary([a.score for a in attacked]) if attacked else None,
        "success": success,
        "stages": stages,
        "zero_grad": stuck,
        "failed": failed.total(),
        "seconds": seconds,
        "notes": notes,
    }


def _success(records: Sequence[SampleRecord], plan: AttackPlan | None) -> dict[str, Any] | None:
    """How often the target is read in answers to attacked images (`hits`, in percent `success_rate`) and clean ones."""
    if plan is None or plan.target is None:
        return None
    hits = sum(bool(r.adversarial and r.adversarial.success) for r in records)
    interval = wilson_ci(hits, len(records))
    already = sum(says(r.clean.output, plan.target) for r in records)
    return {
        "target": plan.target,
        "hits": hits,
        "success_rate": 100 * hits / len(records),
        "ci95": [100 * interval.low, 100 * interval.high],
        "clean_hits": already,
    }


def _stages(attacked: Sequence[Attacked], task: TaskConfig, plan: AttackPlan | None) -> list[dict[str, Any]] | None:
    """By stage of an ensemble or member of a line, the clean image first: how many kept images it made, how many of
    them under the threshold, or misclassified. None for images made by another run."""
    if plan is None or any(a.broken is None for a in attacked):
        return None
    if plan.config.ensemble is not None:
        later = [stage.name for stage in stage_plans(plan.config.ensemble, task.kind)]
    else:
        later = [*(plan.config.line or [])]
    kept = Counter(a.stage for a in attacked)
    broken = Counter(a.stage for a in attacked if a.broken)
    return [{"name": name, "kept": kept[name], "broken": broken[name]} for name in [CLEAN, *later]]


def _stages_text(stages: Sequence[dict[str, Any]], n: int, task: TaskConfig) -> str:
    broken = sum(stage["broken"] for stage in stages)
    by = ", ".join(
        f"{stage['broken']} {'already clean' if stage['name'] == CLEAN else 'by ' + stage['name']}"
        for stage in stages
        if stage["broken"]
    )
    if task.kind == "classification":
        what = "are misclassified by the model that was attacked"
    else:
        what = "fell under the ensemble's threshold"
    return f"{broken} of {n} images {what}{': ' + by if by else ''}"
