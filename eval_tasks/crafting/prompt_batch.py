"""What the images of a batch are asked, and how the answers are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol as Interface

from torch import Tensor, tensor

from eval_tasks.config.presets import Protocol, TaskConfig
from eval_tasks.data import Sample, chunks
from lvlm_radapt.models.base import LVLM, PixelBatch


class TextScores(Interface):
    """A task whose answers are texts: `CaptionScores`, `VqaScores`."""

    def references(self, sample: Sample, most: int) -> list[str]: ...

    def canonical(self, sample: Sample) -> float: ...

    def score(self, outputs: Mapping[str, str]) -> dict[str, float]: ...


@dataclass(frozen=True)
class Asked:
    """The samples of a batch, row by row; `index` in its methods are rows."""

    samples: Sequence[Sample]
    task: TaskConfig
    protocol: Protocol
    scores: TextScores
    batch_size: int
    """How many images a model gets at a time."""

    @property
    def prompts(self) -> list[str]:
        return [self.protocol.prompt(self.task, s.question) for s in self.samples]

    def answers(self, model: LVLM, batch: PixelBatch, index: Sequence[int]) -> list[str]:
        """What `model` says to the images of `batch`, which are the rows `index`."""
        prompts, tokens = self.prompts, self.protocol.tokens(self.task.name)
        said: list[str] = []
        for places in chunks(range(len(index)), self.batch_size):
            asked = [prompts[index[place]] for place in places]
            said += model.generate(batch[places], asked, max_new_tokens=tokens)
        return said

    def grade(self, answers: Sequence[str], index: Sequence[int]) -> list[float]:
        """The score of each answer in the task's metric."""
        ids = [self.samples[i].id for i in index]
        graded = self.scores.score(dict(zip(ids, answers, strict=True)))
        return [graded[one] for one in ids]

    def broken(self, scores: Tensor, index: Sequence[int]) -> Tensor:
        """bool [len(index)]: which of these scores are below the protocol's threshold."""
        threshold = self.protocol.threshold(self.task.name)
        share = threshold.kind == "canonical_share"
        return tensor(
            [
                threshold.reached(value, self.scores.canonical(self.samples[i]) if share else None)
                for value, i in zip(scores.tolist(), index, strict=True)
            ]
        )
