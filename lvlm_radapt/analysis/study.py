"""The whole analysis of a model and its robust twin: numbers, figures and one page in a folder.

analysis.json         every number, and what it was made with
*.csv                 the same as tables: cka, kernels, perturbations, attention, replacement
figures/*.png         the figures, and with -dark for dark pages
index.html            all of it on one self-contained page
runs/, runs-shifted/  a run folder for each step and threat model of the replacement
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from attacks.eps import budget_text
from eval_tasks.crafting.embedding import Embedding
from eval_tasks.report.html_templates import write_json, write_text
from eval_tasks.report.table_formats import METRICS
from eval_tasks.run.environment import environment
from eval_tasks.run.options import Evaluation
from eval_tasks.run.threads import on_recorded_threads
from lvlm_radapt.analysis import measure
from lvlm_radapt.analysis.page import analysis_page
from lvlm_radapt.experiments.mixing import Mixed
from lvlm_radapt.experiments.replacement import replacement
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.plots import analysis as plots
from lvlm_radapt.plots.axes import png
from lvlm_radapt.training.images import image_files, images_digest
from lvlm_radapt.utils.atomic_folder import check_own_folder, claimed
from lvlm_radapt.utils.progress import Announce
from lvlm_radapt.utils.text_table import TextTable
from lvlm_radapt.utils.writing import write_whole, writing

SCHEMA = 1
_TABLES = ("cka", "kernels", "perturbations", "attention", "replacement")
OURS = frozenset(
    {"analysis.json", "index.html", "figures", "runs", "runs-shifted", *(f"{name}.csv" for name in _TABLES)}
)


@dataclass(frozen=True)
class AnalysisSettings:
    """What is analysed. perturb: the attack on image tokens behind perturbations and attention maps; scored: the runs
    of the replacement, None to leave it out; shifted: the same on another data set."""

    images: Path
    image_count: int
    perturb: Embedding
    batch_size: int
    seed: int
    scored: Evaluation | None
    shifted: Evaluation | None
    command: str


@on_recorded_threads
def analyse(
    model: PixelModel,
    guide: PixelModel,
    asked: AnalysisSettings,
    out: Path,
    *,
    announce: Announce,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Write the analysis of `model` against `guide` to `out`, and return what analysis.json holds.

    A folder that an earlier analysis was stopped in is gone on with: finished runs of the replacement are kept, the
    rest is measured again. tell: gets a line about images that were left out.

    UserError before any work when the folder holds other files, no image can be opened, or the guide does not fit.
    """
    check_own_folder(out, OURS)
    mixed = Mixed(model, guide)
    files = image_files(asked.images, limit=asked.image_count, seed=asked.seed, tell=tell)
    with claimed(out):
        advance = announce("layers, spectra and attention", 4 * len(files))
        images = measure.open_images(mixed, files, asked.batch_size)
        cka = measure.cka(mixed, images, seed=asked.seed, advance=advance)
        attacks = measure.attacked(
            mixed, images, asked.perturb, seed=asked.seed, batch_size=asked.batch_size, advance=advance
        )
        kernels, perturbations = measure.kernels(mixed), measure.perturbations(images, attacks)
        attention, shown = measure.attention(mixed, images, attacks)
        curves = _curves(mixed, asked, out, announce)
        document = {
            "schema": SCHEMA,
            "command": asked.command,
            "model": mixed.original.label,
            "guide": guide.label,
            "notes": mixed.notes,
            "images": {"folder": str(asked.images), "n": len(files), "sha256": images_digest(files)},
            "attack": {**asked.perturb.to_dict(), "eps_text": budget_text(asked.perturb.eps, asked.perturb.norm)},
            "seed": asked.seed,
            "cka": cka,
            "kernels": kernels,
            "perturbations": perturbations,
            "attention": attention,
            "replacement": _described(asked, curves),
            "environment": environment(),
        }
        figures = _figures(document, shown)
        with writing(out):
            (out / "figures").mkdir(exist_ok=True)
        for name, (light, dark) in figures.items():
            write_whole(out / "figures" / f"{name}.png", light)
            write_whole(out / "figures" / f"{name}-dark.png", dark)
        for name, rows in _tables(document).items():
            table = TextTable([*rows[0]], [[*row.values()] for row in rows])
            write_text(out / f"{name}.csv", table.to_csv())
        write_json(out / "analysis.json", document)
        write_text(out / "index.html", analysis_page(document, figures))
    return document


def _curves(mixed: Mixed, asked: AnalysisSettings, out: Path, announce: Announce) -> dict[str, Any]:
    """By folder of their runs."""
    wanted = {"runs": asked.scored, "runs-shifted": asked.shifted}
    return {
        name: replacement(mixed, settings, out / name, command=asked.command, announce=announce)
        for name, settings in wanted.items()
        if settings is not None
    }


def _described(asked: AnalysisSettings, curves: Mapping[str, Any]) -> dict[str, Any] | None:
    if not curves or asked.scored is None or asked.scored.attack is None:
        return None
    plan = asked.scored.attack
    return {
        "task": asked.scored.task.name,
        "preset": asked.scored.protocol.name,
        "attack": {**plan.to_dict(), "eps_text": budget_text(plan.eps, plan.norm)},
        "transfer": "images crafted on the original model in a run of their own, shown to each mix",
        "curves": curves,
    }


def _figures(document: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> dict[str, tuple[bytes, bytes]]:
    """Name -> the PNG file for light pages and the one for dark pages."""
    cka, kernels, waves = document["cka"], document["kernels"], document["perturbations"]
    matrix = [[float("nan") if value is None else value for value in line] for line in cka["matrix"]]
    made: dict[str, Callable[[plots.Look], Figure]] = {
        "cka": lambda look: plots.cka_figure(matrix, cka["layers"], look),
        "kernels": lambda look: plots.kernel_figure(kernels["standard"], kernels["robust"], look),
        "perturbations": lambda look: plots.perturbation_figure(
            waves["standard"], waves["robust"], waves["profile"], look
        ),
        "attention": lambda look: plots.attention_figure(shown, look),
    }
    scored = document["replacement"]
    if scored is not None:
        curves = {
            f"{'shifted data' if name == 'runs-shifted' else 'data'}: {Path(curve['data']).name}, n = {curve['n']}": [
                _flat(row) for row in curve["rows"]
            ]
            for name, curve in scored["curves"].items()
        }
        metric = METRICS[next(iter(scored["curves"].values()))["metric"]]
        made["replacement"] = lambda look: plots.replacement_figure(curves, metric, look)
    return {name: (png(draw(plots.LIGHT)), png(draw(plots.DARK))) for name, draw in made.items()}


def _tables(document: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Name of a CSV file -> its rows."""
    cka, kernels, waves = document["cka"], document["kernels"], document["perturbations"]["profile"]
    side = len(kernels["shift"])
    tables: dict[str, list[dict[str, Any]]] = {
        "cka": [
            {"standard_layer": row, "robust_layer": column, "cka": value}
            for row, line in zip(cka["layers"], cka["matrix"], strict=True)
            for column, value in zip(cka["layers"], line, strict=True)
        ],
        "kernels": [
            {"cycles_down": y - side // 2, "cycles_right": x - side // 2}
            | {name: kernels[name][y][x] for name in ("standard", "robust", "shift")}
            for y in range(side)
            for x in range(len(kernels["shift"][y]))
        ],
        "perturbations": [
            {"cycles_per_pixel": f, "standard": s, "robust": r}
            for f, s, r in zip(waves["frequency"], waves["standard"], waves["robust"], strict=True)
        ],
        "attention": [*document["attention"]["rows"]],
    }
    if document["replacement"] is not None:
        scored = document["replacement"]
        shared = {"task": scored["task"], "attack": scored["attack"]["name"]}
        shared |= {key: scored["attack"][key] for key in ("norm", "eps", "steps")}
        tables["replacement"] = [
            {**shared, "data": curve["data"], "metric": curve["metric"], "n": curve["n"], **_flat(row)}
            for curve in scored["curves"].values()
            for row in curve["rows"]
        ]
    return tables


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """step, and value, low and high of each score."""
    flat: dict[str, Any] = {"step": row["step"]}
    for name in ("clean", "transfer", "adaptive"):
        flat |= {name: row[name]["value"], f"{name}_low": row[name]["low"], f"{name}_high": row[name]["high"]}
    return flat
