"""Which candidate is chosen, and whether it helps: rules on numbers, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eval_tasks.audit.findings import Judgement
from eval_tasks.metrics import Interval
from eval_tasks.metrics.intervals import LEAST

Word = Literal["HELPS", "NOTHING HELPED", "AUDIT FAILED", "NO VERDICT"]
EXIT_CODES: dict[Word, int] = {"HELPS": 0, "NOTHING HELPED": 3, "NO VERDICT": 3, "AUDIT FAILED": 4}


@dataclass(frozen=True)
class Candidate:
    """Mean scores on the choosing part, in the metric's unit: on clean images, and under its own adaptive attack."""

    name: str
    clean: float
    adaptive: float


@dataclass(frozen=True)
class Verdict:
    """word: the verdict. reason: why, in a sentence."""

    word: Word
    reason: str

    @property
    def exit_code(self) -> int:
        """0 where a model is written, 3 where none helped or none could be judged, 4 where the audit failed."""
        return EXIT_CODES[self.word]


def choose(candidates: Sequence[Candidate], max_clean_loss: float) -> Candidate | None:
    """The candidate with the highest adaptive score of those that lose at most `max_clean_loss` points on clean images.

    The first is the model as it is. None where no other one beats it. Among equals the best clean score counts, then
    the order.
    """
    first, *others = candidates
    allowed = [one for one in others if first.clean - one.clean <= max_clean_loss + 1e-9]
    best = max(allowed, key=lambda one: (one.adaptive, one.clean), default=None)
    return best if best is not None and best.adaptive > first.adaptive else None


def judge(images: int, winner: str | None, gain: Interval | None, audit: Judgement | None) -> Verdict:
    """images: in the scoring part. winner: None where `choose` found none. gain: the 95 % interval of the paired
    difference to the model as it is, by image, on the scoring part under the adaptive attack; audit: of the winner."""
    if images < LEAST:
        return Verdict(
            "NO VERDICT", f"{images} images to score on show no difference for sure: give {LEAST} or more (two thirds)"
        )
    if winner is None:
        return Verdict("NOTHING HELPED", "no candidate is better under its own attack at so small a clean loss")
    assert gain is not None
    if audit not in ("pass", "warn"):
        return Verdict("AUDIT FAILED", f"the attack on {winner} does not measure what it says")
    if gain.low <= 0:
        return Verdict("NOTHING HELPED", f"{winner} was the best to choose, but makes no sure difference on new images")
    return Verdict("HELPS", f"{winner} is better on images that it was neither trained nor chosen on")
