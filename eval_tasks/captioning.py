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

    def target(self, sample: Sample) -> str:
        """The text an end-to-end attack makes unlikely: the first reference caption."""
        return sample.references[0]

    def score(self, outputs: Mapping[str, str]) -> dict[str, float]:
        """CIDEr x100 of each caption by sample id."""
        return self._scorer.score(outputs)[1]
