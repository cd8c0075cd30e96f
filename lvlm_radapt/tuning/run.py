"""The sweep: a model opened once, two run folders a setting, and what comes out of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval_tasks.crafting.attack import Threat
from eval_tasks.report.page import write_report
from eval_tasks.report.table_formats import Row
from eval_tasks.run.calibration import Calibration, calibration_on
from eval_tasks.run.evaluate import evaluate
from eval_tasks.run.options import Evaluation, select_samples
from eval_tasks.run.records import Run, Scored
from eval_tasks.run.threads import on_recorded_threads
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import remove
from lvlm_radapt.loading.load import is_robustified, load_any
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.models.robustify import robustify
from lvlm_radapt.tuning.choose import Choice, best_pair, choose
from lvlm_radapt.tuning.knobs import Sweep, point_name
from lvlm_radapt.tuning.measured import Measured, measure, undefended_row
from lvlm_radapt.utils.atomic_folder import check_own_folder, claimed
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.progress import Announce

RUNS = "runs"
OURS = frozenset({RUNS, "tune.json", "points.csv", "curves.png", "tradeoff.png", "tune.html"})


@dataclass(frozen=True)
class Tuning:
    """A finished sweep. `measured` in the order it was tried, `undefended` under its own adaptive attack."""

    model: str
    tower: str | None
    settings: Evaluation
    sweep: Sweep
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
    sweep: Sweep,
    max_loss: float,
    announce: Announce,
    tower: str | None = None,
    resume: bool = False,
    command: str = "",
    open_model: Callable[..., PixelModel] = load_any,
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
    selection = select_samples(settings.task, settings.options)
    samples = selection.samples
    calibration = calibration_on(samples, task=settings.task.name, data=settings.options.data)
    protocol = settings.protocol
    opened = open_model(
        model,
        tower=tower,
        **protocol.opening(),
        **place,
    )
    points = sweep.points()
    tell = announce(f"tune {Path(model).name} · {settings.task.name}", len(samples) * 2 * (len(points) + 2))
    clean: dict[str, Scored] = {}

    def score(name: str, threat: Threat, known: dict[str, Scored], **more: Any) -> Run:
        run = evaluate(
            opened,
            settings.task,
            replace(plan, threat=threat),
            out / RUNS / f"{name}-{threat}",
            settings.options,
            selection=selection,
            resume=True,
            command=command,
            advance=lambda done, text: tell(done, " · ".join(filter(None, (name, threat, text)))),
            clean=known,
            **more,
        )
        if not (run.path / "report.html").is_file():
            write_report([run], run.path / "report.html")
        return run

    with claimed(out):
        undefended = [score("undefended", "adaptive", clean)]
        if plan.for_one_model:  # images that just fool one model: made to last, they are others
            undefended.append(score("undefended", "transfer", clean, surrogate=opened))
        else:
            tell(len(samples), "")
        images = undefended[-1].path
        row = undefended_row(undefended[0])
        before = row.clean.value or 0.0

        def both(point: RAdaptConfig) -> Measured:
            known: dict[str, Scored] = {}
            robustify(opened, point)
            try:
                runs = [
                    score(point_name(point), "transfer", known, images_from=images),
                    score(point_name(point), "adaptive", known),
                ]
            finally:
                remove(opened.hf)
            return measure(point, undefended, *runs)

        measured = [both(point) for point in points]
        pair = best_pair(sweep, measured, clean=before, max_loss=max_loss)
        if pair not in points and (pair.cutoff is not None or pair.alpha):
            measured.append(both(pair))
        else:
            tell(2 * len(samples), "")
    choice = choose(measured, clean=before, max_loss=max_loss, n=len(samples))
    return Tuning(opened.label, tower, settings, sweep, max_loss, calibration, row, tuple(measured), choice)
