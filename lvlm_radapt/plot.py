"""Pictures of results, as matplotlib Axes: draw on axes of your own (`ax=`) or take the new ones, and save or style
them as any others. Nothing is averaged or filled in here: what is drawn is what was measured.
"""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.axes import Axes

from attacks.eps import eps_text
from eval_tasks.report.build_table import tables
from eval_tasks.report.figures import points
from eval_tasks.run.records import Run, read_run
from lvlm_radapt.plots.axes import TEXT, axes_or_new
from lvlm_radapt.plots.curves import Curve, draw_curves, finish_eps, replacement_curve
from lvlm_radapt.plots.images import attention_map, sample_triplet
from lvlm_radapt.plots.matrices import cka_heatmap, spectral_shift
from lvlm_radapt.plots.tuning import clean_robust_curves, tradeoff
from lvlm_radapt.utils.errors import UserError

__all__ = [
    "attention_map",
    "cka_heatmap",
    "clean_robust_curves",
    "replacement_curve",
    "sample_triplet",
    "score_against_eps",
    "spectral_shift",
    "tradeoff",
]

_COLOURS = ("#8a919c", "#b3452c", "#2f6db3", "#2c7a55", "#8a6100", "#7a4a9c")


def score_against_eps(*runs: str | Path | Run, ax: Axes | None = None) -> Axes:
    """Scores of finished runs against eps: a colour a model, adaptive solid and transfer dashed, bands of 95 %.

    runs: run folders (or what `eval_tasks.run.records.read_run` made of them) of one preset, task and attack (and
    surrogate, if any), with any models, threat models and eps. eps 0 is the clean score. Scores are in the metric's
    unit (CIDEr x100, percent); eps in [0, 1] pixel units of the model's canvas. The title says what was run, with its
    steps and n.
    ax: where to draw; None makes a new pyplot figure. Returns the axes; each line's label is `MODEL, THREAT`.
    Raises UserError for runs that cannot be read, are not attacked or should not share a picture.
    """
    made = tables([run if isinstance(run, Run) else read_run(Path(run)) for run in runs])
    rows = [row for table in made.values() for row in table.rows if row.eps is not None and row.attack != "noise"]
    if not rows:
        raise UserError("there is nothing to draw against eps: give runs with an attack")
    kinds = {(row.task, row.attack, row.norm, row.steps, row.target, row.variant, row.n) for row in rows}
    if len(made) > 1 or len(kinds) > 1:
        told = {f"{preset}, {row.task}, {row.attack_text}, n = {row.n}" for preset in made for row in made[preset].rows}
        raise UserError(f"runs of one preset, task and attack share a picture, not {'; '.join(sorted(told))}")
    models = _names(list(dict.fromkeys(row.model for row in rows)))
    curves = []
    for place, (model, name) in enumerate(models.items()):
        own = [row for row in rows if row.model == model]
        colour = _COLOURS[place % len(_COLOURS)]
        for threat, style in (("transfer", "--"), ("adaptive", "-")):
            curves.append(Curve(f"{name}, {threat}", points(own, threat, from_clean=True), colour, style))
    axes = axes_or_new(ax)
    draw_curves(axes, curves)
    first = rows[0]
    finish_eps(axes, {row.eps: eps_text(row.eps, row.norm) for row in rows if row.eps}, first.metric_text)
    steps = f", {first.steps} steps" if first.steps else ""
    axes.set_title(f"{first.task}, {first.attack} {first.norm}{steps}, n = {first.n}", color=TEXT, fontsize=10)
    axes.legend(
        frameon=False, labelcolor=TEXT, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.18), handlelength=2.6
    )
    return axes


def _names(models: list[str]) -> dict[str, str]:
    """What each model is called in the legend: without the defence's settings, where that is clear."""
    short = {model: re.sub(r"( \+ R-Adapt) \(.*\)$", r"\1", model) for model in models}
    shared = [*short.values()]
    return {model: name if shared.count(name) == 1 else model for model, name in short.items()}
