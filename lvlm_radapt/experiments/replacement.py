"""Progressive replacement: scores of a model as more and more of its tower comes from the robust twin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eval_tasks.run.options import Evaluation
from eval_tasks.run.records import Run
from lvlm_radapt.experiments.engine import Sweep, Trial
from lvlm_radapt.experiments.mixing import Mixed
from lvlm_radapt.utils.progress import Announce


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


def replacement(mixed: Mixed, settings: Evaluation, out: Path, *, command: str, announce: Announce) -> Curve:
    """Score every step into run folders under `out`, which are resumed where they are there already.

    settings: one evaluation with an adaptive attack; both threat models see the same samples, budget and steps. The
    transfer images are made once, on the original model, in a run of their own.

    UserError as for `eval_tasks.run.evaluate.evaluate`, also for folders of other settings.
    """
    steps = {step.name: step for step in mixed.steps()}
    names = [*steps]
    trial = Trial("", "", "", settings)
    sweep = Sweep(
        names[0],
        {"": mixed.original},
        lambda row, _, threat: out / f"{names.index(row):02d}-{row}-{threat}",
        command=command,
        apart=True,
    )
    tell = announce(f"replacement on {settings.options.data.name}", 2 * len(steps) * (settings.options.samples or 0))

    def score(name: str) -> None:
        sweep.score(name, trial, mixed.take(steps[name].parts), lambda done, text: tell(done, f"{name} · {text}"))

    for name in names:
        score(name)
    mixed.take(())
    adaptive = {name: sweep.runs[name, "", "adaptive", ""] for name in names}
    rows = [
        Row(
            name,
            _score(adaptive[name], "clean"),
            _score(sweep.runs[name, "", "transfer", ""], "adversarial"),
            _score(adaptive[name], "adversarial"),
        )
        for name in names
    ]
    told = [str(note) for run in adaptive.values() for note in run.metrics["notes"]]
    notes = dict.fromkeys(note for note in told if "attack" in note or "failed" in note)
    last = adaptive[names[-1]].metrics
    return Curve(str(settings.options.data), str(last["metric"]), int(last["n"]), tuple(rows), tuple(notes))


def _score(run: Run, column: str) -> Score:
    found = run.metrics[column]
    return Score(float(found[run.metrics["metric"]]), *(float(end) for end in found["ci95"]))
