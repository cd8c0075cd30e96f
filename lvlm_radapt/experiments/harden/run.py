"""The search itself: prepare and time it, score the candidates, judge the best, and write it where it helps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from eval_tasks.audit.findings import Audit
from eval_tasks.audit.suite import CHECKS
from eval_tasks.config.presets import FinetuneRecipe, load_protocol, load_recipe
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.metrics.intervals import LEAST
from eval_tasks.report.audit_page import write_audit
from eval_tasks.report.html_templates import write_json
from eval_tasks.report.table_formats import Cell, difference_cell
from eval_tasks.run.audit_model import audit_opened
from eval_tasks.run.evaluate import evaluate
from eval_tasks.run.options import EvalOptions, Evaluation, Selection, select_samples
from eval_tasks.run.records import Part, Run, images_of
from eval_tasks.run.threads import on_recorded_threads
from eval_tasks.tasks.make_task import make_task
from eval_tasks.tasks.text import TextTask
from lvlm_radapt.experiments.compare.models import RowModels
from lvlm_radapt.experiments.compare.preset import Comparison, named_attack
from lvlm_radapt.experiments.compare.words import comparison_of
from lvlm_radapt.experiments.engine import Sweep, Trial
from lvlm_radapt.experiments.harden.inputs import HARDENED, check_model, check_opened, check_training
from lvlm_radapt.experiments.harden.plan import AUDIT_SAMPLES, CANDIDATES, Costs, Sizes, fit
from lvlm_radapt.experiments.harden.split import SPLIT, Split, image_digest, link_images, split_data
from lvlm_radapt.experiments.harden.timing import ANSWERS_TIMED, answer_seconds, time_steps
from lvlm_radapt.experiments.harden.verdict import Candidate, Verdict, choose, judge
from lvlm_radapt.experiments.models import ModelFactory
from lvlm_radapt.experiments.rows import RowSpec, slug
from lvlm_radapt.loading.locate import EMBEDDED
from lvlm_radapt.models.base import LVLM, PixelModel
from lvlm_radapt.saving.export import export_model
from lvlm_radapt.saving.plain_weights import weight_bytes
from lvlm_radapt.training.learned_anchor import LearnSettings
from lvlm_radapt.utils.atomic_folder import check_own_folder, check_writable, claimed, new_folder
from lvlm_radapt.utils.budget import parse_eps
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json
from lvlm_radapt.utils.progress import Announce

PLAN, MODEL, AUDIT = "plan.json", "hardened", "audit"
OURS = frozenset({PLAN, SPLIT, MODEL, AUDIT, "runs", "data", "models", "report.html", "harden.json"})
AS_IT_IS = "as it is"
BATCH = 32
_PACKED = {None: 1, "8bit": 2, "4bit": 4}  # weights as they are written take so many times the room


SMALL = Sizes(samples=150, steps=20, tuning=250, anchor=60)
"""Of the embedded models; `tuning` is that of the recipe `scenes`."""


@dataclass(frozen=True)
class Search:
    """What a user chooses. samples, steps, train_steps: None for what fits the model: see `sizes`. also: another task
    of the same data, which tells what the winner costs there."""

    model: str
    task: str
    data: str
    images: str
    eps: str
    preset: str
    max_clean_loss: float
    samples: int | None = None
    steps: int | None = None
    train_steps: int | None = None
    image_count: int = 2000
    hours: float | None = None
    also: str | None = None

    def sizes(self) -> Sizes:
        """How much is done if there is time for it: less for the embedded models, whose search takes minutes."""
        small = self.model in EMBEDDED
        return Sizes(
            samples=self.samples or (SMALL.samples if small else load_protocol(self.preset).samples or 500),
            steps=self.steps or (SMALL.steps if small else 100),
            tuning=self.recipe().steps,
            anchor=self.train_steps or (SMALL.anchor if small else LearnSettings().steps),
        )

    def recipe(self) -> FinetuneRecipe:
        """How the vision tower is fine-tuned."""
        recipe = load_recipe("scenes" if self.model in EMBEDDED else "published")
        return recipe.changed(eps=parse_eps(self.eps), steps=self.train_steps)

    def evaluation(self, attack: str, sizes: Sizes, place: Mapping[str, Any], **options: Any) -> Evaluation:
        """On samples of the data, under that attack. UserError as for `make_task` and `make_attack`."""
        protocol = load_protocol(self.preset)
        made = make_attack(
            named_attack(attack, protocol),
            eps=self.eps,
            steps=sizes.steps,
            device=str(place["device"]),
            dtype=place["dtype"],
        )
        chosen = EvalOptions(data=Path(self.data), seed=protocol.seed, batch_size=BATCH, **options)
        return Evaluation(make_task(self.task, protocol), made, chosen, protocol)

    def other(self, sizes: Sizes, known: Container[str]) -> Evaluation | None:
        """The second task without an attack, on images that are not among the `known` digests. UserError as for
        `make_task` and `select_samples`, and where there is no such image."""
        if self.also is None:
            return None
        protocol = load_protocol(self.preset)
        task = make_task(self.also, protocol)
        if not isinstance(task, TextTask):
            raise UserError(f"--also {self.also} is not answered in texts: choose a caption or question task")
        options = EvalOptions(data=Path(self.data), seed=protocol.seed, batch_size=BATCH, samples=sizes.samples)
        chosen = select_samples(task, options).samples
        ids = tuple(sample.id for sample in chosen if image_digest(sample.image) not in known)
        if not ids:
            raise UserError(f"--also {self.also}: every image is trained or chosen on, leave it out")
        return Evaluation(task, None, replace(options, samples=None, ids=ids), protocol)


@dataclass(frozen=True)
class Prepared:
    """A search that can begin. costs: None where it was begun before. cut: what the time limit took away, in words."""

    search: Search
    sizes: Sizes
    split: Split
    costs: Costs | None = None
    cut: str | None = None


@dataclass(frozen=True)
class Hardening:
    """A finished search. scored: the runs of the scoring part by (row, threat), empty where no candidate was chosen.
    gain: the paired difference of the winner to the model as it is, attacked; change: the same on clean images.
    seconds: of an answer, as it is and of the winner. other: clean runs of the second task, by row."""

    prepared: Prepared
    verdict: Verdict
    candidates: tuple[Candidate, ...]
    winner: str | None
    chosen_on: Mapping[tuple[str, str], Run]
    scored: Mapping[tuple[str, str], Run]
    gain: Cell | None = None
    change: Cell | None = None
    audit: Audit | None = None
    seconds: tuple[float, float] | None = None
    other: Mapping[str, Run] = field(default_factory=dict)


def prepare(search: Search, out: Path, *, resume: bool, **place: Any) -> Prepared:
    """Check the inputs, split the data and time a few steps. Nothing is written. What was begun in `out` goes on as it
    was planned (`resume`).

    UserError, one line, for inputs that no search can be made of, and for a time limit that is too short.
    """
    check_own_folder(out, OURS, resume=resume)
    if place["dtype"] == torch.float16:
        raise UserError("float16 has too small a range to train in: use --dtype bfloat16 or float32")
    sizes = search.sizes()
    if (out / SPLIT).is_file():
        return Prepared(search, _planned(search, out), Split.read(out / SPLIT))
    asked = search.evaluation("e2e", sizes, place, samples=sizes.samples)
    check_model(search.model, asked.task)
    search.other(sizes, ())
    selection, split = _parts(search, asked)
    if split.images[1] < LEAST:
        return Prepared(search, sizes, split)
    sizes = replace(sizes, samples=min(sizes.samples, len(selection.samples)))
    model = ModelFactory(**asked.protocol.opening(), **place).open(search.model)
    check_writable(out, room=2 * weight_bytes(model) * _PACKED[place.get("quantize")])
    check_opened(model, search.model)
    costs = time_steps(model, asked, selection, [Path(file) for file in split.training], search.recipe())
    fitted, cut = fit(costs, sizes, search.hours)
    if fitted.samples != sizes.samples:
        fewer = replace(asked, options=replace(asked.options, samples=fitted.samples))
        split = _parts(search, fewer)[1]
    return Prepared(search, fitted, split, costs, cut)


def _parts(search: Search, asked: Evaluation) -> tuple[Selection, Split]:
    selection = select_samples(asked.task, asked.options)
    photos = Path(search.images).expanduser()
    split = split_data(selection.samples, photos, count=search.image_count, seed=asked.options.seed)
    check_training(len(split.training), search.image_count, split.dropped, photos, search.recipe())
    return selection, split


def _planned(search: Search, out: Path) -> Sizes:
    there = read_json(out / PLAN)
    wanted = asdict(search)
    changed = [key for key in wanted if there.get("search", {}).get(key) != wanted[key]]
    if changed:
        raise UserError(f"{out} holds a search with other {', '.join(changed)}: use another --out")
    return Sizes(**there["sizes"])


@on_recorded_threads
def run_search(
    prepared: Prepared, out: Path, *, announce: Announce, resume: bool = False, command: str = "", **place: Any
) -> Hardening:
    """Train and score every candidate, judge the best one on the scoring part, and write it to `out` where it helps.

    What is in `out` already is not done again (`resume`). place: keywords of `load_any`. UserError as for `evaluate`
    and `finetune`.
    """
    search, sizes, split = prepared.search, prepared.sizes, prepared.split
    with claimed(out):
        training = out / "data" / "training"
        if not (out / SPLIT).is_file():
            link_images(split.training, training)
            write_json(out / PLAN, {"search": asdict(search), "sizes": asdict(sizes)})
            split.write(out / SPLIT)
        comparison = _comparison(search, sizes, training)
        models = RowModels(comparison, load_protocol(search.preset), out, announce, **place)
        base = models.bases[0]
        rows = {AS_IT_IS if row.plain else row.name: row for row in comparison.rows}

        def folder(row: str, trial: Trial, threat: str) -> Path:
            return out / "runs" / f"{trial.column}-{slug(row)}-{threat}"

        sweep = Sweep(AS_IT_IS, models.undefended(), folder, command=command)

        def score(row: str, trial: Trial, model: PixelModel) -> None:
            count = len(trial.asked.options.ids or ()) * sweep.count([row], [trial])
            sweep.score(row, trial, model, announce(f"{trial.column} · {row}", count))

        choosing = Trial(base, "choosing", "", search.evaluation("e2e", sizes, place, ids=split.choosing))
        for name, row in rows.items():
            with models.opened(row) as opened:
                score(name, choosing, opened[base])
        chosen_on = _runs(sweep, "choosing")
        attacked = {name: chosen_on[name, "adaptive"] for name in rows}
        candidates = tuple(
            Candidate(name, mean_score(run, "clean"), mean_score(run, "adversarial")) for name, run in attacked.items()
        )
        best = choose(candidates, search.max_clean_loss)
        if best is None:
            return Hardening(prepared, judge(split.images[1], None, None, None), candidates, None, chosen_on, {})
        scoring = Trial(base, "scoring", "", search.evaluation("ensemble", sizes, place, ids=split.scoring))
        elsewhere = search.other(sizes, _seen(choosing.asked, split))
        other: dict[str, Run] = {}

        def look(row: str, model: PixelModel) -> None:
            """How good it is at the second task."""
            if elsewhere is not None:
                folder = out / "runs" / f"also-{slug(row)}"
                tell = announce(f"{elsewhere.task.name} · {row}", len(elsewhere.options.ids or ()))
                other[row] = evaluate(model, elsewhere.task, None, folder, elsewhere.options, resume=True,
                                      command=command, advance=tell)  # fmt: skip

        with models.opened(rows[AS_IT_IS]) as opened:
            score(AS_IT_IS, scoring, opened[base])
            look(AS_IT_IS, opened[base])
        with models.opened(rows[best.name]) as opened:
            model = opened[base]
            score(best.name, scoring, model)
            look(best.name, model)
            few = search.evaluation("e2e", sizes, place, ids=split.scoring[:ANSWERS_TIMED])
            seconds = answer_seconds(model, models.undefended()[base], few)
            audit = _audited(model, search.evaluation("e2e", sizes, place, ids=split.scoring[:AUDIT_SAMPLES]), out,
                             announce=announce, command=command)  # fmt: skip
            scored = _runs(sweep, "scoring")
            before, after = scored[AS_IT_IS, "adaptive"], scored[best.name, "adaptive"]
            gain, change = _difference(after, before, "adversarial"), _difference(after, before, "clean")
            verdict = judge(split.images[1], best.name, gain.interval, audit.verdict)
            found = Hardening(prepared, verdict, candidates, best.name, chosen_on, scored, gain=gain, change=change,
                              audit=audit, seconds=seconds, other=other)  # fmt: skip
            if verdict.word == "HELPS" and not (out / MODEL).exists():
                weights = models.kept(next(r for r in rows.values() if r.finetune is not None), base, "weights")
                with models.writable(rows[best.name], base, model) as whole:
                    _write(rows[best.name], whole, weights, out / MODEL, {"base": search.model, "made": best.name})
    return found


def _seen(choosing: Evaluation, split: Split) -> set[str]:
    """Digests of the images that are trained or chosen on."""
    chosen = select_samples(choosing.task, choosing.options).samples
    return {image_digest(Path(file)) for file in split.training} | {image_digest(sample.image) for sample in chosen}


def _comparison(search: Search, sizes: Sizes, training: Path) -> Comparison:
    """The rows, as `compare` has them, of these sizes."""
    made = comparison_of(
        [search.model, *CANDIDATES],
        task=search.task,
        data=Path(search.data),
        preset=search.preset,
        attack="e2e",
        eps=[search.eps],
        steps=sizes.steps,
        samples=sizes.samples,
        images=training,
        image_count=search.image_count,
    )

    def sized(row: RowSpec) -> RowSpec:
        learn = row.learn and row.learn.model_copy(update={"steps": sizes.anchor, "eps": search.eps})
        tuned = row.finetune and row.finetune.model_copy(update={"steps": sizes.tuning, "eps": search.eps})
        return row.model_copy(update={"learn": learn, "finetune": tuned})

    return made.model_copy(update={"rows": [sized(row) for row in made.rows]})


def _audited(model: PixelModel, asked: Evaluation, out: Path, *, announce: Announce, command: str) -> Audit:
    """The full audit in `out/audit`, made once."""
    document = out / AUDIT / "audit.json"
    if not document.is_file():
        made = audit_opened(
            model,
            asked,
            selection=select_samples(asked.task, asked.options),
            advance=announce("audit", len(CHECKS)),
            command=command,
        )
        write_audit(made, out / AUDIT)
    return Audit.from_dict(read_json(document)["audit"])


def _write(row: RowSpec, model: PixelModel, weights: Path, folder: Path, told: Mapping[str, Any]) -> None:
    """The winner as a folder that transformers opens: plain weights, or an export where it has a defence inside."""
    note = json.dumps(told, indent=1) + "\n"
    if row.radapt is not None:
        assert isinstance(model, LVLM)
        export_model(model, folder, notes={HARDENED: note})
        return
    with new_folder(folder, room=weight_bytes(model)) as made:
        shutil.copytree(weights, made, dirs_exist_ok=True)
        (made / HARDENED).write_text(note, encoding="utf-8")


def _runs(sweep: Sweep, part: str) -> dict[tuple[str, str], Run]:
    return {(row, threat): run for (row, column, threat, _), run in sweep.runs.items() if column == part}


def mean_score(run: Run, part: Part) -> float:
    """In the metric's unit."""
    scores = run.scores(part).values()
    return sum(scores) / len(scores)


def _difference(after: Run, before: Run, part: Part) -> Cell:
    new, old = ([*run.scores(part).values()] for run in (after, before))
    return difference_cell(new, old, images_of(after.samples))
