"""Adversarial images for one batch: the model the attacker sees, the loss it raises, the noise it draws."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from attacks import apgd, cpu_workers, embedding_loss, ensemble, random_noise
from attacks.apgd import SuccessFn
from attacks.eight_bit import from_8bit, to_8bit
from attacks.eps import eps_8bit
from attacks.losses import LossFn
from attacks.norms import Norm
from attacks.success import check_on, geometric_schedule
from eval_tasks.config.presets import APGDSettings, AttackConfig, Half
from eval_tasks.crafting.prompt_batch import Asked
from eval_tasks.crafting.source_model import Attacker
from eval_tasks.crafting.stages import stage_plans, stages
from eval_tasks.data import chunks
from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel
from lvlm_radapt.utils.budget import check_8bit_budget
from lvlm_radapt.utils.errors import UserError

Threat = Literal["adaptive", "transfer"]
Round = Callable[[Tensor, Sequence[int]], Tensor]
"""`round(x_adv, index)`: uint8 images of these rows, in the ball."""


@dataclass(frozen=True)
class AttackPlan:
    """An attack with its threat model and budget. `threat` None: noise, which knows no model at all.

    target: the text a targeted attack wants to read. half: the precision of an ensemble's first stages; None: the
    model's own. early_exit: under the adaptive threat a sample leaves as soon as its answer scores 0.
    """

    config: AttackConfig
    threat: Threat | None
    eps: float
    steps: int | None
    target: str | None = None
    half: Half | None = None
    early_exit: bool = False

    def __post_init__(self) -> None:
        """UserError for a budget that rounds to nothing."""
        check_8bit_budget(self.eps, self.norm)

    @property
    def norm(self) -> Norm:
        """What `eps` is measured in."""
        assert self.config.norm is not None  # presets: every attack but none has one
        return self.config.norm

    @property
    def leaves_early(self) -> bool:
        """Whether samples leave before their last step. A transfer attack may not ask its victim."""
        return self.early_exit and self.threat == "adaptive"

    def settings(self) -> dict[str, object]:
        """What run.json says of it (the runner adds the surrogate, and an ensemble's stages and threshold)."""
        made = self.config.apgd or self.config.pgd
        return {
            "name": self.config.name,
            "threat": self.threat,
            "eps": self.eps,
            "eps_8bit": eps_8bit(self.eps, self.norm),
            "norm": self.norm,
            "loss": self.config.loss,
            "at": self.config.at,
            "distance": self.config.distance,
            "target": self.target,
            "half": self.half,
            "early_exit": self.early_exit,
            "steps": self.steps,
            "restarts": self.config.apgd.restarts if self.config.apgd else None,
            "random_start": made.random_start if made else None,
            "step_scale": made.step_scale if made else None,
            "line": self.config.line,
            "queries": self.config.queries,
        }

    def apgd_arguments(self) -> dict[str, Any]:
        """The keywords of `apgd` and `ensemble` that say how strong the attack is."""
        made: APGDSettings | None = self.config.apgd
        assert made is not None  # presets: every attack with a gradient has them
        return {
            "eps": self.eps,
            "norm": self.norm,
            "steps": self.steps,
            "random_start": made.random_start,
            "step_scale": made.step_scale,
            "restarts": made.restarts,
        }


@dataclass(frozen=True)
class Crafted:
    """Images to be scored, uint8 [B,3,H,W], and by sample:

    loss: the attack's, None where it has none (noise, the clean image). steps: gradient steps spent on it, those of a
        library not counted; None where there are none. zero_grad: the gradient was zero throughout.
    failed: why the attack was not run to its end; the image is the best one found before.
    stage, broken: of an ensemble or a line of attacks on a classifier, what made the image, and whether it is under
        the threshold, or the classifier wrong about it.
    rounded_back: the classifier was wrong about the image before it was rounded to 8 bits, and no longer is.
    remarks: signs that the whole evaluation is broken, from a library that watches for them.
    """

    pixels: Tensor
    loss: list[float | None]
    steps: list[int | None]
    zero_grad: list[bool]
    failed: list[str | None]
    stage: list[str | None]
    broken: list[bool | None]
    rounded_back: list[bool]
    remarks: list[str]

    @classmethod
    def plain(
        cls,
        pixels: Tensor,
        loss: Sequence[float | None] | None = None,
        steps: Sequence[int | None] | None = None,
        zero_grad: Sequence[bool] | None = None,
        failed: Sequence[str | None] | None = None,
    ) -> Crafted:
        """Of an attack without stages; what is left out is None or false for all."""
        none, no = [None] * len(pixels), [False] * len(pixels)
        return cls(
            pixels, list(loss or none), list(steps or none), list(zero_grad or no), list(failed or none),
            [*none], [*none], [*no], [],
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: Sequence[Crafted]) -> Crafted:
        """The samples of several, one after the other."""
        lists = {
            name: [value for part in parts for value in getattr(part, name)]
            for name in ("loss", "steps", "zero_grad", "failed", "stage", "broken", "rounded_back")
        }
        remarks = [*dict.fromkeys(said for part in parts for said in part.remarks)]
        return cls(torch.cat([part.pixels for part in parts]), **lists, remarks=remarks)


def sample_seed(seed: int, sample_id: str) -> int:
    """One seed a sample, so that a resumed or resharded sample draws the same noise."""
    digest = hashlib.sha256(f"{seed}/{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_source(plan: AttackPlan, model: PixelModel, surrogate: PixelModel | None) -> None:
    """UserError where what the attack is crafted on does not fit its threat model or precision."""
    if plan.threat == "transfer" and surrogate is None and model.radapt is None:
        raise UserError(
            f"{model.name} has no defence, so it has no undefended twin to craft transfer images on: "
            "name a --surrogate, or use --threat adaptive"
        )
    if plan.threat != "transfer" and surrogate is not None:
        raise UserError("--surrogate is for --threat transfer: an adaptive attack is crafted on the model itself")
    source = surrogate or model
    if plan.half is not None and source.dtype != torch.float32:
        raise UserError(
            f"--half {plan.half} is for models in float32, {source.name} is in "
            f"{str(source.dtype).removeprefix('torch.')}: use --dtype float32, or --half none"
        )


def check_plan(plan: AttackPlan, model: LVLM, surrogate: PixelModel | None, *, prompt: str, tokens: int) -> None:
    """UserError when the attack cannot mean what it says on these models. `prompt`: one of those to be asked;
    `tokens`: the longest answer."""
    if plan.config.loss in ("classifier", "contrastive"):
        where = "--task imagefolder" if plan.config.loss == "classifier" else "retrieval tasks"
        raise UserError(f"--attack {plan.config.name} is for image encoders and {where}: {model.name} is none")
    check_source(plan, model, surrogate)
    speaks = plan.config.loss in ("nll", "targeted", "ensemble")
    if speaks and surrogate is not None and not isinstance(surrogate, LVLM):
        raise UserError(
            f"{surrogate.name} is an image encoder without a language model: use --attack embedding with it"
        )
    if plan.target is not None:
        needed = len(model.text.target(prompt, plan.target)) - 1  # its end token need not be said
        if needed > tokens:
            raise UserError(
                f"--target {plan.target!r} is {needed} tokens long, but answers end after {tokens}: choose a shorter "
                "one, or a preset with longer answers"
            )


def says(answer: str, target: str) -> bool:
    """Whether the target text occurs in the answer, in upper or lower case."""
    return target.casefold() in answer.casefold()


def craft(
    model: LVLM,
    batch: PixelBatch,
    plan: AttackPlan,
    asked: Asked,
    *,
    seeds: Sequence[int],
    surrogate: PixelModel | None = None,
    clean: Sequence[float] | None = None,
    tell: Callable[[str, int], None] = lambda stage, count: None,
) -> Crafted:
    """Attack every image of `batch` (the victim's canvas); `asked` and the seeds belong to its rows.

    clean: the model's own scores on the clean images, where they are known already; an ensemble begins with them, and
    calls tell(stage, number of images) as each stage begins.
    """
    if plan.config.loss in ("noise", "embedding"):
        return craft_unasked(model, batch, plan, seeds=seeds, batch_size=asked.batch_size, surrogate=surrogate)
    with attackers_view(model, plan, surrogate):
        attacker = Attacker(surrogate or model, batch)
        if plan.config.loss == "ensemble":
            known = clean if plan.threat == "adaptive" else None
            return _ensemble(attacker, batch, plan, asked, seeds, known, tell)
        success = None
        if plan.config.loss == "targeted":
            success = _reads(attacker, asked, plan, _rounding(batch, plan))
        elif plan.leaves_early:
            assert plan.steps is not None
            beaten = _beaten(attacker, asked, _rounding(batch, plan))
            success = check_on(geometric_schedule, beaten, count=len(batch), steps=plan.steps)
        loss = attack_loss(attacker, plan, asked)
        return run_apgd(batch, plan, loss, seeds=seeds, batch_size=asked.batch_size, success=success)


def craft_unasked(
    model: PixelModel,
    batch: PixelBatch,
    plan: AttackPlan,
    *,
    seeds: Sequence[int],
    batch_size: int,
    surrogate: PixelModel | None = None,
) -> Crafted:
    """`craft` for the attacks to which the model need not say anything: noise, and those on image tokens."""
    if plan.config.loss == "noise":
        noisy = random_noise(batch.x, eps=plan.eps, norm=plan.norm, seed=seeds)
        return Crafted.plain(_rounding(batch, plan)(noisy, range(len(batch))))
    with attackers_view(model, plan, surrogate):
        loss = embedding_distance(Attacker(surrogate or model, batch), plan, batch_size)
        return run_apgd(batch, plan, loss, seeds=seeds, batch_size=batch_size)


def run_apgd(
    batch: PixelBatch,
    plan: AttackPlan,
    loss: LossFn,
    *,
    seeds: Sequence[int],
    batch_size: int,
    success: SuccessFn | None = None,
) -> Crafted:
    """What APGD on that loss, with the plan's settings, makes of the batch."""
    found = apgd(
        loss, batch.x, **plan.apgd_arguments(), seed=seeds, success=success, batch_size=batch_size,
        workers=_workers(batch)(len(batch)),
    )  # fmt: skip
    pixels = _rounding(batch, plan)(found.x_adv, range(len(batch)))
    return Crafted.plain(
        pixels, _finite(found.loss.tolist()), found.steps.tolist(), found.zero_grad.tolist(), found.failed
    )


def _rounding(batch: PixelBatch, plan: AttackPlan) -> Round:
    return lambda x_adv, index: to_8bit(x_adv, batch.x[list(index)], eps=plan.eps, norm=plan.norm)


def attackers_view(model: PixelModel, plan: AttackPlan, surrogate: PixelModel | None) -> AbstractContextManager[object]:
    """`transfer` without a surrogate is crafted on the undefended twin: the same weights, hooks asleep."""
    return model.undefended() if plan.threat == "transfer" and surrogate is None else nullcontext()


def attack_loss(attacker: Attacker, plan: AttackPlan, asked: Asked) -> LossFn:
    """What the attack raises: distance of image tokens, likelihood of the target, or NLL of the first reference (of an
    ensemble, its first stage's)."""
    if plan.config.loss == "embedding":
        return embedding_distance(attacker, plan, asked.batch_size)
    if plan.config.loss == "targeted":
        assert plan.target is not None
        return attacker.nll(asked.prompts, [plan.target] * len(asked.samples), sign=-1)
    return attacker.nll(asked.prompts, [asked.scores.references(s, 1)[0] for s in asked.samples])


def embedding_distance(attacker: Attacker, plan: AttackPlan, batch_size: int) -> LossFn:
    """How far the image tokens are from the clean ones."""
    at, distance = plan.config.at, plan.config.distance
    assert at is not None
    assert distance is not None
    with torch.no_grad():
        clean = torch.cat(
            [
                attacker.source.features(attacker.view[rows], at=at)
                for rows in chunks(range(len(attacker.view)), batch_size)
            ]
        )
    return embedding_loss(attacker.features(at), clean, distance=distance)


def _reads(attacker: Attacker, asked: Asked, plan: AttackPlan, rounded: Round) -> SuccessFn:
    """Whether the target is read in the answer to the 8-bit image: asked now and then, since each answer takes
    passes of its own."""
    assert plan.steps is not None
    assert plan.target is not None
    target, every = plan.target, max(10, plan.steps // 50)

    def ask(x_adv: Tensor, rows: list[int]) -> Tensor:
        answers = attacker.answers(asked, from_8bit(rounded(x_adv, rows)), rows)
        return torch.tensor([says(answer, target) for answer in answers])

    return check_on(lambda done: done > 0 and done % every == 0, ask, count=len(asked.samples), steps=plan.steps)


def _beaten(attacker: Attacker, asked: Asked, rounded: Round) -> SuccessFn:
    """Whether the answer to the 8-bit image scores 0: no attack can do better."""

    def ask(x_adv: Tensor, rows: list[int]) -> Tensor:
        answers = attacker.answers(asked, from_8bit(rounded(x_adv, rows)), rows)
        return torch.tensor([score <= 0 for score in asked.grade(answers, rows)])

    return ask


def _ensemble(
    attacker: Attacker,
    batch: PixelBatch,
    plan: AttackPlan,
    asked: Asked,
    seeds: Sequence[int],
    clean: Sequence[float] | None,
    tell: Callable[[str, int], None],
) -> Crafted:
    """All stages on one batch. Images are scored, and kept, as the 8-bit ones they will be on disk."""
    rounded = _rounding(batch, plan)
    settings = plan.config.ensemble
    assert settings is not None

    def score(x_adv: Tensor, index: list[int]) -> Tensor:
        return torch.tensor(asked.grade(attacker.answers(asked, x_adv, index), index), dtype=torch.float64)

    everyone = list(range(len(batch)))
    references = [asked.scores.references(s, settings.references) for s in asked.samples]
    found = ensemble(
        stages(stage_plans(settings, asked.task.kind), attacker, asked.prompts, references, plan.half),
        batch.x,
        score=score,
        broken=asked.broken,
        clean_score=score(batch.x, everyone) if clean is None else torch.tensor(clean, dtype=torch.float64),
        finish=lambda x_adv, index: from_8bit(rounded(x_adv, index)),
        beaten=_beaten(attacker, asked, rounded) if plan.leaves_early else None,
        **plan.apgd_arguments(),
        seed=seeds,
        batch_size=asked.batch_size,
        workers=_workers(batch),
        tell=tell,
    )
    # the images are 8-bit levels already
    pixels = (found.x_adv * 255).round().to(torch.uint8)
    return replace(
        Crafted.plain(pixels, _finite(found.loss), found.steps.tolist(), found.zero_grad.tolist(), found.failed),
        stage=[*found.stage],
        broken=found.broken.tolist(),
    )


def _workers(batch: PixelBatch) -> Callable[[int], int]:
    """Threads for so many samples: several on a CPU, which one operation of a small model does not fill."""
    return cpu_workers if batch.x.device.type == "cpu" else lambda count: 1


def _finite(losses: Sequence[float | None]) -> list[float | None]:
    """None for NaN: the loss of a sample that has none."""
    return [None if value is None or math.isnan(value) else value for value in losses]
