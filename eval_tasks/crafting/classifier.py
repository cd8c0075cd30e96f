"""Zero-shot classification: the score of a predicted class, and images that make an encoder predict another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from attacks.autoattack import LibraryMissingError
from attacks.classification import fooled
from attacks.eight_bit import from_8bit, to_8bit
from attacks.suite import SuiteResult, SuiteSettings, check_members, run_suite
from attacks.threads import cpu_workers
from eval_tasks.config.presets import AttackConfig
from eval_tasks.crafting.craft import Crafted, Threat
from eval_tasks.crafting.source_model import Attacker
from eval_tasks.data import Sample
from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.zero_shot import ZeroShot
from lvlm_radapt.utils.errors import UserError


class ClassScores:
    """Accuracy in percent: 100 for the true class's name, 0 for any other."""

    metric = "accuracy"

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._true = {s.id: s.references[0] for s in samples}

    def score(self, outputs: Mapping[str, str]) -> dict[str, float]:
        """100 or 0 for each predicted class name by sample id."""
        return {i: 100.0 * (name == self._true[i]) for i, name in outputs.items()}


def check_classes(config: AttackConfig, count: int) -> None:
    """UserError when `count` classes are too few for a member of the attack's suite."""
    assert config.line is not None  # presets: every classifier attack has one
    try:
        check_members(config.line, count)
    except ValueError as error:
        raise UserError(f"--attack {config.name}: {error}") from error


def attack_classifier(
    victim: ZeroShot,
    batch: PixelBatch,
    names: Sequence[str],
    config: AttackConfig,
    *,
    eps: float,
    steps: int | None,
    seeds: Sequence[int],
    threat: Threat = "adaptive",
    surrogate: ZeroShot | None = None,
    batch_size: int | None = None,
) -> Crafted:
    """Attack every image of `batch`, the victim's canvas; true class names and seeds belong to its rows.

    The loss of what is crafted is the attacked classifier's margin before rounding (largest wrong logit less the true
    one), its stage the suite's member that made it wrong about the rounded image ("clean": nothing was needed).

    steps: None for the attack's own. threat "adaptive" attacks the victim itself; "transfer" the `surrogate` (of the
    same classes), or the victim with its defence asleep, and then runs every gradient attack to its end: an image
    that just fools one classifier fools no other. A sample counts as broken, and is left alone from then on, when
    the 8-bit image of the point is misclassified: that one is scored. batch_size: images at a time; None for all.

    UserError for too few classes, a missing library, or a surrogate of other classes.
    """
    source = victim if surrogate is None else surrogate
    if source.class_names != victim.class_names:
        raise UserError(f"{source.encoder.name}: a surrogate must be asked for the same classes in the same order")
    check_classes(config, len(source.class_names))
    assert config.line is not None
    norm = config.norm
    assert norm is not None
    labels = torch.tensor([source.class_names.index(name) for name in names], device=batch.x.device)
    attacker = Attacker(source.encoder, batch)

    def logits(x: Tensor, index: list[int]) -> Tensor:
        # an encoder reads nothing but the pixels: the first image's particulars do for all
        return source.logits(attacker.seen(x, [0] * len(x)))

    @torch.no_grad()
    def on_disk(x_adv: Tensor, index: list[int]) -> Tensor:
        pixels = to_8bit(x_adv, batch.x[index], eps=eps, norm=norm)
        return fooled(logits(from_8bit(pixels), index), labels[index])

    asleep = threat == "transfer" and surrogate is None
    with victim.encoder.undefended() if asleep else nullcontext():
        try:
            found = run_suite(
                config.line,
                logits,
                batch.x,
                labels,
                eps=eps,
                norm=norm,
                settings=suite_settings(config, steps),
                seed=list(seeds),
                judge=on_disk,
                stop_early=threat == "adaptive",
                batch_size=batch_size,
                workers=cpu_workers(len(batch)) if batch.x.device.type == "cpu" else 1,
            )
        except LibraryMissingError as error:
            raise UserError(str(error)) from error
    return _crafted(found, to_8bit(found.x_adv, batch.x, eps=eps, norm=norm))


def suite_settings(config: AttackConfig, steps: int | None = None) -> SuiteSettings:
    """The settings of a classifier attack; `steps` in place of its own. UserError where it has none to change."""
    if steps is not None and config.steps is None:
        raise UserError(f"--steps is not for --attack {config.name}: its number is part of what it is")
    number = steps or config.steps
    usual = SuiteSettings()
    own = config.apgd or config.pgd
    return SuiteSettings(
        steps=usual.steps if number is None else number,
        restarts=config.apgd.restarts if config.apgd else usual.restarts,
        random_start=own.random_start if own else usual.random_start,
        step_scale=own.step_scale if own else usual.step_scale,
        queries=config.queries or usual.queries,
    )


def _crafted(found: SuiteResult, pixels: Tensor) -> Crafted:
    broken: list[bool | None] = [by is not None for by in found.broken_by]
    return Crafted(
        pixels=pixels,
        loss=[float(v) if v.isfinite() else None for v in found.margin],
        steps=found.steps.tolist(),
        zero_grad=found.zero_grad.tolist(),
        failed=found.failed,
        stage=found.broken_by,
        broken=broken,
        rounded_back=[not done and float(v) > 0 for done, v in zip(broken, found.margin, strict=True)],
        remarks=found.remarks,
    )
