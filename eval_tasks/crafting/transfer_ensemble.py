"""Images that several surrogates at once see as something else, under a random crop at every step (M-Attack, FOA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from attacks.transfer import StepLoss, draw_boxes, random_crops, transfer_ascent
from eval_tasks.crafting.attack import Attack, Threat
from eval_tasks.crafting.batches import SampleBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from eval_tasks.data import chunks
from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.images import file_digest, open_image


@dataclass(frozen=True, kw_only=True)
class TransferEnsemble(Attack):
    """The mean over surrogates of a cosine distance, which has the same range for all of them.

    Without `target_image`, image tokens are driven away from those of the clean image under the same crop. With it, the
    mean token of a crop is drawn to that of a crop of the target. smallest_crop: the shortest side of a crop, as a
    share of the image's; 1 crops nothing. step_scale: the size of a step in units of eps.
    """

    threat: Threat | None = "transfer"
    steps: Annotated[int, Field(ge=1, le=MOST)] = 100
    step_scale: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0)] = 1.0
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.5
    target_image: str | None = None
    kind: ClassVar[str] = "transfer-ensemble"
    takes_several: ClassVar[bool] = True

    def check(self, model: PixelModel, surrogate: PixelModel | None) -> None:
        if self.threat != "transfer":
            raise UserError(f"--attack {self.name} is for --threat transfer, with --surrogate A,B,...")
        if self.target_image is not None:
            open_image(Path(self.target_image))
        super().check(model, surrogate)

    def to_dict(self) -> dict[str, Any]:
        told = super().to_dict()
        if self.target_image is not None:
            told["target_image_sha256"] = file_digest(Path(self.target_image))
        return told

    def craft(self, view: SourceModel, batch: PixelBatch, task: SampleBatch, seeds: Sequence[int]) -> Crafted:
        made = []
        for rows in chunks(range(len(batch)), task.batch_size):
            part, own = batch[rows], [seeds[i] for i in rows]
            losses = [self._loss(SourceModel(member, part), part, own) for member in view.source.members]
            found = transfer_ascent(
                losses,
                part.x,
                eps=self.eps,
                step_size=self.step_scale * self.eps,
                steps=self.steps,
                norm=self.norm,
                momentum=self.momentum,
                seed=own,
            )
            made.append(self.round_to_8bit(found, part.x))
        return Crafted.plain(torch.cat(made), steps=[self.steps] * len(batch))

    def _loss(self, view: SourceModel, batch: PixelBatch, seeds: Sequence[int]) -> StepLoss:
        """What one surrogate sees."""
        index = list(range(len(batch)))

        def tokens(x: Tensor, step: int, part: int) -> Tensor:
            """[B, T, D] of a crop of each image; crops of one step and part are the same."""
            boxes = draw_boxes([2 * seed + part for seed in seeds], step, self.smallest_crop).to(x)
            return view.source.features(view.seen(random_crops(x, boxes), index)).float()

        if self.target_image is None:

            def away(x: Tensor, step: int) -> Tensor:
                with torch.no_grad():
                    clean = tokens(batch.x, step, 0)
                return 1 - cosine_similarity(tokens(x, step, 0), clean, dim=-1).mean(dim=1)

            return away
        picture = open_image(Path(self.target_image)).resize((batch.x.shape[-1], batch.x.shape[-2]))
        shown = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*picture.size[::-1], 3)
        target = (shown.permute(2, 0, 1).to(batch.x) / 255).expand_as(batch.x)
        return partial(_towards, tokens, target)


def _towards(tokens: Any, target: Tensor, x: Tensor, step: int) -> Tensor:
    with torch.no_grad():
        wanted = tokens(target, step, 1).mean(dim=1)
    return cosine_similarity(tokens(x, step, 0).mean(dim=1), wanted, dim=-1)
