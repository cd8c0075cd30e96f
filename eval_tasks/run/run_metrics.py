"""metrics.json: the numbers of a run, and what a reader has to know of them, from its records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from attacks.ensemble import CLEAN
from attacks.eps import budget_text, eps_8bit, eps_text, within
from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.targeted import contains_target
from eval_tasks.metrics.bootstrap import Images, Interval
from eval_tasks.metrics.intervals import all_alike, count_images, hits_ci, score_ci
from eval_tasks.run.records import Attacked, SampleRecord, Scored, images_of
from eval_tasks.tasks.base import Task


def mean_score(
    answers: Sequence[Scored | None], metric: str, images: Images | None
) -> tuple[float, Interval, list[float]] | None:
    """(mean, its 95 % interval, the scores) of the answers that have a score; None where none has.

    images: the image of each answer, as in `bootstrap_ci`.
    """
    scored = [(a.score, i) for i, a in enumerate(answers) if a is not None and a.score is not None]
    if not scored:
        return None
    known = [score for score, _ in scored]
    interval = score_ci(known, metric, None if images is None else [images[i] for _, i in scored])
    return sum(known) / len(known), interval, known


def metrics(
    records: Sequence[SampleRecord], task: Task, attack: Attack | None, remarks: Sequence[str], seconds: float
) -> dict[str, Any]:
    """What metrics.json says of these records."""

    images = images_of(records)
    alike = []

    def summary(of: str, answers: Sequence[Scored | None]) -> dict[str, Any]:
        found = mean_score(answers, task.metric, images)
        if found is None:
            return {task.metric: None, "ci95": None}
        mean, interval, known = found
        if all_alike(known, task.metric):
            alike.append(f"all scores of {of} images are {known[0]:.0f}: their interval is Wilson's")
        return {task.metric: mean, "ci95": [interval.low, interval.high]}

    clean = summary("clean", [r.clean for r in records])
    attacked = [r.adversarial for r in records if r.adversarial]
    stuck = sum(a.zero_grad for a in attacked)
    # at which step it happened is in samples.jsonl
    failed = Counter(a.failed.split(" at ")[0] for a in attacked if a.failed is not None)
    stages = _stages(attacked, task, attack)
    f1 = _f1(records, task)
    success = _success(records, attack)
    adversarial = summary("attacked", [r.adversarial for r in records]) if attacked else None
    shown = count_images(len(records), images)
    notes = [*remarks, *alike]
    if shown < len(records):
        notes.append(f"{len(records)} samples share {shown} images: intervals draw images, each with all its samples")
    notes += task.notes(len(records))
    if f1:
        said = ", ".join(f"{value:.1f} {name}" for name, value in f1.items() if value is not None)
        notes.append(f"F1 of yes, averaged over the parts of the set: {said}")
    if stages and attack is not None:
        notes.append(_stages_text(stages, len(attacked), attack))
    if success:
        said = f"{success['hits']} of {len(records)} answers to attacked images, {success['clean_hits']} to clean ones"
        notes.append(f'the target "{success["target"]}" is in {said}')
    distance = _distance(attacked, attack)
    if attack is not None and distance is not None:
        notes += _budget_notes(distance, attack)
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
        "images": shown,
        "metric": task.metric,
        "threat": attack.threat if attack else None,
        "attack": attack.name if attack else None,
        "eps": attack.eps if attack else None,
        "distance": distance,
        "steps": attack.gradient_steps if attack else None,
        "clean": clean,
        "adversarial": adversarial,
        "f1": f1,
        "success": success,
        "stages": stages,
        "zero_grad": stuck,
        "failed": failed.total(),
        "seconds": seconds,
        "notes": notes,
    }


def _distance(attacked: Sequence[Attacked], attack: Attack | None) -> dict[str, Any] | None:
    """How far the 8-bit images are from the clean ones, in the attack's norm; `unchanged`: those that are equal."""
    if attack is None or not attacked:
        return None
    sizes = [a.l2 if attack.norm == "L2" else a.linf for a in attacked]
    unchanged = sum(size == 0 and a.stage != CLEAN for size, a in zip(sizes, attacked, strict=True))
    return {"norm": attack.norm, "mean": sum(sizes) / len(sizes), "largest": max(sizes), "unchanged": unchanged}


def _budget_notes(distance: dict[str, Any], attack: Attack) -> list[str]:
    """Where the 8-bit images have another budget than the one asked for."""
    notes = []
    left = eps_8bit(attack.eps, attack.norm)
    if left is None:
        notes.append(
            f"the 8-bit images are {distance['mean']:.3g} from the clean ones on average, {distance['largest']:.3g} at "
            f"most, of an L2 budget of {attack.eps:g}"
        )
    elif budget_text(attack.eps, attack.norm) != eps_text(attack.eps, attack.norm):
        notes.append(f"8-bit images change by whole levels: of eps {eps_text(attack.eps)} they have {eps_text(left)}")
    if not within(distance["largest"], attack.eps):
        far = f"{distance['largest']:.3g} ({attack.norm})"
        notes.append(f"THE ATTACK LEFT ITS BUDGET, by up to {far}: its scores are not for eps {attack.eps:.3g}")
    if distance["unchanged"]:
        notes.append(f"{distance['unchanged']} attacked images are the clean ones, bit for bit")
    return notes


def _f1(records: Sequence[SampleRecord], task: Task) -> dict[str, float | None] | None:
    """POPE's score on clean and attacked images, in percent; None for tasks that ask for no yes or no."""
    clean = task.f1({r.id: (r.clean.output, r.references[0]) for r in records})
    if clean is None:
        return None
    attacked = {r.id: (r.adversarial.output, r.references[0]) for r in records if r.adversarial}
    return {"clean": clean, "adversarial": task.f1(attacked) if attacked else None}


def _success(records: Sequence[SampleRecord], attack: Attack | None) -> dict[str, Any] | None:
    """How often the target is read in answers to attacked images (`hits`, in percent `success_rate`) and clean ones."""
    if attack is None or attack.target is None:
        return None
    hits, interval = target_hits(records)
    already = sum(contains_target(r.clean.output, attack.target) for r in records)
    return {
        "target": attack.target,
        "hits": hits,
        "success_rate": 100 * hits / len(records),
        "ci95": [interval.low, interval.high],
        "clean_hits": already,
    }


def target_hits(records: Sequence[SampleRecord]) -> tuple[int, Interval]:
    """How many answers to attacked images have the target in them, and the 95 % interval of their share in percent."""
    success = [bool(r.adversarial and r.adversarial.success) for r in records]
    return sum(success), hits_ci(success, images_of(records))


def _stages(attacked: Sequence[Attacked], task: Task, attack: Attack | None) -> list[dict[str, Any]] | None:
    """By stage of an ensemble or member of a line, the clean image first: how many kept images it made, how many of
    them under the threshold, or misclassified. None for images made by another run."""
    if attack is None or any(a.broken is None for a in attacked):
        return None
    kept = Counter(a.stage for a in attacked)
    broken = Counter(a.stage for a in attacked if a.broken)
    return [
        {"name": name, "kept": kept[name], "broken": broken[name]} for name in [CLEAN, *attack.stage_names(task.kind)]
    ]


def _stages_text(stages: Sequence[dict[str, Any]], n: int, attack: Attack) -> str:
    broken = sum(stage["broken"] for stage in stages)
    by = ", ".join(
        f"{stage['broken']} {'already clean' if stage['name'] == CLEAN else 'by ' + stage['name']}"
        for stage in stages
        if stage["broken"]
    )
    return f"{broken} of {n} images {attack.needs.broken_means}{': ' + by if by else ''}"
