"""What an audit says: a finding a check, and the verdict over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["pass", "warn", "fail"]
Number = float | int | str | bool | None

_ORDER: tuple[Verdict, ...] = ("pass", "warn", "fail")


def worst(*verdicts: Verdict) -> Verdict:
    """The gravest of them; `pass` for none."""
    return max(verdicts, key=_ORDER.index, default="pass")


@dataclass(frozen=True)
class Finding:
    """One check's result: its numbers by name, and one sentence that says what they mean."""

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

    form: Literal["full", "short"]
    samples: int
    steps: int
    findings: tuple[Finding, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    cost: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The gravest verdict of its findings."""
        return worst(*(finding.verdict for finding in self.findings))

    def named(self, verdict: Verdict) -> list[str]:
        """The checks with this verdict."""
        return [finding.name for finding in self.findings if finding.verdict == verdict]

    def line(self) -> str:
        """`fail (2 of 15 checks): ball, transfer`."""
        if self.verdict == "pass":
            return f"pass ({len(self.findings)} checks)"
        names = self.named(self.verdict)
        return f"{self.verdict} ({len(names)} of {len(self.findings)} checks): {', '.join(names)}"

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
        """The audit that `to_dict` wrote; KeyError or TypeError for anything else."""
        return cls(
            form=document["form"],
            samples=document["samples"],
            steps=document["steps"],
            findings=tuple(Finding(**finding) for finding in document["findings"]),
            skipped=dict(document["skipped"]),
            cost=document["cost"],
        )
