"""Visual question answering: the attack's target answer and the accuracy of the model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from eval_tasks.data import Sample
from eval_tasks.metrics import vqa_accuracy
from eval_tasks.metrics.vqa import Style


class VqaScores:
    """VQA accuracy in percent, by the rules of `style`."""

    metric = "vqa_accuracy"

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
