"""A subject made of a vision-language model, samples of a task and an attack, by the evaluation's own functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from attacks.losses import LossFn
from eval_tasks.audit.subject import Subject
from eval_tasks.crafting import AttackPlan, craft, sample_seed
from eval_tasks.crafting import _loss as attack_loss
from eval_tasks.data import Sample, open_image
from eval_tasks.presets import Protocol as Preset
from eval_tasks.presets import TaskConfig
from lvlm_radapt.models.base import LVLM, PixelBatch

ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TARGETS = ("maybe", "Word")
"""Answers that the targeted stages of the FARE protocol pull towards."""


class Scores(Protocol):
    """What a task knows of its samples: the text an attack makes unlikely, and scores by sample id."""

    def target(self, sample: Sample) -> str: ...

    def score(self, outputs: Mapping[str, str]) -> dict[str, float]: ...


@dataclass(frozen=True)
class Material:
    """What an evaluation holds of some samples of one canvas: everything by row."""

    samples: Sequence[Sample]
    batch: PixelBatch
    prompts: Sequence[str]
    scores: Scores
    max_new_tokens: int
    seed: int

    @property
    def targets(self) -> list[str]:
        return [self.scores.target(sample) for sample in self.samples]


def gather(
    model: LVLM, samples: Sequence[Sample], scores: Scores, task: TaskConfig, protocol: Preset, seed: int
) -> Material:
    """The material of those samples that share the most frequent canvas shape, in their order."""
    images = [open_image(s.image) for s in samples]
    canvases = [model.canvas(image) for image in images]
    usual = max(canvases, key=canvases.count)
    chosen = [i for i, canvas in enumerate(canvases) if canvas == usual]
    kept = [samples[i] for i in chosen]
    return Material(
        samples=kept,
        batch=model.pixels([images[i] for i in chosen]),
        prompts=[protocol.prompt(task, s.question) for s in kept],
        scores=scores,
        max_new_tokens=protocol.tokens(task.name),
        seed=seed,
    )


def lvlm_subject(
    model: LVLM, material: Material, plan: AttackPlan, *, made: Tensor | None = None, batch_size: int = 16
) -> Subject:
    """The subject of a white-box attack on `model`; `made`: uint8 images that an evaluation has made by `plan`."""
    m, targets = material, material.targets
    assert plan.steps is not None
    assert plan.config.norm is not None
    seeds = [sample_seed(m.seed, s.id) for s in m.samples]
    loss = attack_loss(model, m.batch, plan, m.prompts, targets)

    def answers(x: Tensor, index: list[int]) -> list[str]:
        batch = m.batch[index].replace(x)
        return model.generate(batch, [m.prompts[i] for i in index], max_new_tokens=m.max_new_tokens)

    def score(texts: Sequence[str], index: list[int]) -> list[float]:
        graded = m.scores.score({m.samples[i].id: text for i, text in zip(index, texts, strict=True)})
        return [graded[m.samples[i].id] for i in index]

    def crafted(eps: float, steps: int) -> Tensor:
        budget = replace(plan, eps=eps, steps=steps)
        return craft(model, m.batch, budget, prompts=m.prompts, targets=targets, seeds=seeds).pixels

    def seen_prompts() -> tuple[list[str], list[str]]:
        with _listening(model) as heard, torch.no_grad():
            loss(m.batch.x, list(range(len(m.batch))))
            attacked = list(heard)
            heard.clear()
            answers(m.batch.x, list(range(len(m.batch))))
            return attacked, list(heard)

    settings = plan.config.apgd
    return Subject(
        x=m.batch.x,
        loss=loss,
        eps=plan.eps,
        steps=plan.steps,
        norm=plan.config.norm,
        undefended=_twin(model, m, plan) if model.radapt is not None else None,
        targeted=_targeted(model, m) if plan.config.loss == "nll" else {},
        half=_in_half(loss, model) if model.dtype == torch.float32 else None,
        answers=answers,
        score=score,
        craft=crafted,
        made=made,
        prompts=seen_prompts if plan.config.loss == "nll" else None,
        rounding=ROUNDING.get(model.dtype, 5e-2),
        random_start=settings.random_start if settings else True,
        step_scale=settings.step_scale if settings else 2.0,
        restarts=settings.restarts if settings else 1,
        seeds=seeds,
        batch_size=batch_size,
    )


def _twin(model: LVLM, m: Material, plan: AttackPlan) -> LossFn:
    """The attack's loss on the undefended twin."""
    with model.undefended():
        stock = attack_loss(model, m.batch, plan, m.prompts, m.targets)

    def loss(x: Tensor, index: list[int]) -> Tensor:
        with model.undefended():
            return stock(x, index)

    return loss


def _targeted(model: LVLM, m: Material) -> dict[str, LossFn]:
    def towards(text: str) -> LossFn:
        def loss(x: Tensor, index: list[int]) -> Tensor:
            return -model.loss(m.batch[index].replace(x), [m.prompts[i] for i in index], [text] * len(index))

        return loss

    return {text: towards(text) for text in TARGETS}


def _in_half(loss: LossFn, model: LVLM) -> LossFn:
    """The same loss with its large products in half precision (autocast): no second copy of the weights."""
    device = model.device.type
    dtype = torch.bfloat16 if device == "cpu" else torch.float16

    def in_half(x: Tensor, index: list[int]) -> Tensor:
        with torch.autocast(device, dtype=dtype):
            return loss(x, index).float()

    return in_half


@contextmanager
def _listening(model: LVLM) -> Iterator[list[str]]:
    """Within it, every prompt that the model turns into tokens is added to the list, as those tokens."""
    heard: list[str] = []
    encoder = model.text
    encode = encoder.prompt

    def prompt(text: str, image_tokens: int) -> list[int]:
        ids = encode(text, image_tokens)
        heard.append(str(ids))
        return ids

    encoder.prompt = prompt  # type: ignore[method-assign]
    try:
        yield heard
    finally:
        del encoder.prompt
