"""Random signs at the full budget: a floor that any real attack must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from attacks import random_noise
from eval_tasks.crafting.attack import Attack, Threat
from eval_tasks.crafting.batches import SampleBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from lvlm_radapt.models.base import PixelBatch


@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """It knows no model, so it has no threat model."""

    threat: Threat | None = None
    kind: ClassVar[str] = "noise"
    knows_model: ClassVar[bool] = False

    def craft(self, view: SourceModel, batch: PixelBatch, task: SampleBatch, seeds: Sequence[int]) -> Crafted:
        noisy = random_noise(batch.x, eps=self.eps, norm=self.norm, seed=seeds)
        return Crafted.plain(self.round_to_8bit(noisy, batch.x))
