"""Adversarial images for one batch: the model the attacker sees, the loss it raises, the noise it draws."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from attacks import apgd, cpu_workers, embedding_loss, random_noise
from attacks.losses import LossFn
from eval_tasks.presets import AttackConfig
from eval_tasks.quantise import to_8bit
from lvlm_radapt.errors import UserError
from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel

Threat = Literal["adaptive", "transfer"]


@dataclass(frozen=True)
class AttackPlan:
    """An attack with its threat model and budget. `threat` None: noise, which knows no model at all."""

    config: AttackConfig
    threat: Threat | None
    eps: float
    steps: int | None

    def settings(self) -> dict[str, object]:
        """What run.json says of it (the surrogate is added by the runner)."""
        apgd_settings = self.config.apgd
        return {
            "name": self.config.name,
            "threat": self.threat,
            "eps": self.eps,
            "norm": self.config.norm,
            "loss": self.config.loss,
            "at": self.config.at,
            "distance": self.config.distance,
            "steps": self.steps,
            "restarts": apgd_settings.restarts if apgd_settings else None,
            "random_start": apgd_settings.random_start if apgd_settings else None,
            "step_scale": apgd_settings.step_scale if apgd_settings else None,
        }


class NotFiniteError(FloatingPointError):
    """A loss or gradient of the attack is infinite or no number; `samples` are places in the batch."""

    def __init__(self, failed: Sequence[str | None]) -> None:
        self.samples = [i for i, reason in enumerate(failed) if reason is not None]
        super().__init__(failed[self.samples[0]])


@dataclass(frozen=True)
class Crafted:
    """Images to be scored, uint8 [B,3,H,W]; by sample the attack's loss (None: noise) and dead gradients."""

    pixels: Tensor
    loss: list[float | None]
    zero_grad: list[bool]


def sample_seed(seed: int, sample_id: str) -> int:
    """One seed a sample, so that a resumed or resharded sample draws the same noise."""
    digest = hashlib.sha256(f"{seed}/{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_plan(plan: AttackPlan, model: LVLM, surrogate: PixelModel | None) -> None:
    """UserError when the attack cannot mean what it says on these models."""
    if plan.threat == "transfer" and surrogate is None and model.radapt is None:
        raise UserError(
            f"{model.name} has no defence, so it has no undefended twin to craft transfer images on: "
            "name a --surrogate, or use --threat adaptive"
        )
    if plan.threat != "transfer" and surrogate is not None:
        raise UserError("--surrogate is for --threat transfer: an adaptive attack is crafted on the model itself")
    if plan.config.loss == "nll" and surrogate is not None and not isinstance(surrogate, LVLM):
        raise UserError(
            f"{surrogate.name} is an image encoder without a language model: use --attack embedding with it"
        )


def craft(
    model: LVLM,
    batch: PixelBatch,
    plan: AttackPlan,
    *,
    prompts: Sequence[str],
    targets: Sequence[str],
    seeds: Sequence[int],
    surrogate: PixelModel | None = None,
) -> Crafted:
    """Attack every image of `batch` (the victim's canvas); prompts, targets and seeds belong to its rows."""
    norm = plan.config.norm
    assert norm is not None  # presets: every attack but none has one
    if plan.config.loss == "noise":
        noisy = random_noise(batch.x, eps=plan.eps, norm=norm, seed=seeds)
        return Crafted(to_8bit(noisy, batch.x, eps=plan.eps, norm=norm), [None] * len(batch), [False] * len(batch))
    apgd_settings = plan.config.apgd
    assert apgd_settings is not None
    assert plan.steps is not None
    with _attackers_view(model, plan, surrogate):
        loss_fn = _loss(surrogate or model, batch, plan, prompts, targets)
        found = apgd(
            loss_fn,
            batch.x,
            eps=plan.eps,
            steps=plan.steps,
            norm=norm,
            random_start=apgd_settings.random_start,
            step_scale=apgd_settings.step_scale,
            restarts=apgd_settings.restarts,
            seed=seeds,
            workers=cpu_workers(len(batch)) if batch.x.device.type == "cpu" else 1,
        )
    if any(reason is not None for reason in found.failed):
        raise NotFiniteError(found.failed)
    pixels = to_8bit(found.x_adv, batch.x, eps=plan.eps, norm=norm)
    return Crafted(pixels, [float(v) for v in found.loss], [bool(v) for v in found.zero_grad])


def _attackers_view(model: LVLM, plan: AttackPlan, surrogate: PixelModel | None) -> AbstractContextManager[object]:
    """`transfer` without a surrogate is crafted on the undefended twin: the same weights, hooks asleep."""
    return model.undefended() if plan.threat == "transfer" and surrogate is None else nullcontext()


def _loss(
    source: PixelModel, batch: PixelBatch, plan: AttackPlan, prompts: Sequence[str], targets: Sequence[str]
) -> LossFn:
    view = _view(source, batch)

    def seen(x: Tensor, index: list[int]) -> PixelBatch:
        return view[index].replace(_resize(x, view.x.shape[-2:]))

    if plan.config.loss == "nll":
        assert isinstance(source, LVLM)
        lvlm = source

        def nll(x: Tensor, index: list[int]) -> Tensor:
            return lvlm.loss(seen(x, index), [prompts[i] for i in index], [targets[i] for i in index])

        return nll
    at, distance = plan.config.at, plan.config.distance
    assert at is not None
    assert distance is not None
    with torch.no_grad():
        clean = source.features(view, at=at)
    return embedding_loss(lambda x, index: source.features(seen(x, index), at=at), clean, distance=distance)


def _view(source: PixelModel, batch: PixelBatch) -> PixelBatch:
    """The batch on `source`'s own canvas: the same pixels where canvases agree, as the victim's own do, resized
    ones elsewhere. UserError where one of the two is a stack of views, of which no resizing makes the other."""
    alike = source.adopted(batch)
    if alike is not None:
        return alike
    height, width = batch.x.shape[-2:]
    probe = Image.new("RGB", (width, height))
    own = source.pixels([probe])
    shape = own.x.shape[-2:]
    if "crops" in own.meta[0] or "crops" in batch.meta[0]:
        raise UserError(
            f"{source.name} cannot be a surrogate here: a stack of views is seen only by models that cut images "
            "alike, choose one of the victim's family"
        )
    return PixelBatch(_resize(batch.x, shape), own.meta * len(batch))


def _resize(x: Tensor, shape: torch.Size) -> Tensor:
    if x.shape[-2:] == shape:
        return x
    resized = F.interpolate(x, size=tuple(shape), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)
