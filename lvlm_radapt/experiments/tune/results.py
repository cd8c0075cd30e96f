"""What a sweep leaves behind: tune.json, points.csv, two figures, a page, and a table for the terminal."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import rich.table
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict
from rich.text import Text

from attacks.eps import budget_text
from eval_tasks.report.html_templates import data_uri, write_json, write_page, write_text
from eval_tasks.report.table_formats import METRICS
from eval_tasks.run.calibration import Calibration
from eval_tasks.run.environment import environment
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.experiments.tune.knobs import DEFAULT, point_text, settled
from lvlm_radapt.experiments.tune.measured import CELLS, numbers_of
from lvlm_radapt.experiments.tune.run import Tuning
from lvlm_radapt.plots.axes import png
from lvlm_radapt.plots.tuning import clean_robust_curves, tradeoff
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json, validated
from lvlm_radapt.utils.text_table import TextTable
from lvlm_radapt.utils.writing import write_whole

FORMAT, VERSION = "lvlm-radapt tuning", 1


def write_results(tuning: Tuning, out: Path, *, model: str, command: str) -> dict[str, Any]:
    """Write everything to `out` and return what tune.json holds. `model`: its name as the user gave it."""
    document = _document(tuning, out, model=model, command=command)
    write_text(out / "points.csv", _csv(document))
    best = None if tuning.choice.best is None else document["recommendation"]["best"]
    _draw(document, tuning, out, best)
    write_page(
        out / "tune.html",
        "tuning.html.j2",
        kicker="Choosing the knobs",
        title=f"{tuning.model}, {tuning.settings.task.name}",
        about=about(tuning),
        said=tuning.choice.said,
        beats=tuning.choice.beats,
        apart=kept_apart(tuning),
        recommended=document["recommendation"]["command"],
        curves=data_uri("image/png", (out / "curves.png").read_bytes()),
        tradeoff=data_uri("image/png", (out / "tradeoff.png").read_bytes()),
        undefended=tuning.undefended,
        rows=[
            (point_text(one.point), one.row, tuning.choice.best is not None and one.point == tuning.choice.best.point)
            for one in tuning.measured
        ],
        metric=METRICS.get(tuning.undefended.metric, tuning.undefended.metric),
        command=command,
    )
    write_json(out / "tune.json", document)
    return document


def about(tuning: Tuning) -> str:
    """What was measured: model, task, attack, threat models, budget, steps, n."""
    plan = tuning.settings.attack
    assert plan is not None  # run_tune asks for one
    steps = f", {plan.gradient_steps} steps" if plan.gradient_steps else ""
    return (
        f"{tuning.model}, {tuning.settings.task.name} ({tuning.undefended.metric_text}), {plan.name}, "
        f"{plan.norm} {budget_text(plan.eps, plan.norm)}{steps}, transfer and adaptive, "
        f"n = {tuning.calibration.n}, preset {tuning.settings.protocol.name}, seed {tuning.settings.options.seed}"
    )


def kept_apart(tuning: Tuning) -> str:
    """What the numbers are not."""
    return (
        f"These are {tuning.calibration.n} calibration samples from {tuning.settings.options.data}: settings are "
        "chosen on them, so no score here is a test score. Evaluate the robustified model on other images; eval says "
        "so where it is not."
    )


def table(tuning: Tuning) -> rich.table.Table:
    """For the terminal: a line a setting, the best within the clean loss marked."""
    own, best = tuning.undefended, tuning.choice.best
    rows: list[tuple[Text | str, ...]] = [("undefended", own.clean.lines(), "n/a", own.adaptive.lines(), "n/a")]
    for one in tuning.measured:
        chosen = best is not None and one.point == best.point
        label = Text(point_text(one.point), style="bold" if chosen else "")
        if chosen:
            label.append("\nbest within the clean loss", style="yellow")
        rows.append((label, *(one.cell(name).lines() for name in ("clean", "transfer", "adaptive", "gain"))))
    return TextTable(("Setting", "Clean", "Transfer", "Adaptive", "Gain"), rows).to_rich(min_width=14)


class _Recommendation(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    radapt: dict[str, Any] | None
    said: str


class _Tuned(BaseModel):
    """What is read of a tune.json."""

    model_config = ConfigDict(strict=True, extra="ignore")

    recommendation: _Recommendation
    calibration: Calibration


def recommended(folder: Path) -> tuple[RAdaptConfig, Calibration]:
    """The settings that a tuning recommends, and what it calibrated on.

    Raises UserError for a folder that holds none, a damaged one, and a tuning that recommends nothing.
    """
    path = folder / "tune.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no finished tuning: it has no tune.json")
    content = read_json(path)
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise UserError(f"{path} is no tuning that this program reads: run tune again")
    tuning = validated(_Tuned, content, path)
    if tuning.recommendation.radapt is None:
        raise UserError(f"{path} recommends no setting: {tuning.recommendation.said}")
    try:
        return RAdaptConfig.from_dict(tuning.recommendation.radapt), tuning.calibration
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _document(tuning: Tuning, out: Path, *, model: str, command: str) -> dict[str, Any]:
    choice, plan = tuning.choice, tuning.settings.attack
    assert plan is not None
    best = choice.best
    row = tuning.undefended
    apply = ["lvlm-radapt", "robustify", model, "--tuned", str(out), "--out", "DIR"]
    if tuning.tower is not None:
        apply += ["--tower", tuning.tower]
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "environment": environment(),
        "model": tuning.model,
        "task": tuning.settings.task.name,
        "metric": row.metric,
        "preset": tuning.settings.protocol.name,
        "attack": plan.to_dict(),
        "n": tuning.calibration.n,
        "seed": tuning.settings.options.seed,
        "calibration": tuning.calibration.model_dump(),
        "max_clean_loss_percent": tuning.max_loss,
        "undefended": {"clean": numbers_of(row.clean), "adaptive": numbers_of(row.adaptive)},
        "points": [one.to_dict() for one in tuning.measured],
        "recommendation": {
            "said": choice.said,
            "beats_undefended": choice.beats,
            "settings_within_clean_loss": choice.allowed,
            "best": None if best is None else best.to_dict()["name"],
            "gain_widened": choice.gain,
            "radapt": best.point.to_dict() if best is not None and choice.beats else None,
            "command": shlex.join(apply) if choice.beats else None,
        },
    }


def _csv(document: dict[str, Any]) -> str:
    """Numbers at full precision, a line a setting, the undefended model first; what has no number is empty."""
    head = ["setting", "cutoff", "alpha", "mix", *(f"{name}{end}" for name in CELLS for end in ("", "_low", "_high"))]
    rows = []
    undefended = {"name": "undefended", "cutoff": "", "alpha": "", "mix": "", **document["undefended"]}
    for point in (undefended, *document["points"]):
        cells = [point.get(name, {"value": None, "low": None, "high": None}) for name in CELLS]
        numbers = [cell[key] for cell in cells for key in ("value", "low", "high")]
        cutoff = "none" if point["cutoff"] is None else point["cutoff"]
        rows.append([point["name"], cutoff, point["alpha"], point["mix"], *numbers])
    return TextTable(head, rows).to_csv()


def _draw(document: dict[str, Any], tuning: Tuning, out: Path, best: str | None) -> None:
    """curves.png and tradeoff.png."""
    by_point = {one.point: row for one, row in zip(tuning.measured, document["points"], strict=True)}
    knobs, undefended = tuning.knobs, document["undefended"]
    label = tuning.undefended.metric_text
    panels = [("cutoff", f"cutoff, at alpha {DEFAULT.alpha:g}", [DEFAULT, *knobs.cutoff_line()])] + [
        ("alpha", f"alpha ({mix}), at cutoff {DEFAULT.cutoff:g}", knobs.alpha_line(mix)) for mix in knobs.mixes
    ]
    with matplotlib.rc_context({"font.size": 9.5}):
        figure = Figure(figsize=(4.3 * len(panels), 3.9), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for place, (knob, title, line) in zip(axes, panels, strict=True):
            rows = [by_point[point] for point in dict.fromkeys(map(settled, line)) if point in by_point]
            if not rows:
                continue
            clean_robust_curves(rows, place, knob=knob, undefended=undefended, label=label)
            place.set_title(title, fontsize=10.5, loc="left")
            if place is not axes[0]:
                place.set_ylabel("")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        write_whole(out / "curves.png", png(figure))
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        place = figure.add_subplot()
        tradeoff(document["points"], place, undefended=undefended, best=best, max_loss=tuning.max_loss, label=label)
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        write_whole(out / "tradeoff.png", png(figure))
