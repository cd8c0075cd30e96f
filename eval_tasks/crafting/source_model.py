"""The model an attacker holds, seen from the victim's canvas."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from attacks.losses import LossFn
from eval_tasks.config.presets import Half
from lvlm_radapt.models.base import LVLM, FeaturePoint, PixelBatch, PixelModel
from lvlm_radapt.utils.errors import UserError


class SourceModel:
    """Losses and tokens of `source` as functions of images on the victim's canvas.

    `source` is the victim itself, or a surrogate: one of another canvas sees the images resized, differentiably.
    clean: the victim's clean batch. view: the same as the source sees it.
    """

    def __init__(self, source: PixelModel, batch: PixelBatch) -> None:
        self.source = source
        self.clean = batch
        self.view = view_of(source, batch)

    def seen(self, x: Tensor, index: Sequence[int]) -> PixelBatch:
        """Images of the victim's canvas as the source takes them."""
        return self.view[index].replace(_resize(x, self.view.x.shape[-2:]))

    def features(self, at: FeaturePoint) -> LossFn:
        """The image tokens [len(index), T, D] at that point."""
        return lambda x, index: self.source.features(self.seen(x, index), at=at)

    def nll(self, prompts: Sequence[str], texts: Sequence[str], *, sign: int = 1, half: Half | None = None) -> LossFn:
        """`sign` times the mean token NLL of each row's text, end token included, in answer to its prompt.

        half: run the model in that precision. Autocast, not a copy in half precision: the weights stay as they are,
        nothing is loaded or kept twice, and the residual stream, norms and the loss remain in float32, which leaves
        float16 less room to overflow.
        """
        source = self.lvlm()

        def loss(x: Tensor, index: list[int]) -> Tensor:
            with _precision(source, half):
                return sign * source.loss(self.seen(x, index), [prompts[i] for i in index], [texts[i] for i in index])

        return loss

    def lvlm(self) -> LVLM:
        """The source, for attacks through a language model."""
        assert isinstance(self.source, LVLM)  # TextRun.check
        return self.source


def view_of(source: PixelModel, batch: PixelBatch) -> PixelBatch:
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


def _precision(source: PixelModel, half: Half | None) -> AbstractContextManager[object]:
    if half is None:
        return nullcontext()
    return torch.autocast(source.device.type, dtype=getattr(torch, half))


def _resize(x: Tensor, shape: torch.Size) -> Tensor:
    if x.shape[-2:] == shape:
        return x
    resized = F.interpolate(x, size=tuple(shape), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)
