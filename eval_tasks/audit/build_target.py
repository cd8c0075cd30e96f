"""What an audit looks at, made of a task, some of its samples and an attack, by the evaluation's own functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from attacks.losses import LossFn
from attacks.suite import SuiteSettings
from eval_tasks.audit.target import AuditTarget
from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.batches import ClassBatch, ScoredBatch
from eval_tasks.crafting.crafted import sample_seed
from eval_tasks.crafting.source_model import Draws, SourceModel
from eval_tasks.data import Sample, chunks, image_key, open_image
from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel
from lvlm_radapt.models.text import Prompt

ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative error of a loss from rounding alone, by the model's precision."""


def on_one_canvas(model: PixelModel, samples: Sequence[Sample], seed: int) -> tuple[list[Sample], PixelBatch]:
    """Those samples that share the most frequent canvas shape, in their order, and their pixels. seed: the run's."""
    images = [open_image(s.image) for s in samples]
    canvases = [model.canvas(image) for image in images]
    usual = max(canvases, key=canvases.count)
    rows = [i for i, canvas in enumerate(canvases) if canvas == usual]
    chosen = [samples[i] for i in rows]
    return chosen, model.pixels([images[i] for i in rows]).with_seeds([sample_seed(seed, s.id) for s in chosen])


def build_target(
    model: PixelModel,
    pixels: PixelBatch,
    task: ScoredBatch,
    attack: Attack,
    craft: Callable[[Attack], Tensor],
    *,
    seed: int,
    made: Tensor | None = None,
) -> AuditTarget:
    """The target of a white-box attack on `model`; `task` holds the samples of the rows of `pixels`.

    craft: gives uint8 images by the evaluation's own way, for an attack with another budget. made: uint8 images that
    `attack` has made already, for attacks that climb to the end of their steps. Attacks without APGD settings are
    audited with the usual ones. UserError for an attack without a loss.
    """
    view, scored, usual = SourceModel(model, pixels, "held"), SourceModel(model, pixels, "scored"), SuiteSettings()

    def make(draws: Draws = "held") -> LossFn:
        return attack.loss(SourceModel(model, pixels, draws), pixels, task)

    def drawn(times: int) -> LossFn:
        usual_number = model.eot_draws
        model.eot_draws *= times
        try:
            return make("fresh")
        finally:
            model.eot_draws = usual_number

    def answers(x: Tensor, index: list[int]) -> list[str]:
        return task.answers(scored, x, index)

    loss, defence = make(), model.defence
    classes = task if isinstance(task, ClassBatch) else None
    prompts = None
    if attack.reads_prompt and isinstance(model, LVLM):
        prompts = _prompts(model, pixels, make, answers, task.batch_size)
    return AuditTarget(
        x=pixels.x,
        loss=loss,
        eps=attack.eps,
        steps=attack.gradient_steps or usual.steps,
        norm=attack.norm,
        undefended=None if defence is None else undefended_loss(model, make),
        gradient="exact" if defence is None else defence.gradient,
        drawn=drawn if model.is_random else None,
        draws=model.draws if model.is_random else None,
        half=in_half(loss, model) if model.dtype == torch.float32 else None,
        rounding=rounding_of(model),
        random_start=_setting(attack, "random_start", usual.random_start),
        step_scale=_setting(attack, "step_scale", usual.step_scale),
        restarts=_setting(attack, "restarts", usual.restarts),
        targeted=attack.rival_losses(view, task),
        answers=answers,
        score=lambda said, index: attack.graded(task, said, index),
        logits=None if classes is None else classes.logits(view),
        labels=None if classes is None else classes.labels,
        craft=lambda eps, steps: craft(attack.with_budget(eps, steps)),
        spares=attack.spares,
        nearest=attack.nearest,
        made=made,
        prompts=prompts,
        images=[image_key(s.image) for s in task.samples],
        seeds=[sample_seed(seed, s.id) for s in task.samples],
        batch_size=task.batch_size,
    )


def rounding_of(model: PixelModel) -> float:
    """Relative error of a loss from rounding alone."""
    return ROUNDING.get(model.dtype, max(ROUNDING.values()))


def undefended_loss(model: PixelModel, make: Callable[[], LossFn]) -> LossFn:
    """The attack's loss, as `make` makes it, on the undefended model: the same weights without the defence."""
    with model.undefended():
        stock = make()

    def loss(x: Tensor, index: list[int]) -> Tensor:
        with model.undefended():
            return stock(x, index)

    return loss


def in_half(loss: LossFn, model: PixelModel) -> LossFn:
    """The same loss with the model's large products in half precision (autocast): no second copy of the weights."""
    device = model.device.type
    dtype = torch.bfloat16 if device == "cpu" else torch.float16

    def rounded(x: Tensor, index: list[int]) -> Tensor:
        with torch.autocast(device, dtype=dtype):
            return loss(x, index).float()

    return rounded


def _setting(attack: Attack, name: str, usual: Any) -> Any:
    """An APGD setting of the attack, the usual one where it has none."""
    own = getattr(attack, name, None)
    return usual if own is None else own


def _prompts(
    model: LVLM,
    pixels: PixelBatch,
    make: Callable[[], LossFn],
    answers: Callable[[Tensor, list[int]], list[str]],
    batch_size: int,
) -> Callable[[], tuple[list[str], list[str]]]:
    """Gives the prompts, as tokens, that the loss reads and that the scored answers are given to."""

    def prompts() -> tuple[list[str], list[str]]:
        everyone, loss = list(range(len(pixels))), make()
        with _listening(model) as heard, torch.no_grad():
            for rows in chunks(everyone, batch_size):
                loss(pixels.x[rows], rows)
            attacked = heard[: len(heard) // model.draws]  # every draw of a random defence asks the same
            heard.clear()
            answers(pixels.x, everyone)
            return attacked, list(heard)

    return prompts


@contextmanager
def _listening(model: LVLM) -> Iterator[list[str]]:
    """Within it, every prompt that the model turns into tokens is added to the list, as those tokens."""
    heard: list[str] = []
    encoder = model.text
    encode = encoder.prompt

    def listened(prompt: Prompt, image_tokens: int, image_text: str | None = None) -> list[int]:
        ids = encode(prompt, image_tokens, image_text)
        heard.append(str(ids))
        return ids

    encoder.prompt = listened  # type: ignore[method-assign]
    try:
        yield heard
    finally:
        del encoder.prompt
