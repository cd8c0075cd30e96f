"""The runs of a comparison: every row on every column, clean, under transfer and under adaptive attack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eval_tasks.config.presets import load_attack, load_protocol
from eval_tasks.crafting.attack import Attack, Threat
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.report.html_templates import write_text
from eval_tasks.report.page import write_report
from eval_tasks.run.evaluate import evaluate
from eval_tasks.run.options import EvalOptions
from eval_tasks.run.records import Run, Scored
from eval_tasks.run.threads import on_recorded_threads
from eval_tasks.tasks.make_task import make_task
from eval_tasks.tasks.text import TextTask
from lvlm_radapt.comparison.models import Workshop
from lvlm_radapt.comparison.preset import Column, Comparison, RowSpec, slug
from lvlm_radapt.embedded.dataset import CLASSES
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.utils.atomic_folder import check_own_folder, claimed
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json
from lvlm_radapt.utils.progress import Announce

PLAN = "plan.json"
OURS = frozenset(
    {PLAN, "runs", "data", "models", "comparison.json", "comparison.csv", "comparison.md", "comparison.html"}
)

Key = tuple[str, str, Threat, str]
"""(row, column title, threat, eps)."""


@dataclass(frozen=True)
class Compared:
    """A finished comparison: the run of every row, column, threat model and budget."""

    comparison: Comparison
    runs: Mapping[Key, Run]

    def any_run(self, row: str, column: str) -> Run:
        """One of the row's runs in that column: their clean answers are the same."""
        return self.runs[row, column, "adaptive", self.comparison.eps[0]]


@on_recorded_threads
def run_comparison(
    comparison: Comparison,
    out: Path,
    *,
    announce: Announce,
    resume: bool = False,
    command: str = "",
    **place: Any,
) -> Compared:
    """Make every row's model and score it; what is in `out` already is not done again (`resume`).

    Every row sees the same samples under the same settings, and the same transfer images, which are crafted once on the
    undefended model; adaptive images are crafted on each row's own model. place: keywords of `load_any`.

    UserError, before anything is made, for a foreign folder, one of another comparison, and a row or column that needs
    a model which is not there.
    """
    protocol = load_protocol(comparison.protocol)
    check_own_folder(out, OURS, resume=resume)
    workshop = Workshop(comparison, protocol, out, announce, **place)
    workshop.check()
    plans = {(c.title, eps): _plan(c, eps, comparison, place) for c in comparison.columns for eps in comparison.eps}
    runs: dict[Key, Run] = {}
    undefended: dict[str, PixelModel] = {}

    def score(row: RowSpec, column: Column, eps: str, threat: Threat, model: PixelModel, **more: Any) -> None:
        plan = plans[column.title, eps]
        options = EvalOptions(data=_data(workshop, column), samples=comparison.samples, seed=protocol.seed)
        folder = out / "runs" / slug(row.name) / f"{slug(column.title)}-{threat}-{slug(eps)}"
        what = f"{column.title} {threat} {eps}"
        run = evaluate(
            model,
            make_task(column.task, protocol),
            replace(plan, threat=threat),
            folder,
            options,
            resume=True,
            command=command,
            advance=lambda done, text: tell(done, " · ".join(filter(None, (what, text)))),
            **more,
        )
        if not (folder / "report.html").is_file():
            write_report([run], folder / "report.html")
        runs[row.name, column.title, threat, eps] = run

    with claimed(out):
        _keep_plan(comparison, out)
        first = comparison.rows[0]
        for row in comparison.rows:
            # what has to be trained announces itself, before the row's own bar
            models = {name: workshop.open(row, name) for name in dict.fromkeys(c.model for c in comparison.columns)}
            if row is first:
                undefended = models
            tell = announce(row.name, len(plans) * 2 * comparison.samples)
            for column in comparison.columns:
                model, clean = models[column.model], dict[str, Scored]()
                for eps in comparison.eps:
                    score(row, column, eps, "adaptive", model, clean=clean)
                    # asked for by the runner where there is no defence that could sleep; it crafts only the first row's
                    surrogate = undefended[column.model] if model.radapt is None else None
                    if row is not first:
                        images = runs[first.name, column.title, _source(plans[column.title, eps]), eps].path
                        score(row, column, eps, "transfer", model, clean=clean, surrogate=surrogate, images_from=images)
                    elif _source(plans[column.title, eps]) == "transfer":
                        score(row, column, eps, "transfer", model, clean=clean, surrogate=surrogate)
                    else:
                        tell(comparison.samples, "")
    return Compared(comparison, runs)


def _source(plan: Attack) -> Threat:
    """Which of the undefended model's runs made the transfer images: its own adaptive one, unless that leaves an image
    alone as soon as the undefended model is wrong about it."""
    return "transfer" if plan.for_one_model else "adaptive"


def _plan(column: Column, eps: str, comparison: Comparison, place: dict[str, Any]) -> Attack:
    plan = make_attack(
        load_protocol(comparison.protocol).adapt(load_attack(column.attack)),
        eps=eps,
        steps=comparison.steps,
        early_exit=column.early_exit,
        device=str(place.get("device", "cpu")),
        dtype=place.get("dtype", torch.float32),
    )
    if plan is None or plan.threat != "adaptive":
        raise UserError(f"column {column.title}: --attack {column.attack} is not white-box: choose e2e or apgd-ce")
    task = make_task(column.task, comparison.protocol)
    if plan.ends_at_zero and isinstance(task, TextTask):
        task.check_early_exit()
    return plan


def _data(workshop: Workshop, column: Column) -> Path:
    folder = workshop.data(column.set)
    return folder / CLASSES if column.task == "imagefolder" else folder


def _keep_plan(comparison: Comparison, out: Path) -> None:
    """Write plan.json, or find the same one there: rows made by two plans are no comparison."""
    wanted = json.loads(comparison.model_dump_json())
    if not (out / PLAN).is_file():
        write_text(out / PLAN, json.dumps(wanted, indent=1) + "\n")
        return
    there = read_json(out / PLAN)
    changed = [key for key in wanted if there.get(key) != wanted[key]]
    if changed:
        raise UserError(f"{out} holds a comparison with other {', '.join(changed)}: use another --out")
