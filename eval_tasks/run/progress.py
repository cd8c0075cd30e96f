"""How a run is going: samples done and the score so far, for a progress bar and for machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval_tasks.run.records import SampleRecord

Advance = Callable[[int, str], None]
"""Called with (samples done since the last call, a remark or ""). The first call tells what was done before."""
Log = Callable[[Mapping[str, Any]], None]
"""Called with events: {"event": "start" | "chunk" | "end", ...}, JSON values."""


def tally(records: Sequence[SampleRecord]) -> dict[str, float]:
    """Samples and sums of scores, which can be added up chunk by chunk."""
    made: dict[str, float] = {"samples": len(records)}
    for name in ("clean", "adversarial"):
        answers = [getattr(record, name) for record in records]
        scores = [answer.score for answer in answers if answer is not None and answer.score is not None]
        made[name], made[f"{name}_scored"] = sum(scores), len(scores)
    return made


class Running:
    """The state of a run over `total` samples in `chunks` chunks, told to `advance` and `log`."""

    def __init__(self, total: int, chunks: int, advance: Advance, log: Log) -> None:
        self.total = total
        self.chunks = chunks
        self.advance = advance
        self.log = log
        self._tallies: dict[int, Mapping[str, float]] = {}

    @property
    def done(self) -> int:
        return int(sum(one["samples"] for one in self._tallies.values()))

    def scores(self) -> dict[str, float]:
        """Mean score so far of clean images and of attacked ones; what has none is left out."""
        means = {}
        for name in ("clean", "adversarial"):
            scored = sum(one[f"{name}_scored"] for one in self._tallies.values())
            if scored:
                means[name] = sum(one[name] for one in self._tallies.values()) / scored
        return means

    def begin(self, before: Mapping[int, Mapping[str, float]]) -> None:
        """Chunks that are done already, by number."""
        self._tallies.update(before)
        self.log({"event": "start", "done": self.done, "total": self.total, **self.scores()})
        self.advance(self.done, "done before" if before else "")

    def take(self, tallies: Mapping[int, Mapping[str, float]]) -> None:
        """The chunks done so far, whoever did them; those not yet known are told."""
        for number in sorted(tallies.keys() - self._tallies.keys()):
            one = tallies[number]
            self._tallies[number] = one
            counts = {"chunk": number, "samples": int(one["samples"]), "done": self.done, "total": self.total}
            self.log({"event": "chunk", **counts, **self.scores()})
            self.advance(int(one["samples"]), self._score())

    def stage(self, name: str) -> None:
        """What is being done to the chunk in hand."""
        self.advance(0, " · ".join(filter(None, (name, self._score()))))

    def _score(self) -> str:
        words = {"clean": "clean", "adversarial": "attacked"}
        return ", ".join(f"{words[name]} {value:.1f}" for name, value in self.scores().items())
