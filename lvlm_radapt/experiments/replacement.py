"""Progressive replacement: scores of a model as more and more of its tower comes from the robust twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval_tasks.run.options import Evaluation
from eval_tasks.run.records import Run
from lvlm_radapt.experiments.engine import Sweep, Trial
from lvlm_radapt.experiments.mixing import Mixed
from lvlm_radapt.utils.progress import Announce


def replacement(mixed: Mixed, settings: Evaluation, out: Path, *, command: str, announce: Announce) -> dict[str, Any]:
    """Score every step into run folders under `out`, which are resumed where they are there already.

    settings: one evaluation with an adaptive attack; both threat models see the same samples, budget and steps. The
    transfer images are made once, on the original model, in a run of their own.

    Returns JSON values: the data, their metric and n, what the runs say of their samples (notes), and rows of a step
    and its scores. A score is value, low and high: the mean over the samples in the metric's unit (percent, CIDEr
    x100) and the ends of its 95 % interval. transfer: on images crafted on the original model; adaptive: on those
    crafted on this very mix.

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
        {
            "step": name,
            "clean": _score(adaptive[name], "clean"),
            "transfer": _score(sweep.runs[name, "", "transfer", ""], "adversarial"),
            "adaptive": _score(adaptive[name], "adversarial"),
        }
        for name in names
    ]
    told = [str(note) for run in adaptive.values() for note in run.metrics["notes"]]
    notes = dict.fromkeys(note for note in told if "attack" in note or "failed" in note)
    last = adaptive[names[-1]].metrics
    return {
        "data": str(settings.options.data),
        "metric": last["metric"],
        "n": last["n"],
        "notes": [*notes],
        "rows": rows,
    }


def _score(run: Run, column: str) -> dict[str, float]:
    found = run.metrics[column]
    low, high = map(float, found["ci95"])
    return {"value": float(found[run.metrics["metric"]]), "low": low, "high": high}
