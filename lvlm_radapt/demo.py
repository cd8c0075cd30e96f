"""The main job end to end on the embedded models: protect, attack with and without knowledge, compare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Event, get_ident
from typing import Any, TypeVar

import torch

from eval_tasks.api import Announce, run_evaluation
from eval_tasks.config.presets import load_protocol
from eval_tasks.crafting.attack import Threat
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.report.page import check_report, write_report
from eval_tasks.run.options import EvalOptions, Evaluation
from eval_tasks.run.processes import Group
from eval_tasks.run.progress import Advance
from eval_tasks.run.records import Run, Scored
from eval_tasks.tasks.make_task import make_task
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.loading.adapter_files import is_adapter
from lvlm_radapt.loading.load import load_any, load_model
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.models.robustify import robustify
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.utils.atomic_folder import check_own_folder
from lvlm_radapt.utils.leftovers import sweep
from lvlm_radapt.utils.locking import Lock

T = TypeVar("T")

MODELS = ("tiny-llava", "tiny-qwen")
TASKS = ("coco", "vqav2")
BUDGETS = (2, 4)  # eps x 255
SCENES = {"tiny-llava": "scenes-square", "tiny-qwen": "scenes-mixed"}
OURS = frozenset({"models", "runs", "report.html", *SCENES.values()})


@dataclass(frozen=True)
class Settings:
    """What the evaluations of every model have in common."""

    out: Path
    samples: int
    steps: int
    device: str
    stop: Event
    group: Group
    open_model: Callable[..., PixelModel]
    clean: defaultdict[tuple[str, str], dict[str, Scored]]
    """By model and task: its clean answers, the same in all runs."""

    def protected(self, model: str) -> Path:
        """The adapter folder of an embedded model."""
        return self.out / "models" / f"{model}-radapt"


def run_demo(
    out: Path, *, samples: int, steps: int, announce: Announce, device: str = "cpu", group: Group | None = None
) -> list[Run]:
    """Write scenes, adapters, runs and report.html under `out`; what is there already is not done again.

    Stock and protected model see the same samples under the same settings. The transfer images are those of
    the stock model's own white-box run. Where there are cores for it, two pieces of work go on side by side.
    """
    group = group or Group()
    work = group.work(str(out))
    with Lock.of_folder(out) as lock:

        def begin() -> None:
            check_own_folder(out, OURS)
            check_report(out / "report.html")
            lock.claim()
            sweep(out)

        work.lead("begin", begin)
        if not group.first:
            lock.share()
        settings = Settings(out, samples, steps, device, Event(), group, _keeping_open(), defaultdict(dict))
        per_task = 1 + 3 * len(BUDGETS)  # noise; then stock, transfer and adaptive at each budget
        told = {model: announce(model, len(TASKS) * per_task * samples) for model in MODELS}
        # the longest first and the controls last, so that both threads end at about the same time
        pieces = [*product(TASKS, reversed(MODELS), BUDGETS), *product(TASKS, MODELS, (None,))]
        with _side_by_side(settings.stop) as pool:
            work.lead("prepare", lambda: [*_results([pool.submit(_prepare, model, settings) for model in MODELS])])
            done = _results(
                [pool.submit(_score, model, task, eps, settings, told[model]) for task, model, eps in pieces]
            )
        by_piece = dict(zip(pieces, done, strict=True))
        runs = [
            run for model in MODELS for task in TASKS for eps in (None, *BUDGETS) for run in by_piece[task, model, eps]
        ]
        if group.first:
            write_report(runs, out / "report.html")
        return runs


def _keeping_open() -> Callable[..., PixelModel]:
    """`load_any` for models that are opened again and again with the same settings; each thread has its own."""
    kept: dict[tuple[int, str], PixelModel] = {}

    def open_model(name: str, **settings: Any) -> PixelModel:
        key = (get_ident(), name)
        if key not in kept:
            kept[key] = load_any(name, **settings)
        return kept[key]

    return open_model


def _prepare(model: str, settings: Settings) -> None:
    """The model's scenes and adapter."""
    data = settings.out / SCENES[model]
    if not data.exists():
        write_scenes(data, count=max(settings.samples, 64), mixed=model == "tiny-qwen")
    if not is_adapter(settings.protected(model)):
        save_adapter(robustify(load_model(model), RAdaptConfig()), settings.protected(model))


def _score(model: str, task: str, eps: int | None, settings: Settings, advance: Advance) -> list[Run]:
    """The runs of one model, task and budget, stock and protected; the noise control where `eps` is None."""
    protocol = load_protocol("scenes")

    def score(name: str, attack: str, threat: Threat | None, size: int, images_from: Path | None = None) -> Run:
        steps = None if threat is None else settings.steps
        chosen = make_attack(attack, eps=size / 255, threat=threat, steps=steps)
        options = EvalOptions(data=settings.out / SCENES[model], samples=settings.samples, seed=protocol.seed)
        kind = "stock" if name == model else "radapt"
        what = f"{kind} {task} {attack} {threat or 'control'} {size}/255"

        def tell(done: int, _remark: str = "") -> None:
            if settings.stop.is_set():
                raise CancelledError
            advance(done, what)

        tell(0)
        return run_evaluation(
            name,
            Evaluation(make_task(task, protocol), chosen, options, protocol),
            settings.out / "runs" / f"{model}-{kind}-{task}-{attack}-{threat or 'control'}-{size}",
            announce=lambda _title, _total: tell,
            images_from=images_from,
            device=settings.device,
            resume=True,
            command=f"lvlm-radapt demo --samples {settings.samples} --steps {settings.steps}",
            group=settings.group,
            open_model=settings.open_model,
            clean=settings.clean[name, task],
        )

    if eps is None:
        return [score(model, "noise", None, max(BUDGETS))]
    protected = str(settings.protected(model))
    stock = score(model, "e2e", "adaptive", eps)
    return [
        stock,
        score(protected, "e2e", "transfer", eps, images_from=stock.path),
        score(protected, "e2e", "adaptive", eps),
    ]


def _results(futures: Sequence[Future[T]]) -> list[T]:
    """What all of them give, in order; raises at once what one of them ran into."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return [future.result() for future in futures]


@contextmanager
def _side_by_side(stop: Event) -> Iterator[ThreadPoolExecutor]:
    """A pool of two threads, the cores shared out among them.

    Small models leave cores idle when one operation is split over them: two attacks on a core each are done
    sooner than one after the other on both.
    """
    cores = torch.get_num_threads()
    workers = min(2, cores)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="demo")
    torch.set_num_threads(cores // workers)
    try:
        yield pool
    finally:
        stop.set()  # where one model failed, the other ends with its batch
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(cores)
