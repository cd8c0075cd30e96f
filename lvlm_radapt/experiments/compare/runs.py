"""The runs of a comparison: every row on every column, clean, under transfer and under adaptive attack."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eval_tasks.config.presets import load_protocol
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.data import Sample
from eval_tasks.report.html_templates import write_json
from eval_tasks.run.options import EvalOptions, Evaluation, select_samples
from eval_tasks.run.records import Run
from eval_tasks.run.threads import on_recorded_threads
from eval_tasks.tasks.make_task import make_task
from eval_tasks.tasks.text import TextTask
from lvlm_radapt.embedded.dataset import CLASSES
from lvlm_radapt.experiments.compare.models import RowModels, folder_of
from lvlm_radapt.experiments.compare.preset import Column, Comparison, OwnSet, SceneSet, named_attack
from lvlm_radapt.experiments.engine import Crossed, Key, Sweep, Trial
from lvlm_radapt.experiments.rows import slug
from lvlm_radapt.training.images import image_files
from lvlm_radapt.utils.atomic_folder import check_own_folder, claimed
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json
from lvlm_radapt.utils.progress import Announce

PLAN = "plan.json"
OURS = frozenset(
    {PLAN, "runs", "data", "models", "comparison.json", "comparison.csv", "comparison.md", "comparison.html"}
)


@dataclass(frozen=True)
class ComparisonRuns:
    """A finished comparison: the run of every row, column, threat model and budget. crossed: the runs on images that
    were made for another row."""

    comparison: Comparison
    runs: Mapping[Key, Run]
    crossed: Mapping[Crossed, Run] = field(default_factory=dict)

    def any_run(self, row: str, column: str) -> Run:
        """One of the row's runs in that column: their clean answers are the same."""
        return self.runs[row, column, "adaptive", self.comparison.eps[0]]

    def attacks_on(self, row: str, column: str, eps: str) -> list[Run]:
        """Every run of a row at one budget on the samples of a column, those of columns with other attacks too."""
        asked = {c.title: (c.task, c.model, c.set) for c in self.comparison.columns}
        alike = {title for title, what in asked.items() if what == asked[column]}
        own = [run for (name, title, _, at), run in self.runs.items() if (name, at) == (row, eps) and title in alike]
        others = [
            run for (name, title, _, at), run in self.crossed.items() if (name, at) == (row, eps) and title in alike
        ]
        return own + others


@on_recorded_threads
def run_comparison(
    comparison: Comparison, out: Path, *, announce: Announce, resume: bool = False, command: str = "", **place: Any
) -> ComparisonRuns:
    """Make every row's model and score it; what is in `out` already is not done again (`resume`).

    Every row sees the same samples under the same settings, and the same transfer images, which are crafted once on the
    undefended model; adaptive images are crafted on each row's own model. place: keywords of `load_any`.

    UserError, before anything is made, for a foreign folder, one of another comparison, and a row or column that needs
    a model which is not there.
    """
    check_own_folder(out, OURS, resume=resume)
    models = RowModels(comparison, load_protocol(comparison.protocol), out, announce, **place)
    models.check()
    trials = [_trial(column, eps, comparison, out, place) for column in comparison.columns for eps in comparison.eps]
    asked = _own_samples(comparison, trials)
    models.check_fit(asked)
    sizes = {c.title: len(asked.get(c.title, ())) or comparison.samples for c in comparison.columns}

    def folder(row: str, trial: Trial, threat: str) -> Path:
        return out / "runs" / slug(row) / f"{slug(trial.column)}-{threat}-{slug(trial.eps)}"

    with claimed(out):
        _keep_plan(comparison, out)
        for column in comparison.columns:
            models.data(column.set)
        sweep = Sweep(comparison.rows[0].name, models.undefended(), folder, command=command)
        for row in comparison.rows:
            with models.opened(row) as opened:
                tell = announce(row.name, sum(sweep.count([row.name], [t]) * sizes[t.column] for t in trials))
                for trial in trials:
                    sweep.score(row.name, trial, opened[trial.base], tell)
        for row in comparison.rows if comparison.cross else ():
            with models.opened(row) as opened:
                others = len(comparison.rows) - 1
                tell = announce(f"{row.name}, images of other rows", sum(others * sizes[t.column] for t in trials))
                for trial in trials:
                    sweep.cross(row.name, trial, opened[trial.base], tell)
    return ComparisonRuns(comparison, sweep.runs, sweep.crossed)


def _trial(column: Column, eps: str, comparison: Comparison, out: Path, place: dict[str, Any]) -> Trial:
    protocol = load_protocol(comparison.protocol)
    attack = make_attack(
        named_attack(column.attack, protocol),
        eps=eps,
        steps=comparison.steps,
        early_exit=column.early_exit,
        device=str(place.get("device", "cpu")),
        dtype=place.get("dtype", torch.float32),
    )
    if attack is None or attack.threat != "adaptive":
        raise UserError(f"column {column.title}: --attack {column.attack} is not white-box: choose e2e or apgd-ce")
    task = make_task(column.task, protocol)
    if attack.ends_at_zero and isinstance(task, TextTask):
        task.check_early_exit()
    data = folder_of(comparison, column.set, out)
    scenes = isinstance(comparison.sets[column.set], SceneSet)
    options = EvalOptions(
        data=data / CLASSES if scenes and column.task == "imagefolder" else data,
        samples=comparison.samples,
        seed=protocol.seed,
    )
    return Trial(column.model, column.title, eps, Evaluation(task, attack, options, protocol))


def _own_samples(comparison: Comparison, trials: Sequence[Trial]) -> dict[str, list[Sample]]:
    """By column title, the samples of the user's own data that are scored.

    UserError for data or images that are missing, and for a row that is trained on a folder that holds such an image.
    """
    found: dict[str, list[Sample]] = {}
    for column in comparison.columns:
        if isinstance(comparison.sets[column.set], OwnSet):
            asked = next(trial.asked for trial in trials if trial.column == column.title)
            found[column.title] = select_samples(asked.task, asked.options).samples
    images = [sample.image for samples in found.values() for sample in samples]
    tested = {image.resolve() for image in images if isinstance(image, Path)}
    for row in comparison.rows:
        for source in (row.learn, row.finetune):
            own = None if source is None else comparison.sets[source.set]
            if isinstance(own, OwnSet):
                folder = Path(own.folder).expanduser()
                image_files(folder, limit=1)
                shared = next((image for image in tested if image.is_relative_to(folder.resolve())), None)
                if shared is not None:
                    raise UserError(
                        f"row {row.name} is trained on {folder}, which holds {shared.name}: that image is scored"
                    )
    return found


def _keep_plan(comparison: Comparison, out: Path) -> None:
    """Write plan.json, or find the same one there: rows made by two plans are no comparison."""
    wanted = json.loads(comparison.model_dump_json())
    if not (out / PLAN).is_file():
        write_json(out / PLAN, wanted)
        return
    # an older plan lacks what has come since
    optional = {name: one.default for name, one in Comparison.model_fields.items() if not one.is_required()}
    there = optional | read_json(out / PLAN)
    changed = [key for key in wanted if there.get(key) != wanted[key]]
    if changed:
        raise UserError(f"{out} holds a comparison with other {', '.join(changed)}: use another --out")
