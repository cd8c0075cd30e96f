"""Corruptions as cameras, weather and compression make them: no attacker, five levels (arXiv 1903.12261)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from eval_tasks.config.validation import unknown_name
from eval_tasks.crafting.attack import Attack, Threat
from eval_tasks.crafting.batches import SampleBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.utils.errors import UserError

MIXED = "mixed"
LEAST_SIDE = 32  # pixels that the library wants


@dataclass(frozen=True, kw_only=True)
class Corruption(Attack):
    """corruption: one of the library's by name, or `mixed`, where each sample draws one of the 15 common ones.
    severity: from 1 to 5.

    It has no budget: eps is the whole pixel range. The library `imagecorruptions` draws it on the model's canvas. Each
    record's `stage` names the corruption.
    """

    eps: float = 1.0
    threat: Threat | None = "natural"
    corruption: str = MIXED
    severity: Literal[1, 2, 3, 4, 5] = 3
    kind: ClassVar[str] = "corruption"
    knows_model: ClassVar[bool] = False

    def check(self, model: PixelModel, surrogate: PixelModel | None) -> None:
        known = [MIXED, *_library().get_corruption_names("all")]
        if self.corruption not in known:
            raise unknown_name("corruption", self.corruption, known)
        if self.eps != 1:
            raise UserError(f"--attack {self.name} has no budget: leave --eps out, its strength is severity 1 to 5")
        super().check(model, surrogate)

    def craft(self, view: SourceModel, batch: PixelBatch, task: SampleBatch, seeds: Sequence[int]) -> Crafted:
        height, width = batch.x.shape[-2:]
        if min(height, width) < LEAST_SIDE:
            raise UserError(
                f"--attack {self.name} needs a canvas of {LEAST_SIDE} pixels a side or more, this is {width}x{height}"
            )
        names = _library().get_corruption_names("common") if self.corruption == MIXED else [self.corruption]
        chosen = [names[seed % len(names)] for seed in seeds]
        clean = (batch.x * 255).round().to("cpu").byte().permute(0, 2, 3, 1).numpy()
        made = [self._corrupt(*one) for one in zip(clean, chosen, seeds, strict=True)]
        pixels = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()
        return replace(Crafted.plain(pixels), stage=list(chosen))

    def _corrupt(self, image: np.ndarray, name: str, seed: int) -> np.ndarray:
        """uint8 [H, W, 3], a function of the image, the corruption and the seed alone."""
        library = _library()
        function = library.corruption_dict[name]
        own = {"seed": seed % 2**31} if "seed" in inspect.signature(function).parameters else {}
        with _numpy_seeded(seed % 2**32):
            found: np.ndarray = library.corrupt(image, severity=self.severity, corruption_name=name, **own)
        return found


def _library() -> Any:
    try:
        import imagecorruptions
    except ImportError as error:
        raise UserError(
            "--attack corruption needs the library imagecorruptions: pip install 'lvlm-radapt[corruptions]'"
        ) from error
    return imagecorruptions


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Inside, numpy's global generator, from which the library draws, begins at this seed."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
