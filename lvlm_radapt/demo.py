"""The main job end to end on the embedded models: protect, attack with and without knowledge, compare."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch

from eval_tasks.crafting import AttackPlan, Threat
from eval_tasks.evaluation import Announce, run_evaluation
from eval_tasks.presets import load_attack, load_protocol
from eval_tasks.records import Run
from eval_tasks.report import write_report
from eval_tasks.runner import Advance, EvalSettings
from lvlm_radapt.checkpoint import is_adapter, save_adapter
from lvlm_radapt.config import RAdaptConfig
from lvlm_radapt.errors import UserError
from lvlm_radapt.models.load import load_model
from lvlm_radapt.models.robustify import robustify
from lvlm_radapt.tiny.dataset import write_scenes

MODELS = ("tiny-llava", "tiny-qwen")
TASKS = ("coco", "vqav2")
BUDGETS = (2, 4)  # eps x 255
RUNS = len(TASKS) * (1 + 3 * len(BUDGETS))  # a model's: noise, then stock, transfer and adaptive at each budget
SCENES = {"tiny-llava": "scenes-square", "tiny-qwen": "scenes-mixed"}


@dataclass(frozen=True)
class Settings:
    """What the evaluations of every model have in common."""

    out: Path
    samples: int
    steps: int
    device: str
    stop: Event


def run_demo(out: Path, *, samples: int, steps: int, announce: Announce, device: str = "cpu") -> list[Run]:
    """Write scenes, adapters, runs and report.html under `out`; what is there already is not done again.

    Stock and protected model see the same samples under the same settings. The transfer images are those of
    the stock model's own white-box run. The models are worked on side by side where there are cores for it.
    """
    _check_folder(out)
    settings = Settings(out, samples, steps, device, Event())
    with _side_by_side(settings.stop) as pool:
        told = {model: announce(model, RUNS * samples) for model in MODELS}
        futures = [pool.submit(_score_model, model, settings, told[model]) for model in MODELS]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()  # raises at once what one model ran into
        runs = [run for future in futures for run in future.result()]
    write_report(runs, out / "report.html")
    return runs


def _score_model(model: str, settings: Settings, advance: Advance) -> list[Run]:
    """All runs of one model, stock and protected."""
    data = settings.out / SCENES[model]
    if not data.exists():
        write_scenes(data, count=max(settings.samples, 64), mixed=model == "tiny-qwen")
    protected = settings.out / "models" / f"{model}-radapt"
    if not is_adapter(protected):
        save_adapter(robustify(load_model(model), RAdaptConfig()), protected)
    protocol = load_protocol("scenes")

    def score(
        name: str, task: str, attack: str, threat: Threat | None, eps: int, images_from: Path | None = None
    ) -> Run:
        plan = AttackPlan(load_attack(attack), threat, eps / 255, None if threat is None else settings.steps)
        kind = "stock" if name == model else "radapt"
        what = f"{kind} {task} {attack} {threat or 'control'} {eps}/255"

        def tell(done: int, _remark: str = "") -> None:
            if settings.stop.is_set():
                raise CancelledError
            advance(done, what)

        tell(0)
        return run_evaluation(
            name,
            EvalSettings(
                task=task, data=data, protocol=protocol, attack=plan, samples=settings.samples, seed=protocol.seed
            ),
            settings.out / "runs" / f"{model}-{kind}-{task}-{attack}-{threat or 'control'}-{eps}",
            announce=lambda _title, _total: tell,
            images_from=images_from,
            device=settings.device,
            resume=True,
            command=f"lvlm-radapt demo --samples {settings.samples} --steps {settings.steps}",
        )

    runs = []
    for task in TASKS:
        runs.append(score(model, task, "noise", None, max(BUDGETS)))
        for eps in BUDGETS:
            stock = score(model, task, "e2e", "adaptive", eps)
            runs += [
                stock,
                score(str(protected), task, "e2e", "transfer", eps, images_from=stock.path),
                score(str(protected), task, "e2e", "adaptive", eps),
            ]
    return runs


@contextmanager
def _side_by_side(stop: Event) -> Iterator[ThreadPoolExecutor]:
    """A pool with a thread a model, the cores shared out among them.

    Small models leave cores idle when one operation is split over them: two models on a core each get through
    their attacks 1.4 times as fast as one after the other on both (benchmarks/README.md).
    """
    cores = torch.get_num_threads()
    workers = min(len(MODELS), cores)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="demo")
    torch.set_num_threads(cores // workers)
    try:
        yield pool
    finally:
        stop.set()  # where one model failed, the other ends with its batch
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(cores)


def _check_folder(out: Path) -> None:
    """Only a new folder, an empty one or an earlier demo is written to."""
    known = {"models", "runs", "report.html", *SCENES.values()}
    if out.is_file():
        raise UserError(f"{out} is a file: choose another --out")
    foreign = sorted(p.name for p in out.iterdir() if p.name not in known) if out.is_dir() else []
    if foreign:
        raise UserError(f"{out} holds other files ({foreign[0]}, ...): choose an empty folder as --out")
