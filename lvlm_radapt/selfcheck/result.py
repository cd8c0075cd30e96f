"""What a check found, and how one is run so that nothing it meets ends the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from attacks.auto_batch import out_of_memory
from lvlm_radapt.utils.errors import UserError, first_sentence
from lvlm_radapt.utils.printing import one_line

Verdict = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True)
class Check:
    """said: one line, with its number; numbers: the same as JSON values."""

    name: str
    verdict: Verdict
    said: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        return f"{self.verdict:<9}{one_line(f'{self.name}: {self.said}')}"

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "verdict": self.verdict, "said": self.said, "numbers": self.numbers}


class Skipped(Exception):
    """Why a check cannot be made here, in a few words."""


def checked(name: str, ok: bool, said: str, **numbers: Any) -> Check:
    return Check(name, "pass" if ok else "fail", said, numbers)


def run(names: Iterable[str], make: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks that `make()` gives. Those of `names` that it does not come to are skipped where it says so or lacks
    memory, and failed where it ends in any other error."""
    left = list(names)
    try:
        for check in make():
            left.remove(check.name)
            yield check
    except Skipped as reason:
        yield from (Check(name, "skipped", str(reason)) for name in left)
    except UserError as error:
        yield from (Check(name, "fail", str(error)) for name in left)
    except Exception as error:  # a library's own, of any kind: that it raises is what was looked for
        if out_of_memory(error):
            yield from (Check(name, "skipped", "not enough memory for it") for name in left)
            return
        said = f"{type(error).__name__}: {first_sentence(error)}" if str(error) else type(error).__name__
        yield from (Check(name, "fail", said) for name in left)


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference of two tensors of one shape, as a share of the second's standard deviation."""
    first, second = (one.detach().double().cpu() for one in (first, second))
    spread = float(second.std()) if second.numel() > 1 else float(second.abs().max())
    return float((first - second).abs().max()) / max(spread, 1e-12)


def tolerance(dtype: torch.dtype) -> float:
    """How far apart two roads to the same numbers may be in that precision: their sums run in other orders."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.15
