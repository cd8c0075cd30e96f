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
        self._answers = {s.id: s.references for s in samples}
        self._style: Style = style

    def target(self, sample: Sample) -> str:
        """The text an end-to-end attack makes unlikely: the most frequent answer, first among equals."""
        return Counter(sample.references).most_common(1)[0][0]

    def score(self, outputs: Mapping[str, str]) -> dict[str, float]:
        """Accuracy in percent of each answer by sample id."""
        return {i: 100 * vqa_accuracy(text, self._answers[i], self._style) for i, text in outputs.items()}
