"""A subject made of a vision-language model, samples of a task and an attack, by the evaluation's own functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attacks.losses import LossFn
from attacks.suite import SuiteSettings
from eval_tasks.audit.subject import Subject
from eval_tasks.crafting.craft import AttackPlan, attack_loss, craft, sample_seed, says
from eval_tasks.crafting.prompt_batch import Asked
from eval_tasks.crafting.source_model import Attacker
from eval_tasks.data import Sample, image_key, open_image
from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel
from lvlm_radapt.models.text import Prompt

ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative error of a loss from rounding alone, by the model's precision."""
TARGETS = ("maybe", "Word")
"""Answers that the targeted stages of FARE's ensembles pull towards."""


def on_one_canvas(model: PixelModel, samples: Sequence[Sample]) -> tuple[list[Sample], PixelBatch]:
    """Those samples that share the most frequent canvas shape, in their order, and their pixels."""
    images = [open_image(s.image) for s in samples]
    canvases = [model.canvas(image) for image in images]
    usual = max(canvases, key=canvases.count)
    rows = [i for i, canvas in enumerate(canvases) if canvas == usual]
    return [samples[i] for i in rows], model.pixels([images[i] for i in rows])


def lvlm_subject(
    model: LVLM, batch: PixelBatch, asked: Asked, plan: AttackPlan, *, seed: int, made: Tensor | None = None
) -> Subject:
    """The subject of a white-box attack on `model`; `asked` belongs to the rows of `batch`.

    Of an ensemble the loss is its first stage's, and what its other stages would do is not audited; of a targeted
    attack the score is 0 where the target is read and 100 elsewhere. made: uint8 images that `plan` has made already,
    for attacks that climb to the end of their steps.
    """
    seeds = [sample_seed(seed, s.id) for s in asked.samples]
    attacker = Attacker(model, batch)

    def make() -> LossFn:
        return attack_loss(attacker, plan, asked)

    def score(texts: Sequence[str], index: list[int]) -> list[float]:
        if plan.target is not None:
            return [0.0 if says(text, plan.target) else 100.0 for text in texts]
        return asked.grade(texts, index)

    def crafted(eps: float, steps: int) -> Tensor:
        return craft(model, batch, replace(plan, eps=eps, steps=steps), asked, seeds=seeds).pixels

    def answers(x: Tensor, index: list[int]) -> list[str]:
        return attacker.answers(asked, x, index)

    def prompts() -> tuple[list[str], list[str]]:
        everyone, loss = list(range(len(batch))), make()
        with _listening(model) as heard, torch.no_grad():
            for first in range(0, len(batch), asked.batch_size):
                rows = everyone[first : first + asked.batch_size]
                loss(batch.x[rows], rows)
            attacked = list(heard)
            heard.clear()
            answers(batch.x, everyone)
            return attacked, list(heard)

    reads = plan.config.loss != "embedding"
    return subject_of(
        model,
        batch.x,
        plan,
        make,
        targeted={t: attacker.nll(asked.prompts, [t] * len(batch), sign=-1) for t in TARGETS}
        if plan.config.loss == "nll"
        else {},
        answers=answers,
        score=score,
        craft=crafted,
        spares=plan.config.ensemble is not None,
        made=made,
        prompts=prompts if reads else None,
        images=[image_key(s.image) for s in asked.samples],
        seeds=seeds,
        batch_size=asked.batch_size,
    )


def subject_of(model: PixelModel, x: Tensor, plan: AttackPlan, make: Callable[[], LossFn], **own: Any) -> Subject:
    """A subject with what follows from the model and the plan: its losses (`make` makes the attack's own), budget and
    APGD settings, the usual ones where the attack has none. own: further fields of `Subject`."""
    usual, apgd = SuiteSettings(), plan.config.apgd
    loss = make()
    return Subject(
        x=x,
        loss=loss,
        eps=plan.eps,
        steps=plan.steps or usual.steps,
        norm=plan.norm,
        undefended=None if model.radapt is None else twin_of(model, make),
        half=in_half(loss, model) if model.dtype == torch.float32 else None,
        rounding=rounding_of(model),
        random_start=apgd.random_start if apgd else usual.random_start,
        step_scale=apgd.step_scale if apgd else usual.step_scale,
        restarts=apgd.restarts if apgd else usual.restarts,
        **own,
    )


def rounding_of(model: PixelModel) -> float:
    """Relative error of a loss from rounding alone."""
    return ROUNDING.get(model.dtype, max(ROUNDING.values()))


def twin_of(model: PixelModel, make: Callable[[], LossFn]) -> LossFn:
    """The attack's loss, as `make` makes it, on the undefended twin: the same weights, hooks asleep."""
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


@contextmanager
def _listening(model: LVLM) -> Iterator[list[str]]:
    """Within it, every prompt that the model turns into tokens is added to the list, as those tokens."""
    heard: list[str] = []
    encoder = model.text
    encode = encoder.prompt

    def listened(prompt: Prompt, image_tokens: int) -> list[int]:
        ids = encode(prompt, image_tokens)
        heard.append(str(ids))
        return ids

    encoder.prompt = listened  # type: ignore[method-assign]
    try:
        yield heard
    finally:
        del encoder.prompt
