"""Visual question answering: accuracy against the ten human answers, by the rules of one of three scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from eval_tasks.data import Sample
from eval_tasks.metrics import vqa_accuracy
from eval_tasks.metrics.vqa import RULES, Style
from eval_tasks.tasks.text import TextTask


@dataclass(frozen=True, kw_only=True)
class Vqa(TextTask):
    """style: how answers are normalised before they are compared."""

    style: Style = "openflamingo"
    metric: ClassVar[str] = "vqa_accuracy"
    kind: ClassVar[str] = "vqa"

    def scorer(self, samples: Sequence[Sample]) -> VqaScores:
        return VqaScores(samples, style=self.style)

    def rule(self) -> dict[str, Any]:
        return {"answers": {"style": self.style, "rule": RULES[self.style]}}


class VqaScores:
    """VQA accuracy in percent, by the rules of `style`."""

    def __init__(self, samples: Sequence[Sample], *, style: Style) -> None:
        self.style: Style = style
        self._answers = {s.id: s.references for s in samples}

    def references(self, sample: Sample, most: int) -> list[str]:
        """The texts attacks make unlikely, at most so many: the distinct answers, the most frequent first and the
        first given among equals."""
        return [answer for answer, _ in Counter(sample.references).most_common(most)]

    def canonical(self, sample: Sample) -> float:
        """The accuracy of the most frequent answer."""
        return self.score({sample.id: self.references(sample, 1)[0]})[sample.id]

    def score(self, outputs: Mapping[str, str]) -> dict[str, float]:
        """Accuracy in percent of each answer by sample id."""
        return {i: 100 * vqa_accuracy(text, self._answers[i], self.style) for i, text in outputs.items()}
