"""What a step of an attack and of a training takes here, in time and memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from eval_tasks.audit.build_target import on_one_canvas
from eval_tasks.config.presets import FinetuneRecipe
from eval_tasks.crafting.crafted import sample_seed
from eval_tasks.data import Sample, open_image
from eval_tasks.run.options import Evaluation, Selection, select_samples
from eval_tasks.tasks.base import TaskRun
from lvlm_radapt.experiments.harden.inputs import check_clean
from lvlm_radapt.experiments.harden.plan import Costs
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.selfcheck.cost import peak_memory, reset_peak
from lvlm_radapt.training.finetune import FinetuneSettings, finetune
from lvlm_radapt.training.labelled import TrainingImages
from lvlm_radapt.training.learned_anchor import PROBE_STEPS, PROBES, LearnSettings

_STEPS = 2
ANSWERS_TIMED = 8
_TURNS = 3
_WATCHED = 32  # images at most that a training is watched on
RANK = 16


def time_steps(
    model: PixelModel, asked: Evaluation, selection: Selection, files: Sequence[Path], recipe: FinetuneRecipe
) -> Costs:
    """Two attack steps on a batch of samples, and two training steps, which change `model`: it is of no use then.

    asked: with an attack that has `steps`. UserError where the model's answers to clean images score near zero.
    """
    options, attack = asked.options, asked.attack
    assert attack is not None
    samples, pixels = on_one_canvas(model, selection.samples[: options.batch_size], options.seed)
    run = asked.task.bind(model, selection.everything, selection.samples, batch_size=options.batch_size)
    run.check(attack, samples)
    reset_peak(model.device)
    started = time.monotonic()
    scores = run.grade(run.answers(pixels, samples), samples)
    answer = (time.monotonic() - started) / len(samples)
    check_clean(sum(scores) / len(scores), len(scores))
    short: Any = replace(attack, steps=_STEPS)  # type: ignore[call-arg]
    seeds = [sample_seed(options.seed, sample.id) for sample in samples]
    started = time.monotonic()
    run.craft(pixels, samples, short, seeds=seeds)
    step = (time.monotonic() - started) / _STEPS / len(samples)
    attack_memory = peak_memory(model.device) or 0
    reset_peak(model.device)
    tuning = _training_step(model, files, recipe)
    return costs_of(step, answer, tuning, recipe, (attack_memory, peak_memory(model.device) or 0))


def answer_seconds(model: PixelModel, plain: PixelModel, asked: Evaluation) -> tuple[float, float]:
    """What an answer takes from the image in memory to its text, one image at a time: of `plain` without any defence,
    and of `model`, which may be the same object.

    Both take turns, so that a busy machine slows both. The median over the samples, of the fastest of some turns each.
    """
    selection = select_samples(asked.task, asked.options)
    runs = [asked.task.bind(one, selection.everything, selection.samples, batch_size=1) for one in (plain, model)]

    def seconds(run: TaskRun, sample: Sample) -> float:
        image = open_image(sample.image)
        started = time.monotonic()
        run.answers(run.model.pixels([image]), [sample])
        return time.monotonic() - started

    taken: list[tuple[float, float]] = []
    for sample in selection.samples:
        turns = []
        for _ in range(_TURNS):
            with plain.undefended():
                before = seconds(runs[0], sample)
            turns.append((before, seconds(runs[1], sample)))
        taken.append((min(one for one, _ in turns), min(other for _, other in turns)))
    return median(one for one, _ in taken), median(other for _, other in taken)


def costs_of(step: float, answer: float, tuning: float, recipe: FinetuneRecipe, memory: tuple[int, int]) -> Costs:
    """From what an attack step, an answer and a training step without a probe take, in seconds or FLOP."""
    gradient = tuning / recipe.batch_size / (recipe.pgd_steps + 1)  # through the tower, for an image
    probes = (1 + recipe.steps // recipe.probe_every) * _WATCHED * recipe.pgd_steps * gradient
    how = LearnSettings()
    return Costs(
        attack=step,
        answer=answer,
        tuning=tuning + probes / recipe.steps,
        anchor=how.batch * (how.attack_steps + 1) * gradient,
        probes=(2 + PROBES) * _WATCHED * PROBE_STEPS * gradient,
        memory=memory,
    )


def _training_step(model: PixelModel, files: Sequence[Path], recipe: FinetuneRecipe) -> float:
    """Seconds of a training step: the faster one of two."""
    images = TrainingImages(tuple(files[1:]), tuple(files[:1]), (), {}, "", None)
    moments: list[float] = []

    def announce(title: str, count: int) -> Any:
        return lambda done, text: moments.append(time.monotonic())

    short = recipe.changed(steps=_STEPS + 1, probe_every=_STEPS + 1)  # a probe follows the last step alone
    finetune(model, images, FinetuneSettings("fare", short, features="tokens", rank=RANK), announce=announce)
    return min(after - before for before, after in itertools.pairwise(moments[: _STEPS + 1]))
