"""Pack a comparison with `cross: true`, or adaptive runs of `eval`, and print its numbers from the pack.

A pack has no images. It holds the plan, and of every run run.json, metrics.json and a score a sample. So every number
of docs/results.md that is said to come from here can be computed again. Rows called "NAME, seed 0", "NAME, seed 1" are
one defence: its score of a sample is the mean over them. Intervals: bootstrap over images, paired for the gain.
Runs of `eval` have no plan: FOLDER has a folder for each model, with the model's runs anywhere in it. The table has a
line for each budget and number of steps, and a column for each of these folders.

Run: python benchmarks/evidence.py pack FOLDER NAME, then: python benchmarks/evidence.py [NAME...]
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import lzma
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attacks.eps import eps_text
from eval_tasks.metrics import paired_difference_ci
from eval_tasks.metrics.intervals import score_ci
from eval_tasks.run.records import read_run
from lvlm_radapt.experiments.compare.preset import Comparison
from lvlm_radapt.experiments.rows import slug
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.writing import write_whole

Scores = NDArray[np.float64]
PACKS = Path(__file__).parent / "evidence"
FIELDS = ("id", "image", "clean", "adversarial")
PLAN, METRICS = "plan.json", "metrics.json"
ENDING = ".tar.xz"  # a pack's files are much alike: compressed as one they take a tenth of a zip


def main() -> None:
    """The command line of the script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="pack FOLDER NAME | NAME", help="all packs if left out")
    words = parser.parse_args().words
    try:
        if words[:1] == ["pack"] and len(words) == 3:
            print(pack(Path(words[1]), PACKS / f"{words[2]}{ENDING}"))
            return
        for name in words or sorted(one.name.removesuffix(ENDING) for one in PACKS.glob(f"*{ENDING}")):
            print("\n".join(tables(PACKS / f"{name}{ENDING}")))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def pack(folder: Path, file: Path) -> Path:
    """Write the comparison or the runs in `folder` to `file`.

    UserError for a folder that holds neither a finished comparison nor, where there is no plan of one, a run; for a
    comparison without `cross: true`; and for a run without an attack. Then no file is written.
    """
    plan, runs = folder / PLAN, sorted(folder.rglob(METRICS))
    if not runs or plan.is_file() != (folder / "comparison.json").is_file():
        raise UserError(f"{folder} holds no finished comparison or run: run lvlm-radapt compare or eval first")
    if plan.is_file() and not Comparison.model_validate_json(plan.read_text()).cross:
        raise UserError(f"{plan} has no cross: true, so no row saw the images of others: compare with it")
    around = f"{folder.resolve().parent}/"
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:xz") as made:
        if plan.is_file():
            _add(made, PLAN, plan.read_text())
        for path in runs:
            run, at = read_run(path.parent), path.parent.relative_to(folder)
            for name in ("run.json", METRICS):
                _add(made, f"{at}/{name}", (path.parent / name).read_text().replace(around, ""))
            lines = io.StringIO()
            table = csv.writer(lines, lineterminator="\n")
            table.writerow(FIELDS)
            for sample in run.samples:
                if sample.adversarial is None:
                    raise UserError(f"run {path.parent} has no attacked images: pack runs with an attack alone")
                table.writerow([sample.id, sample.image, sample.clean.score, sample.adversarial.score])
            _add(made, f"{at}/scores.csv", lines.getvalue())
    return write_whole(file, whole.getvalue())


def _add(made: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    made.addfile(entry, io.BytesIO(data))


def texts(file: Path) -> dict[str, str]:
    """The text of every file of a pack, by its name. UserError for a pack that is not there or is damaged."""
    if not file.is_file():
        raise UserError(f"there is no {file}: pack a comparison first")
    try:
        with tarfile.open(file, "r:xz") as packed:
            return {entry.name: found.read().decode() for entry in packed if (found := packed.extractfile(entry))}
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{file} is no pack, or is damaged: pack it again") from error


class Scored(NamedTuple):
    """One run: a score a sample, in the order of the file."""

    images: list[str]
    clean: Scores
    attacked: Scores
    metric: str


def tables(file: Path) -> Iterator[str]:
    """A Markdown table for each budget, model and task, of runs without a plan one for all. UserError as `texts`."""
    packed, title = texts(file), file.name.removesuffix(ENDING)
    names = [name.removesuffix("/scores.csv") for name in packed if name.endswith("/scores.csv")]
    runs = {name: _scored(packed, name) for name in names}
    if PLAN not in packed:
        yield from _curves(title, {name: json.loads(packed[f"{name}/run.json"]) for name in names}, runs)
        return
    plan = Comparison.model_validate_json(packed[PLAN])
    groups: dict[tuple[str, str, str], list[str]] = {}
    for column in plan.columns:
        groups.setdefault((column.model, column.task, column.set), []).append(column.title)
    for eps, ((model, task, _), titles) in itertools.product(plan.eps, groups.items()):
        n = len(runs[_own(plan.rows[0].name, titles[0], eps)].images)
        yield f"\n{title}: {model}, {task}, Linf {eps}, {plan.steps} steps, n = {n}\n"
        yield from _table(plan, runs, titles, eps)


def _scored(packed: Mapping[str, str], name: str) -> Scored:
    rows = list(csv.DictReader(io.StringIO(packed[f"{name}/scores.csv"])))
    clean, attacked = (np.array([float(row[part]) for row in rows]) for part in FIELDS[2:])
    metric = json.loads(packed[f"{name}/{METRICS}"])["metric"]
    return Scored([row["image"] for row in rows], clean, attacked, metric)


def _curves(title: str, settings: dict[str, dict[str, Any]], runs: dict[str, Scored]) -> Iterator[str]:
    """Every run's adaptive score, by budget and number of steps."""
    attacks = {name: one["attack"] for name, one in settings.items()}
    at = {(one["eps"], one["steps"], name.split("/")[0]): runs[name] for name, one in attacks.items()}
    models = list(dict.fromkeys(model for *_, model in at))
    shown = {model: run for (*_, model), run in at.items()}
    one = next(iter(settings.values()))
    words = [one["task"], *(one["attack"][key] for key in ("name", "threat", "norm"))]
    yield f"\n{title}: {', '.join(words)}, n = {len(shown[models[0]].images)}\n"
    yield f"| eps | steps | {' | '.join(models)} |"
    yield "|---:|---:|" + "---:|" * len(models)
    yield f"| clean | | {' | '.join(_interval(shown[model].clean, shown[model]) for model in models)} |"
    for eps, steps in sorted({(eps, steps) for eps, steps, _ in at}):
        found = [at.get((eps, steps, model)) for model in models]
        cells = ["" if run is None else _interval(run.attacked, run) for run in found]
        yield f"| {eps_text(eps)} | {steps} | {' | '.join(cells)} |"


def _table(plan: Comparison, runs: dict[str, Scored], titles: Sequence[str], eps: str) -> Iterator[str]:
    seeds: dict[str, list[str]] = {}
    for row in plan.rows:
        seeds.setdefault(row.name.partition(", seed ")[0], []).append(row.name)
    yield f"| defence | seeds | clean | {' | '.join(titles)} | other rows' images | worst of all | gain of the worst |"
    yield "|---|---:|" + "---:|" * (len(titles) + 4)
    base: Scores | None = None
    for name, rows in seeds.items():
        parts = [_parts(runs, row, titles, eps) for row in rows]
        any_run = runs[_own(rows[0], titles[0], eps)]
        means = [np.mean(one, axis=0) for one in zip(*parts, strict=True)]
        base = means[-1] if base is None else base
        gain = ""
        if name != plan.rows[0].name:
            low, high = paired_difference_ci(means[-1].tolist(), base.tolist(), images=any_run.images)
            gain = f"{(means[-1] - base).mean():+.1f} [{low:+.1f}, {high:+.1f}]"
        cells = [_interval(one, any_run) for one in means]
        yield f"| {name} | {len(rows)} | {' | '.join(cells)} | {gain} |"


def _parts(runs: dict[str, Scored], row: str, titles: Sequence[str], eps: str) -> list[Scores]:
    """Of one row a score a sample: clean, under each attack, on images of other rows, and the worst of all."""
    own = [runs[_own(row, title, eps)] for title in titles]
    crossed = tuple(f"runs/{slug(row)}/{slug(title)}-transfer-{slug(eps)}" for title in titles)  # the first row's too
    others = [run.attacked for name, run in runs.items() if name.startswith(crossed)]
    adaptive = [run.attacked for run in own]
    return [own[0].clean, *adaptive, np.min(others, axis=0), np.min(adaptive + others, axis=0)]


def _own(row: str, title: str, eps: str) -> str:
    return f"runs/{slug(row)}/{slug(title)}-adaptive-{slug(eps)}"


def _interval(scores: Scores, run: Scored) -> str:
    low, high = score_ci(scores.tolist(), run.metric, run.images)
    return f"{scores.mean():.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
