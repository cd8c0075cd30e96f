"""The main job end to end on the embedded models: protect, attack with and without knowledge, compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from threading import Event
from typing import TypeVar

import torch

from eval_tasks.config.presets import load_protocol
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.report.page import check_report, write_report
from eval_tasks.run.options import EvalOptions, Evaluation
from eval_tasks.run.processes import Group
from eval_tasks.run.records import Run
from eval_tasks.tasks.make_task import make_task
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.embedded.hardened import BASE, write_low_rank
from lvlm_radapt.experiments.engine import Sweep, Trial
from lvlm_radapt.experiments.models import ModelFactory
from lvlm_radapt.loading.adapter_files import is_adapter
from lvlm_radapt.loading.load import load_model
from lvlm_radapt.models.robustify import robustify
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.utils.atomic_folder import check_own_folder
from lvlm_radapt.utils.leftovers import sweep as remove_leftovers
from lvlm_radapt.utils.locking import Lock
from lvlm_radapt.utils.progress import Announce

T = TypeVar("T")

TASKS = ("coco", "vqav2")
BUDGETS = (2, 4)  # eps x 255
SCENES = {"tiny-llava": "scenes-square", "tiny-qwen": "scenes-mixed"}
OURS = frozenset({"models", "runs", "report.html", *SCENES.values()})
STOCK, PROTECTED, HARDENED = "stock", "radapt", "hardened"
MODELS = {BASE: (STOCK, PROTECTED, HARDENED), "tiny-qwen": (STOCK, PROTECTED)}
"""The rows of each embedded model. The hardened one is fine-tuned at low rank, with the filter in front."""


def run_demo(
    out: Path, *, samples: int, steps: int, announce: Announce, device: str = "cpu", group: Group | None = None
) -> list[Run]:
    """Write scenes, adapters, runs and report.html under `out`; what is there already is not done again.

    All rows of a model see the same samples under the same settings. The transfer images are those of
    the stock model's own white-box run. Where there are cores for it, two pieces of work go on side by side.
    """
    group = group or Group()
    work = group.work(str(out))
    command = f"lvlm-radapt demo --samples {samples} --steps {steps}"
    with Lock.of_folder(out) as lock:

        def begin() -> None:
            check_own_folder(out, OURS)
            check_report(out / "report.html")
            lock.claim()
            remove_leftovers(out)

        work.lead("begin", begin)
        if not group.first:
            lock.share()

        def folder(row: str, trial: Trial, threat: str) -> Path:
            size = trial.eps.partition("/")[0]
            return out / "runs" / f"{trial.base}-{row}-{trial.column}-{trial.attack.name}-{threat}-{size}"

        stop = Event()
        factory = ModelFactory(device=device, dtype=torch.float32, **load_protocol("scenes").opening())
        # noise is quick and comes last, so that both threads end at about the same time
        pieces = [*product(TASKS, reversed(MODELS), BUDGETS), *product(TASKS, MODELS, (None,))]
        trials = {piece: _trial(*piece, out=out, samples=samples, steps=steps) for piece in pieces}
        sweeps = {model: Sweep(STOCK, {}, folder, command=command, group=group) for model in MODELS}
        tells = {
            model: announce(
                model, samples * sweep.count(MODELS[model], [t for t in trials.values() if t.base == model])
            )
            for model, sweep in sweeps.items()
        }

        def score(trial: Trial) -> list[Run]:
            model = trial.base
            runs: list[Run] = []
            for row in MODELS[model]:
                name = model if row == STOCK else str(_adapter(out, model, row))

                def tell(done: int, what: str, row: str = row) -> None:
                    if stop.is_set():
                        raise CancelledError
                    tells[model](done, f"{row} {what}")

                tell(0, trial.column)
                runs += sweeps[model].score(row, trial, factory.kept(name), tell)
            return runs

        with _side_by_side(stop) as pool:
            work.lead("prepare", lambda: [*_results([pool.submit(_prepare, model, out, samples) for model in MODELS])])
            done = _results([pool.submit(score, trial) for trial in trials.values()])
        made = dict(zip(pieces, done, strict=True))
        runs = [run for model in MODELS for task in TASKS for eps in (None, *BUDGETS) for run in made[task, model, eps]]
        if group.first:
            write_report(runs, out / "report.html")
        return runs


def _trial(task: str, model: str, eps: int | None, out: Path, samples: int, steps: int) -> Trial:
    """One task on one model's scenes at one budget; the noise control where `eps` is None."""
    protocol = load_protocol("scenes")
    size = eps or max(BUDGETS)
    attack = make_attack("noise" if eps is None else "e2e", eps=size / 255, steps=None if eps is None else steps)
    options = EvalOptions(data=out / SCENES[model], samples=samples, seed=protocol.seed)
    asked = Evaluation(make_task(task, protocol), attack, options, protocol)
    return Trial(model, task, f"{size}/255", asked)


def _adapter(out: Path, model: str, row: str) -> Path:
    """The adapter folder of a row of an embedded model."""
    return out / "models" / f"{model}-{row}"


def _prepare(model: str, out: Path, samples: int) -> None:
    """The model's scenes and adapters."""
    data = out / SCENES[model]
    if not data.exists():
        write_scenes(data, count=max(samples, 64), mixed=model == "tiny-qwen")
    protected = _adapter(out, model, PROTECTED)
    if not is_adapter(protected):
        save_adapter(robustify(load_model(model), RAdaptConfig()), protected)
    hardened, weights = _adapter(out, model, HARDENED), out / "models" / f"{model}-low-rank"
    if HARDENED in MODELS[model] and not is_adapter(hardened):
        if not weights.exists():
            write_low_rank(weights)
        save_adapter(robustify(load_model(weights), RAdaptConfig(cutoff=40, alpha=0)), hardened)


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
