"""Questions with closed answers, yes or no or a letter: whether the model chose right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from eval_tasks.data import Sample
from eval_tasks.metrics.choice import f1_over_parts, read_letter, read_yes_no
from eval_tasks.tasks.text import TextTask

Read = Callable[[str], str | None]


@dataclass(frozen=True, kw_only=True)
class Choice(TextTask):
    """A letter out of those that the question gives."""

    metric: ClassVar[str] = "accuracy"
    kind: ClassVar[str] = "choice"

    def scorer(self, samples: Sequence[Sample]) -> ChoiceScores:
        return ChoiceScores(samples, self.read)

    def read(self, answer: str) -> str | None:
        """The answer as its score reads it; None for one that chooses nothing."""
        return read_letter(answer)


@dataclass(frozen=True, kw_only=True)
class YesNo(Choice):
    """Yes or no, with POPE's F1 of yes."""

    def read(self, answer: str) -> str | None:
        return read_yes_no(answer)

    def f1(self, answers: Mapping[str, tuple[str, str]]) -> float:
        return f1_over_parts(answers)


class ChoiceScores:
    """Accuracy in percent: 100 where the answer, as `read` reads it, is the reference, 0 elsewhere."""

    def __init__(self, samples: Sequence[Sample], read: Read) -> None:
        self._right = {s.id: s.references[0] for s in samples}
        self._read = read

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
