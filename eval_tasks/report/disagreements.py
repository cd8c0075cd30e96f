"""Where metrics.json says something else than the records, which count."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from eval_tasks.run.facts import metric_of
from eval_tasks.run.records import Run, images_of
from eval_tasks.run.run_metrics import mean_score, target_hits


def disagreements(run: Run) -> list[str]:
    """One sentence a number of metrics.json that is another one by samples.jsonl: scores, the success rate of a
    targeted attack, recall@1 of captions, and the samples whose attack failed or had no gradient."""
    return [
        f"metrics.json says {_shown(told)} {what}, but samples.jsonl {_shown(counted)}, which counts"
        for what, told, counted in _pairs(run)
        if told is not None and (counted is None or not math.isclose(told, counted, rel_tol=1e-6, abs_tol=1e-6))
    ]


def _pairs(run: Run) -> Iterator[tuple[str, float | None, float | None]]:
    """(what, the number in metrics.json, the number by the records); None: there is none."""
    images = images_of(run.samples)
    attacked = [sample.adversarial for sample in run.samples]
    for part, what, answers in (
        ("clean", "clean", [sample.clean for sample in run.samples]),
        ("adversarial", "attacked", attacked),
    ):
        found = mean_score(answers, metric_of(run), images)
        mean = None if found is None else found[0]
        yield f"on {what} images", (run.metrics.get(part) or {}).get(metric_of(run)), mean
        recall = run.metrics.get("retrieval", {}).get(part, {}).get("image_to_text", {}).get("recall@1")
        yield f"for recall@1 of captions on {what} images", recall, mean
    if run.metrics.get("success"):
        told = any(one is not None and one.success is not None for one in attacked)
        rate = 100 * target_hits(run.samples)[0] / len(run.samples) if told else None
        yield "% of answers with the target", run.metrics["success"]["success_rate"], rate
    yield "samples with a zero gradient", *_counted(run, "zero_grad", [one and one.zero_grad for one in attacked])
    yield "failed samples", *_counted(run, "failed", [one and one.failed is not None for one in attacked])


def _counted(run: Run, key: str, marks: list[Any]) -> tuple[float | None, float]:
    return run.metrics.get(key), sum(map(bool, marks))


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
