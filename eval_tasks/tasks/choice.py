"""Questions with closed answers: the attack's target answer and whether the model chose right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from eval_tasks.data import Sample
from eval_tasks.metrics.choice import read_letter, read_yes_no

ChoiceStyle = Literal["yes_no", "letter"]


class ChoiceScores:
    """Accuracy in percent: 100 where the answer, read by the rules of `style`, is the reference, 0 elsewhere."""

    metric = "accuracy"

    def __init__(self, samples: Sequence[Sample], *, style: ChoiceStyle) -> None:
        self._right = {s.id: s.references[0] for s in samples}
        self._read = read_yes_no if style == "yes_no" else read_letter

    def references(self, sample: Sample, most: int) -> list[str]:
        """The texts attacks make unlikely, at most so many: the right answer, also as models like to write it."""
        right = sample.references[0]
        return list(dict.fromkeys([right, right.capitalize()]))[:most]

    def canonical(self, sample: Sample) -> float:
        """100: what the right answer scores."""
        return 100.0

    def score(self, outputs: Mapping[str, str]) -> dict[str, float]:
        """100 or 0 for each answer by sample id."""
        return {i: 100.0 * (self._read(text) == self._right[i]) for i, text in outputs.items()}
