"""Progressive replacement: scores of a model as more and more of its tower comes from the robust twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval_tasks.report.page import write_report
from eval_tasks.run.evaluate import evaluate
from eval_tasks.run.options import Evaluation
from eval_tasks.run.records import Run, Scored
from lvlm_radapt.analysis.mixing import Mixed

Advance = Callable[[int, str], None]


@dataclass(frozen=True)
class Score:
    """Mean over the samples in the metric's unit (percent, CIDEr x100) and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One step. transfer: on images crafted on the original model; adaptive: on those crafted on this very mix."""

    step: str
    clean: Score
    transfer: Score
    adaptive: Score


@dataclass(frozen=True)
class Curve:
    """All steps on one data set; `n` samples each. note: what the runs say of their samples, if anything."""

    data: str
    metric: str
    n: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def count_runs(mixed: Mixed) -> int:
    """How many runs one `replacement` makes: one a step and threat model."""
    return 2 * len(mixed.steps())


def replacement(mixed: Mixed, settings: Evaluation, out: Path, *, command: str, advance: Advance) -> Curve:
    """Score every step into run folders under `out`, which are resumed where they are there already.

    settings: one evaluation with an adaptive attack; both threat models see the same samples, budget and steps. The
    transfer images are made once, on the original model. They are not its adaptive ones: an adaptive attack on a
    classifier ends where it has fooled this one, and such an image fools no other. advance(samples done, remark).

    UserError as for `eval_tasks.run.evaluate.evaluate`, also for folders of other settings.
    """
    plan = settings.attack
    assert plan is not None
    transfer = replace(settings, attack=replace(plan, threat="transfer"))
    source = out / "00-original-transfer"
    rows = []
    notes: dict[str, None] = {}
    last: Run | None = None
    for number, step in enumerate(mixed.steps()):
        model = mixed.take(step.parts)
        clean: dict[str, Scored] = {}

        def run(
            threat: str,
            its: Evaluation,
            *,
            number: int = number,
            step: str = step.name,
            model: Any = model,
            clean: dict[str, Scored] = clean,
        ) -> Run:
            def tell(done: int, remark: str = "") -> None:
                advance(done, " ".join(filter(None, (f"{step}, {threat}", remark))))

            folder = out / f"{number:02d}-{step}-{threat}"
            shared: dict[str, Any] = {"resume": True, "command": command, "advance": tell, "clean": clean}
            if threat == "transfer":
                # it shares the weights: crafting on it is for the original step alone, later it but names the source
                shared |= {"surrogate": mixed.original, "images_from": source if number else None}
            made = evaluate(model, its.task, its.attack, folder, its.options, **shared)
            write_report([made], folder / "report.html")
            return made

        adaptive = run("adaptive", settings)
        other = run("transfer", transfer)
        notes |= dict.fromkeys(str(note) for note in adaptive.metrics["notes"] if "attack" in note or "failed" in note)
        rows.append(
            Row(
                step.name,
                *(_score(*pair) for pair in ((adaptive, "clean"), (other, "adversarial"), (adaptive, "adversarial"))),
            )
        )
        last = adaptive
    mixed.take(())
    assert last is not None
    return Curve(
        str(settings.options.data), str(last.metrics["metric"]), int(last.metrics["n"]), tuple(rows), tuple(notes)
    )


def _score(run: Run, column: str) -> Score:
    found = run.metrics[column]
    return Score(float(found[run.metrics["metric"]]), *(float(end) for end in found["ci95"]))
