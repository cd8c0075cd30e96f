"""How much of a task is evaluated and in which pieces, and what a run folder keeps of an evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval_tasks.config.presets import Protocol
from eval_tasks.crafting.attack import Attack
from eval_tasks.data import Sample, check_images, select, skip_missing
from eval_tasks.tasks.base import Task, TaskRun
from lvlm_radapt.defences.base import defence_document
from lvlm_radapt.loading.quantised import quantisation_of
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.printing import one_line


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What is evaluated, apart from model, task and attack. Chunk and batch size are part of a run's identity: they
    decide the order of float sums.

    data: the task's data folder. samples: how many are drawn with `seed`; None takes the whole set. ids: these samples,
    in place of a draw. skip_missing: leave samples without an image out, in place of stopping.
    """

    data: Path
    samples: int | None = None
    seed: int = 42
    chunk_size: int = 64
    batch_size: int = 32
    skip_missing: bool = False
    ids: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Evaluation:
    """All that a user chooses, apart from the model. protocol: decides how the model is opened; the task has its other
    settings. attack: None scores clean images alone."""

    task: Task
    attack: Attack | None
    options: EvalOptions
    protocol: Protocol

    def describe(self) -> str:
        """Task and attack in a few words, for progress bars."""
        words = (self.attack.name, self.attack.threat) if self.attack else ("clean",)
        return f"{self.task.name} · {' '.join(word for word in words if word)}"


@dataclass(frozen=True)
class Selection:
    """The whole data set, and the samples that are scored, in order. note: there are fewer than asked for. left_out:
    how many have no image."""

    everything: Sequence[Sample]
    samples: list[Sample]
    note: str | None
    left_out: str | None


def select_samples(task: Task, options: EvalOptions) -> Selection:
    """The task's data, read once. UserError as for `Task.load` and `eval_tasks.data.select`, for ids that are not in
    the data, for missing images, and for too few samples for the task's score."""
    everything = _loaded(task, Path(options.data))
    note = left_out = None
    if options.ids is None:
        samples, note = select(everything, options.samples, options.seed)
    else:
        known = {sample.id: sample for sample in everything}
        absent = [one for one in options.ids if one not in known]
        if absent:
            raise UserError(f"{options.data} lacks {len(absent)} of the {len(options.ids)} samples: {absent[0]}, ...")
        samples = [known[one] for one in options.ids]
    if options.skip_missing:
        samples, left_out = skip_missing(samples)
    check_images(samples)
    task.check_samples(samples)
    return Selection(everything, samples, note, left_out)


def _loaded(task: Task, data: Path) -> Sequence[Sample]:
    """All samples of the task; UserError, too, where outside code that loads them fails or gives something else."""
    if task.plugin() is None:
        return task.load(data)
    try:
        samples = list(task.load(data))
    except UserError:
        raise
    except Exception as error:  # outside code may raise anything
        raise UserError(
            f"task {task.name}: {data} cannot be loaded: {one_line(f'{type(error).__name__}: {error}')}"
        ) from error
    if not samples or not all(isinstance(sample, Sample) for sample in samples):
        raise UserError(f"task {task.name}: its loader must give a list of Sample, at least one, from {data}")
    twice = [own for own, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        raise UserError(f"task {task.name}: {data} has two samples with the id {twice[0]!r}: give each its own")
    return samples


def run_document(run: TaskRun, attack: Attack | None, options: EvalOptions, command: str) -> dict[str, Any]:
    """The settings as run.json keeps them; what is in here must be equal for a run to be resumed."""
    model, task, plugin = run.model, run.task, run.task.plugin()
    settings: dict[str, Any] | None = None
    if attack is not None:
        surrogate = run.surrogate.name if run.surrogate else None
        settings = run.attack_settings(attack) | {"surrogate": surrogate}
    return {
        "command": command,
        "determinism": _determinism(model),
        "threads": torch.get_num_threads(),
        "model": {
            "name": model.label,
            "revision": model.revision,
            "tower": model.tower_name,
            **({} if model.tuned_from is None else {"tuned_from": model.tuned_from}),
            "max_pixels": model.max_pixels,
            "radapt": model.radapt.to_dict() if model.radapt else None,
            **defence_document(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantize": quantisation_of(model.hf),
            "device": model.device.type,
            "attn": getattr(getattr(model.hf, "config", None), "_attn_implementation", None),
            "geometry": model.geometry,
            "views_apart": model.views_apart,
            "image_backend": model.image_backend,
            **model.facts(),
        },
        "task": task.name,
        "data": str(options.data),
        "preset": task.preset,
        **run.settings(),
        "attack": settings,
        "seed": options.seed,
        "chunk_size": options.chunk_size,
        "batch_size": options.batch_size,
        "tokenizer": getattr(task, "tokenizer", "ptb"),  # runs have always had one, whatever the task
        **({} if plugin is None else {"task_plugin": plugin}),
    }


def _determinism(model: PixelModel) -> str:
    """What another run with these settings gives, and what nobody promises."""
    if model.answers_only:
        return "samples, seeds and images are the same for equal settings; texts and scores are what the endpoint gives"
    if model.device.type == "cpu" and model.dtype == torch.float32:
        return (
            "equal settings, versions and CPU threads of each process (threads; set by OMP_NUM_THREADS) on one machine "
            "give the same samples, images, texts and scores, bit for bit, whatever the number of processes or "
            "interruptions"
        )
    return (
        f"samples, seeds and starting noise are the same for equal settings; images, texts and scores are not "
        f"guaranteed on {model.device.type} in {str(model.dtype).removeprefix('torch.')}: kernels chosen at run time "
        "and sums in no fixed order may differ in the last bits, which an attack amplifies"
    )
