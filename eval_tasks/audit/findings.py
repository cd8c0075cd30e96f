"""What an audit says: a finding a check, and the verdict over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

Verdict = Literal["pass", "warn", "fail"]
Judgement = Literal["pass", "warn", "fail", "too little to judge"]
Number = float | int | str | bool | None

LEAST = 5
"""Fewer checks than these are no ground for a pass: in the short form, the ball, the gradients, the two on answers
and the first attack that must not win."""

_ORDER: tuple[Verdict, ...] = ("pass", "warn", "fail")


class NoSignal(Exception):
    """A check whose numbers would say nothing here; the message says why, and the check counts as not run."""


def worst(*verdicts: Verdict) -> Verdict:
    """The gravest of them; `pass` for none."""
    return max(verdicts, key=_ORDER.index, default="pass")


@dataclass(frozen=True)
class Finding:
    """One check's result: its numbers by name, and one sentence that says what they mean."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    name: str
    verdict: Verdict
    explanation: str
    numbers: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """All findings of one audit.

    form: `full`, or `short`, the one inside every adaptive evaluation. samples, steps: how many images, and the
    gradient steps of its attacks. skipped: check -> why it did not run. cost: what was spent, in gradient
    evaluations of one image.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    form: Literal["full", "short"]
    samples: int
    steps: int
    findings: tuple[Finding, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    cost: float = 0.0

    @property
    def verdict(self) -> Judgement:
        """The gravest verdict of its findings; no pass where fewer than LEAST checks ran."""
        gravest = worst(*(finding.verdict for finding in self.findings))
        return "too little to judge" if gravest == "pass" and len(self.findings) < LEAST else gravest

    def named(self, verdict: Verdict) -> list[str]:
        """The checks with this verdict."""
        return [finding.name for finding in self.findings if finding.verdict == verdict]

    def line(self) -> str:
        """`fail (2 of 15 checks): ball, transfer`."""
        gravest = self.verdict
        if gravest == "pass":
            return f"pass ({len(self.findings)} checks)"
        if gravest == "too little to judge":
            whole = len(self.findings) + len(self.skipped)
            return f"{gravest} ({len(self.findings)} of {whole} checks ran, {LEAST} are the least)"
        names = self.named(gravest)
        return f"{gravest} ({len(names)} of {len(self.findings)} checks): {', '.join(names)}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it back."""
        return {
            "form": self.form,
            "verdict": self.verdict,
            "samples": self.samples,
            "steps": self.steps,
            "cost": self.cost,
            "findings": [asdict(finding) for finding in self.findings],
            "skipped": dict(self.skipped),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Audit:
        """The audit that `to_dict` wrote; pydantic's ValidationError, a ValueError, for anything else."""
        return _READER.validate_python(document)


_READER = TypeAdapter(Audit)
