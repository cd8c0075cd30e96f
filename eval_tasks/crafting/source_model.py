"""The model an attacker holds, seen from the victim's canvas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from attacks.classification import LogitsFn
from attacks.eot import mean_over_draws
from attacks.losses import LossFn
from eval_tasks.config.presets import Half
from lvlm_radapt.defences.base import derived_seed
from lvlm_radapt.models.base import LVLM, FeaturePoint, PixelBatch, PixelModel
from lvlm_radapt.utils.errors import UserError

Draws = Literal["fresh", "held", "scored"]


class SourceModel:
    """Losses and tokens of `source` as functions of images on the victim's canvas.

    `source` is the victim itself, or a surrogate: one of another canvas sees the images resized, differentiably.
    clean: the victim's clean batch. view: the same as the source sees it.

    Where its defence is random the losses are means over several draws (EOT). By `draws` an image gets
      - "fresh": draws of its own, a function of the sample, the draw's number and the pixels;
      - "held": the same draws for all images of a sample, so that losses can be compared;
      - "scored": the one draw that a score comes from. No attack may see that.
    """

    def __init__(self, source: PixelModel, batch: PixelBatch, draws: Draws = "fresh") -> None:
        self.source = source
        self.clean = batch
        self.view = view_of(source, batch)
        self._draws = draws

    def seen(self, x: Tensor, index: Sequence[int], draw: int = 0) -> PixelBatch:
        """Images of the victim's canvas as the source takes them; `draw`: which of the draws of a random defence."""
        return self._drawn(self.view[index], x, draw)

    def _drawn(self, view: PixelBatch, x: Tensor, draw: int) -> PixelBatch:
        view = view.replace(_resize(x, self.view.x.shape[-2:]))
        if not self.source.is_random or self._draws == "scored":
            return view
        contents = _fingerprints(view.x) if self._draws == "fresh" else [0] * len(view)
        pairs = zip(view.seeds, contents, strict=True)
        return view.with_seeds([derived_seed(seed, draw, content) for seed, content in pairs])

    def over_draws(self, loss_of: Callable[[int], LossFn]) -> LossFn:
        """The mean of `loss_of(draw)` over the draws that an attack averages over; `loss_of(0)` if nothing is drawn."""
        return mean_over_draws(loss_of, self.source.draws)

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

        def loss_of(draw: int) -> LossFn:
            def loss(x: Tensor, index: list[int]) -> Tensor:
                seen = self.seen(x, index, draw)
                with _precision(source, half):
                    return sign * source.loss(seen, [prompts[i] for i in index], [texts[i] for i in index])

            return loss

        return self.over_draws(loss_of)

    def logits(self, logits: Callable[[PixelBatch], Tensor]) -> LogitsFn:
        """A classifier's logits [len(index), K] of images, the mean over draws; the same whatever the index is."""

        def mean(x: Tensor, index: list[int]) -> Tensor:
            # an encoder reads nothing but the pixels: the first image's particulars, and one seed, do for all
            view = self.view[[0] * len(x)].with_seeds([0] * len(x))
            found = [logits(self._drawn(view, x, draw)) for draw in range(self.source.draws)]
            return found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)

        return mean

    def lvlm(self) -> LVLM:
        """The source, for attacks through a language model."""
        assert isinstance(self.source, LVLM)  # TextRun.check
        return self.source


def _fingerprints(x: Tensor) -> list[int]:
    """A whole number for each image, the same whatever else is in the batch."""
    return x.detach().float().contiguous().view(torch.int32).flatten(1).sum(1, dtype=torch.int64).tolist()


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
    return PixelBatch(_resize(batch.x, shape), own.meta * len(batch)).with_seeds(batch.seeds)


def _precision(source: PixelModel, half: Half | None) -> AbstractContextManager[object]:
    if half is None:
        return nullcontext()
    return torch.autocast(source.device.type, dtype=getattr(torch, half))


def _resize(x: Tensor, shape: torch.Size) -> Tensor:
    if x.shape[-2:] == shape:
        return x
    resized = F.interpolate(x, size=tuple(shape), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)
