"""Black-box attacks that ask the attacked model itself, a bounded number of times, and see what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attacks.blackbox import BlackBoxResult, random_search, spsa
from attacks.eight_bit import from_8bit
from attacks.losses import LossFn
from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.batches import PromptBatch, SampleBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError

_PAIRS = 4  # of losses that SPSA takes the slope from at a step


@dataclass(frozen=True, kw_only=True)
class Query(Attack):
    """search: `random-search` (squares, after Square Attack) or `spsa`. queries: images a sample that the model is
    asked about.

    sees: `answers`, as of a model behind an API, or `loss`, the values of the first reference's loss, which only a
    model that runs here tells. From answers the loss is how unlike the first reference they are, and their lost score.
    """

    search: Literal["random-search", "spsa"] = "random-search"
    queries: Annotated[int, Field(ge=2, le=MOST)] = 100
    sees: Literal["answers", "loss"] = "answers"
    kind: ClassVar[str] = "query"
    needs: ClassVar[type[SampleBatch]] = PromptBatch
    meant_for: ClassVar[str] = "models that answer in texts"
    needs_gradients: ClassVar[bool] = False
    reads_prompt: ClassVar[bool] = True

    @property
    def references(self) -> int:
        return 1

    def check(self, model: PixelModel, surrogate: PixelModel | None) -> None:
        super().check(model, surrogate)
        if self.threat != "adaptive":
            raise UserError(f"--attack {self.name} asks the attacked model itself: leave --threat out")
        if model.answers_only and self.sees == "loss":
            raise UserError(f"{model.name} gives answers alone: leave sees=loss out")
        if self.search == "spsa" and self.queries < 2 + 2 * _PAIRS + 1:
            raise UserError(f"--attack {self.name} with spsa needs {2 + 2 * _PAIRS + 1} queries or more")

    def craft(self, view: SourceModel, batch: PixelBatch, task: SampleBatch, seeds: Sequence[int]) -> Crafted:
        assert isinstance(task, PromptBatch)
        found = self._search(self._seen(view, batch, task), batch.x, seeds)
        return Crafted.plain(self.round_to_8bit(found.x_adv, batch.x), found.loss.tolist())

    def _search(self, loss: LossFn, x: Tensor, seeds: Sequence[int]) -> BlackBoxResult:
        if self.search == "random-search":
            return random_search(loss, x, eps=self.eps, queries=self.queries, norm=self.norm, seed=seeds)
        steps = (self.queries - 2) // (2 * _PAIRS + 1)
        return spsa(loss, x, eps=self.eps, steps=steps, pairs=_PAIRS, norm=self.norm, seed=seeds)

    def _seen(self, view: SourceModel, batch: PixelBatch, task: PromptBatch) -> LossFn:
        """The loss of 8-bit images, as whoever asks could send them."""
        wanted = task.first_references()

        def loss(x: Tensor, index: list[int]) -> Tensor:
            pixels = from_8bit(self.round_to_8bit(x, batch.x[index])).to(x.device)
            if self.sees == "loss":
                return view.nll(task.prompts, wanted)(pixels, index)
            answers = task.answers(view, pixels, index)
            lost = [-score / 100 for score in task.grade(answers, index)]
            unlike = [1 - likeness(answer, wanted[i]) for answer, i in zip(answers, index, strict=True)]
            return torch.tensor([a + b for a, b in zip(lost, unlike, strict=True)], dtype=x.dtype)

        return loss


def likeness(first: str, second: str) -> float:
    """How alike two texts are, from 0 to 1, whatever their case: twice the shared characters over all of them."""
    return SequenceMatcher(None, first.casefold(), second.casefold(), autojunk=False).ratio()
