"""The sweep: a model opened once, two run folders a setting, and what comes out of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_tasks.report.build_table import comparison
from eval_tasks.report.table_formats import Row
from eval_tasks.run.calibration import Calibration, calibration_on
from eval_tasks.run.options import Evaluation, select_samples
from eval_tasks.run.records import Run
from eval_tasks.run.threads import on_recorded_threads
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.experiments.engine import Sweep, Trial
from lvlm_radapt.experiments.models import ModelFactory, defended
from lvlm_radapt.experiments.tune.choose import Choice, best_pair, choose
from lvlm_radapt.experiments.tune.knobs import Knobs, point_name
from lvlm_radapt.experiments.tune.measured import Measured, measure
from lvlm_radapt.loading.load import is_robustified
from lvlm_radapt.utils.atomic_folder import check_own_folder, claimed
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.progress import Announce

RUNS, UNDEFENDED = "runs", "undefended"
OURS = frozenset({RUNS, "tune.json", "points.csv", "curves.png", "tradeoff.png", "tune.html"})


@dataclass(frozen=True)
class Tuning:
    """A finished sweep. `measured` in the order it was tried, `undefended` under its own adaptive attack."""

    model: str
    tower: str | None
    settings: Evaluation
    knobs: Knobs
    max_loss: float
    calibration: Calibration
    undefended: Row
    measured: tuple[Measured, ...]
    choice: Choice


@on_recorded_threads
def run_tune(
    model: str,
    settings: Evaluation,
    out: Path,
    *,
    knobs: Knobs,
    max_loss: float,
    announce: Announce,
    tower: str | None = None,
    resume: bool = False,
    command: str = "",
    **place: Any,
) -> Tuning:
    """Score the undefended model and every setting of the sweep, clean, under transfer and under adaptive attack.

    settings: on the calibration set, with the white-box attack. Transfer images are made once, on the undefended model.
    max_loss: in percent of the undefended model's clean score. What is in `out` already is not done again (`resume`).
    place: keywords of `load_any`. UserError for a robustified model, an attack that is none, a foreign folder.
    """
    plan = settings.attack
    if plan is None or plan.threat != "adaptive" or plan.target is not None:
        raise UserError("tune needs an attack that makes answers wrong: choose e2e, embedding, ensemble or apgd-ce")
    if is_robustified(model):
        raise UserError(f"{model} has its settings already: tune the model it was made of")
    check_own_folder(out, OURS, resume=resume)
    samples = select_samples(settings.task, settings.options).samples
    calibration = calibration_on(samples, task=settings.task.name, data=settings.options.data)
    opened = ModelFactory(**settings.protocol.opening(), **place).open(model, tower)
    trial = Trial(model, "", "", settings)
    sweep = Sweep(UNDEFENDED, {model: opened}, lambda row, _, threat: out / RUNS / f"{row}-{threat}", command=command)
    points = knobs.points()
    count = sweep.count([UNDEFENDED, *map(point_name, points), "the best pair"], [trial])
    tell = announce(f"tune {Path(model).name} · {settings.task.name}", len(samples) * count)

    def score(row: str) -> list[Run]:
        return sweep.score(row, trial, opened, lambda done, text: tell(done, f"{row} · {text}"))

    with claimed(out):
        undefended = score(UNDEFENDED)
        row = comparison(undefended[:1]).rows[0]  # under its own adaptive attack
        before = row.clean.value or 0.0

        def both(point: RAdaptConfig) -> Measured:
            with defended(opened, point):
                return measure(point, undefended, *score(point_name(point)))

        measured = [both(point) for point in points]
        pair = best_pair(knobs, measured, clean=before, max_loss=max_loss)
        if pair not in points and (pair.cutoff is not None or pair.alpha):
            measured.append(both(pair))
        else:
            tell(2 * len(samples), "")
    choice = choose(measured, clean=before, max_loss=max_loss, n=len(samples))
    return Tuning(opened.label, tower, settings, knobs, max_loss, calibration, row, tuple(measured), choice)
