"""Attacks on zero-shot classifiers: the members of a line one after the other, each on what is still standing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attacks.autoattack import LibraryMissingError, require_library
from attacks.classification import ce_loss, fooled
from attacks.eight_bit import from_8bit
from attacks.losses import LossFn
from attacks.suite import LIBRARY, Member, SuiteResult, SuiteSettings, check_members, run_suite
from attacks.threads import workers_of
from eval_tasks.crafting.apgd_attack import Count
from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.batches import ClassBatch, SampleBatch, ScoredBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.utils.errors import UserError

_AIMED = {"apgd-t", "fab", "standard"}  # members that try wrong classes in turn themselves
_NEAREST = {"fab", "standard"}  # members whose points keep as near to the clean image as they can
_NEEDS = {
    "apgd": {"steps", "restarts", "random_start", "step_scale"},
    "pgd": {"steps", "random_start", "step_scale"},
    "fab": {"steps"},
    "square": {"queries"},
    "standard": set[str](),
}
# Gradient steps of the library's attacks, in the attack's number of steps, where there are the fewest classes they
# take; of `standard`, APGD, and APGD-T and FAB-T with three targets each.
_TIMES = {"fab": 1, "standard": 7}
_QUERY = 0.5  # of a gradient evaluation: a loss without its gradient


@dataclass(frozen=True, kw_only=True)
class Classifier(Attack):
    """line: the members in order. The other settings belong to some of them: steps, restarts, random_start and
    step_scale to APGD; all but restarts to PGD; steps to FAB; queries to Square. The library's `standard` has settings
    of its own and stands alone.

    The loss of what is crafted is the attacked classifier's margin before rounding (largest wrong logit less the true
    one). Its stage is the member that made it wrong about the rounded image ("clean": nothing was needed).
    """

    line: Annotated[tuple[Member, ...], Field(min_length=1)]
    steps: Count | None = None
    restarts: Count | None = None
    random_start: bool | None = None
    step_scale: Annotated[float, Field(gt=0)] | None = None
    queries: Count | None = None
    kind: ClassVar[str] = "classifier"
    needs: ClassVar[type[SampleBatch]] = ClassBatch
    meant_for: ClassVar[str] = "image encoders and zero-shot tasks such as imagefolder"
    spares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        families = {member.split("-")[0] for member in self.line}
        if "standard" in families and len(self.line) > 1:
            raise ValueError("standard is an ensemble of its own: nothing else may be in its line")
        if {"apgd", "pgd"} <= families:
            raise ValueError("a line has members of APGD or of PGD, not of both")
        needed = set[str]().union(*(_NEEDS[family] for family in families))
        for name in sorted(set[str]().union(*_NEEDS.values())):
            if (getattr(self, name) is not None) != (name in needed):
                be = "be" if name in needed else "not be"
                raise ValueError(f"{name} must {be} given for the line {', '.join(self.line)}")

    @property
    def stops_early(self) -> bool:
        return True

    @property
    def for_one_model(self) -> bool:
        return True

    @property
    def nearest(self) -> bool:
        return bool(_NEAREST & set(self.line))

    @property
    def suite_settings(self) -> SuiteSettings:
        """The members' settings, the suite's own where this line has none."""
        names = ("steps", "restarts", "random_start", "step_scale", "queries")
        return SuiteSettings(**{name: value for name in names if (value := getattr(self, name)) is not None})

    def stage_names(self, kind: str) -> list[str]:
        return [*self.line]

    def least_work(self, steps: int | None, broken_by: str | None) -> float:
        work = float(steps or 0)
        for member in self.line:
            if member == broken_by:
                break
            if member == "square":
                work += _QUERY * (self.queries or 0)
            else:
                work += _TIMES.get(member, 0) * self.suite_settings.steps
        return work

    def check_classes(self, count: int) -> None:
        """UserError when `count` classes are too few for a member, or a member's library is missing."""
        try:
            check_members(self.line, count)
            if set(self.line) & set(LIBRARY):
                require_library()
        except LibraryMissingError as error:
            raise UserError(str(error)) from error
        except ValueError as error:
            raise UserError(f"--attack {self.name}: {error}") from error

    def loss(self, view: SourceModel, batch: PixelBatch, task: SampleBatch) -> LossFn:
        """The cross entropy of the true class, whichever members attack."""
        assert isinstance(task, ClassBatch)
        return ce_loss(task.logits(view), task.labels)

    def rival_losses(self, view: SourceModel, task: ScoredBatch) -> dict[str, LossFn]:
        return {} if _AIMED & set(self.line) else task.rival_losses(view)

    def craft(self, view: SourceModel, batch: PixelBatch, task: SampleBatch, seeds: Sequence[int]) -> Crafted:
        """A sample counts as broken, and is left alone from then on, when the 8-bit image of the point is
        misclassified: that one is scored. A transfer attack runs every member to its end, since an image that just
        fools one classifier fools no other."""
        assert isinstance(task, ClassBatch)
        logits, labels = task.logits(view), task.labels

        @torch.no_grad()
        def on_disk(x_adv: Tensor, index: list[int]) -> Tensor:
            pixels = self.round_to_8bit(x_adv, batch.x[index])
            return fooled(logits(from_8bit(pixels), index), labels[index])

        try:
            found = run_suite(
                self.line,
                logits,
                batch.x,
                labels,
                eps=self.eps,
                norm=self.norm,
                settings=self.suite_settings,
                seed=list(seeds),
                judge=on_disk,
                stop_early=self.threat == "adaptive",
                batch_size=task.batch_size,
                workers=workers_of(batch.x),
            )
        except LibraryMissingError as error:
            raise UserError(str(error)) from error
        return _crafted(found, self.round_to_8bit(found.x_adv, batch.x))


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
