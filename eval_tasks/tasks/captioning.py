"""Captioning: what the model is asked, what an attack pushes away from, and CIDEr-D of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval_tasks.data import Sample
from eval_tasks.metrics import CiderScorer
from eval_tasks.metrics.tokenizers import TokenizerName


class CaptionScores:
    """CIDEr-D (x100), its document frequency fixed from ALL selected references before anything is scored."""

    metric = "cider"

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
