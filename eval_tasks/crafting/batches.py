"""The samples of a batch as an attack sees them: what is asked, what is true, how answers are scored.

A `PromptBatch` asks a language model, a `ClassBatch` a zero-shot classifier, a `CaptionBatch` a gallery of captions. An
attack names the one it needs. `index` in all methods are rows of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar
from typing import Protocol as Interface

import torch
from torch import Tensor

from attacks.classification import LogitsFn, likely_wrong, targeted_dlr_loss
from attacks.losses import LossFn
from eval_tasks.config.presets import Threshold
from eval_tasks.crafting.source_model import SourceModel
from eval_tasks.data import Sample, chunks
from lvlm_radapt.models.base import LVLM, PixelBatch
from lvlm_radapt.models.zero_shot import ZeroShot

Tell = Callable[[str, int], None]
"""Told of the stage that begins and its number of images."""
TARGETS = ("maybe", "Word")
"""Answers that the targeted stages of FARE's ensembles pull towards (arXiv 2402.12336)."""


class TextScores(Interface):
    """How answers in texts are scored: `CaptionScores`, `VqaScores`, `ChoiceScores`, or an outside task's own."""

    def references(self, sample: Sample, most: int) -> list[str]:
        """The texts that attacks make unlikely, at most so many."""
        ...

    def canonical(self, sample: Sample) -> float:
        """What the sample's first reference would score."""
        ...

    def score(self, outputs: Mapping[str, str]) -> dict[str, float]:
        """The score of each answer by sample id; higher is better for the defender."""
        ...


def _quiet(stage: str, count: int) -> None:
    """Tell nobody of a stage."""


@dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """The samples row by row; this one knows nothing of them but their pixels.

    batch_size: how many images a model gets at a time. clean: the attacked model's own scores on the clean images, None
    where they are not known. tell: for attacks in stages.
    """

    samples: Sequence[Sample]
    batch_size: int
    clean: Sequence[float] | None = None
    tell: Tell = _quiet
    broken_means: ClassVar[str] = "fell under the ensemble's threshold"


@dataclass(frozen=True, kw_only=True)
class ScoredBatch(SampleBatch, ABC):
    """Samples with questions and scores, as every task makes them."""

    @abstractmethod
    def answers(self, view: SourceModel, x: Tensor, index: Sequence[int]) -> list[str]:
        """What the source model answers to images `x` [len(index),3,H,W] of the victim's canvas."""

    @abstractmethod
    def grade(self, answers: Sequence[str], index: Sequence[int]) -> list[float]:
        """The score of each answer in the task's metric."""

    def rival_losses(self, view: SourceModel) -> dict[str, LossFn]:
        """Other losses by name whose success would lower the score too, for the audit."""
        return {}


@dataclass(frozen=True, kw_only=True)
class PromptBatch(ScoredBatch):
    """Samples that are asked in words. max_new_tokens: the longest answer. threshold: when an ensemble leaves an image
    alone; None where the preset has none. kind: the task's kind, by which an ensemble chooses its target texts."""

    prompts: Sequence[str]
    max_new_tokens: int
    scores: TextScores
    threshold: Threshold | None
    kind: str

    def first_references(self) -> list[str]:
        """The text that an untargeted attack makes unlikely, by row."""
        return [self.scores.references(sample, 1)[0] for sample in self.samples]

    def answers(self, view: SourceModel, x: Tensor, index: Sequence[int]) -> list[str]:
        return self.said_to(view.lvlm(), view.seen(x, index), index)

    def said_to(self, model: LVLM, batch: PixelBatch, index: Sequence[int]) -> list[str]:
        """What `model` says to the images of `batch`, which are the rows `index`."""
        said: list[str] = []
        for places in chunks(range(len(index)), self.batch_size):
            prompts = [self.prompts[index[place]] for place in places]
            said += model.generate(batch[places], prompts, max_new_tokens=self.max_new_tokens)
        return said

    def grade(self, answers: Sequence[str], index: Sequence[int]) -> list[float]:
        ids = [self.samples[i].id for i in index]
        graded = self.scores.score(dict(zip(ids, answers, strict=True)))
        return [graded[one] for one in ids]

    def broken(self, scores: Tensor, index: Sequence[int]) -> Tensor:
        """bool [len(index)]: which of these scores are below the preset's threshold."""
        assert self.threshold is not None  # Ensemble.check
        reached, canonical = self.threshold.reached, self.scores.canonical
        rows = zip(scores.tolist(), index, strict=True)
        return torch.tensor([reached(value, partial(canonical, self.samples[i])) for value, i in rows])

    def rival_losses(self, view: SourceModel) -> dict[str, LossFn]:
        return {text: view.nll(self.prompts, [text] * len(self.samples), sign=-1) for text in TARGETS}


@dataclass(frozen=True, kw_only=True)
class ClassBatch(ScoredBatch):
    """Samples among the classes of the source model's classifier."""

    classifier: ZeroShot
    broken_means: ClassVar[str] = "are misclassified by the model that was attacked"

    @property
    def labels(self) -> Tensor:
        """The true classes, int64 [B]."""
        names = self.classifier.class_names
        true = [names.index(sample.references[0]) for sample in self.samples]
        return torch.tensor(true, device=self.classifier.encoder.device)

    def logits(self, view: SourceModel) -> LogitsFn:
        """`logits(x, index) -> [len(x), K]`, whatever the index is."""
        return view.logits(self.classifier.logits)

    def answers(self, view: SourceModel, x: Tensor, index: Sequence[int]) -> list[str]:
        pieces = chunks(range(len(x)), self.batch_size)
        seen = view.seen(x, index)
        return [name for some in pieces for name in self.classifier.predict(seen[some])]

    def grade(self, answers: Sequence[str], index: Sequence[int]) -> list[float]:
        return [100.0 * (name == self.samples[i].references[0]) for name, i in zip(answers, index, strict=True)]

    def rival_losses(self, view: SourceModel) -> dict[str, LossFn]:
        if len(self.classifier.class_names) < 4:
            return {}
        logits, labels = self.logits(view), self.labels

        @cache
        def likeliest_wrong() -> Tensor:
            rows = chunks(range(len(self.samples)), self.batch_size)
            with torch.no_grad():
                return likely_wrong(torch.cat([logits(view.clean.x[some], some) for some in rows]), labels)

        def towards(rank: int) -> LossFn:
            return lambda x, index: targeted_dlr_loss(logits, labels, likeliest_wrong()[:, rank])(x, index)

        return {"the likeliest wrong class": towards(0), "the next": towards(1)}


class CaptionIndex(Interface):
    """A gallery of U captions in the embedding space of one encoder."""

    def logits(self, batch: PixelBatch) -> Tensor:
        """[B, U], differentiable in `batch.x`."""
        ...

    def nearest(self, batch: PixelBatch, ids: Sequence[str]) -> list[str]:
        """The caption retrieved first for each image; ids: of the images' samples."""
        ...

    def belongs(self, text: str, sample_id: str) -> bool:
        """Whether the caption is one of the sample's."""
        ...


@dataclass(frozen=True, kw_only=True)
class CaptionBatch(ScoredBatch):
    """Samples among the captions of a gallery of U texts. space: the source encoder's. own: bool [B, U], a sample's own
    captions; count: [U], how often each text stands in the gallery."""

    space: CaptionIndex
    own: Tensor
    count: Tensor

    def answers(self, view: SourceModel, x: Tensor, index: Sequence[int]) -> list[str]:
        ids, pixels = [self.samples[i].id for i in index], view.seen(x, index)
        pieces = chunks(range(len(index)), self.batch_size)
        return [text for some in pieces for text in self.space.nearest(pixels[some], [ids[i] for i in some])]

    def grade(self, answers: Sequence[str], index: Sequence[int]) -> list[float]:
        own = zip(answers, index, strict=True)
        return [100.0 * self.space.belongs(said, self.samples[i].id) for said, i in own]
