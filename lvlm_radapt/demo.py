"""The main job end to end on the embedded models: protect, attack with and without knowledge, compare."""

from __future__ import annotations

from pathlib import Path

from eval_tasks.crafting import AttackPlan, Threat
from eval_tasks.presets import load_attack, load_protocol
from eval_tasks.records import Run
from eval_tasks.report import write_report
from eval_tasks.runner import EvalSettings
from lvlm_radapt.checkpoint import is_adapter, save_adapter
from lvlm_radapt.config import RAdaptConfig
from lvlm_radapt.errors import UserError
from lvlm_radapt.models.load import load_model
from lvlm_radapt.models.robustify import robustify
from lvlm_radapt.tiny.dataset import write_scenes

MODELS = ("tiny-llava", "tiny-qwen")
TASKS = ("coco", "vqav2")
BUDGETS = (2, 4)  # eps x 255
SCENES = {"tiny-llava": "scenes-square", "tiny-qwen": "scenes-mixed"}


def run_demo(out: Path, *, samples: int, steps: int) -> list[Run]:
    """Write scenes, adapters, runs and report.html under `out`; what is there already is not done again.

    Stock and protected model see the same samples under the same settings. The transfer images are those of
    the stock model's own white-box run.
    """
    from lvlm_radapt.cli import run_evaluation

    _check_folder(out)
    runs = []
    for model in MODELS:
        data = out / SCENES[model]
        if not data.exists():
            write_scenes(data, count=max(samples, 64), mixed=model == "tiny-qwen")
        protected = out / "models" / f"{model}-radapt"
        if not is_adapter(protected):
            save_adapter(robustify(load_model(model), RAdaptConfig()), protected)

        def score(
            name: str,
            task: str,
            attack: str,
            threat: Threat | None,
            eps: int,
            images_from: Path | None = None,
        ) -> Run:
            protocol = load_protocol("scenes")
            settings = EvalSettings(
                task=task,
                data=data,  # noqa: B023 - called within the iteration
                protocol=protocol,
                attack=AttackPlan(load_attack(attack), threat, eps / 255, None if threat is None else steps),
                samples=samples,
                seed=protocol.seed,
                batch_size=64,
            )
            kind = "stock" if name in MODELS else "radapt"
            folder = out / "runs" / f"{model}-{kind}-{task}-{attack}-{threat or 'control'}-{eps}"  # noqa: B023
            command = f"lvlm-radapt demo --samples {samples} --steps {steps}"
            return run_evaluation(name, settings, folder, images_from=images_from, resume=True, command=command)

        for task in TASKS:
            runs.append(score(model, task, "noise", None, max(BUDGETS)))
            for eps in BUDGETS:
                stock = score(model, task, "e2e", "adaptive", eps)
                runs += [
                    stock,
                    score(str(protected), task, "e2e", "transfer", eps, images_from=stock.path),
                    score(str(protected), task, "e2e", "adaptive", eps),
                ]
    write_report(runs, out / "report.html")
    return runs


def _check_folder(out: Path) -> None:
    """Only a new folder, an empty one or an earlier demo is written to."""
    known = {"models", "runs", "report.html", *SCENES.values()}
    if out.is_file():
        raise UserError(f"{out} is a file: choose another --out")
    foreign = sorted(p.name for p in out.iterdir() if p.name not in known) if out.is_dir() else []
    if foreign:
        raise UserError(f"{out} holds other files ({foreign[0]}, ...): choose an empty folder as --out")
