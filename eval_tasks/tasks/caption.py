"""Captioning: CIDEr-D (x100) of the model's caption; attacks push away from the reference captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from eval_tasks.data import Sample
from eval_tasks.metrics import CiderScorer
from eval_tasks.metrics.cider import check_enough
from eval_tasks.metrics.tokenizers import TokenizerName
from eval_tasks.tasks.text import TextTask
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Caption(TextTask):
    """tokenizer: how captions become words."""

    tokenizer: TokenizerName = "ptb"
    metric: ClassVar[str] = "cider"
    kind: ClassVar[str] = "caption"

    def check_samples(self, samples: Sequence[Sample]) -> None:
        check_enough(len(samples))

    def prompt(self, sample: Sample) -> str:
        return self.template

    def scorer(self, samples: Sequence[Sample]) -> CaptionScores:
        return CaptionScores(samples, tokenizer=self.tokenizer)

    def check_early_exit(self) -> None:
        raise UserError(f"--early-exit is for questions: a caption of {self.name} can always score less")

    def notes(self, samples: int) -> list[str]:
        return [f"CIDEr-D x100, document frequency from the references of these {samples} images"]


class CaptionScores:
    """CIDEr-D (x100), its document frequency fixed from ALL selected references before anything is scored."""

    def __init__(self, samples: Sequence[Sample], *, tokenizer: TokenizerName) -> None:
        self._scorer = CiderScorer({s.id: s.references for s in samples}, tokenizer=tokenizer)
        self._first = {s.id: s.references[0] for s in samples}
        self._canonical: dict[str, float] | None = None

    def references(self, sample: Sample, most: int) -> list[str]:
        """The texts attacks make unlikely, at most so many: the reference captions in their order."""
        return list(sample.references[:most])

    def canonical(self, sample: Sample) -> float:
        """What the sample's first reference would score as an answer."""
        if self._canonical is None:
            self._canonical = self.score(self._first)
        return self._canonical[sample.id]

    def score(self, outputs: Mapping[str, str]) -> dict[str, float]:
        """CIDEr x100 of each caption by sample id."""
        return self._scorer.score(outputs)[1]
