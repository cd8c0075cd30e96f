"""Attack budgets as the field writes them, `4/255`, and what 8-bit images have of them."""

from __future__ import annotations

import math
import re

from attacks.norms import Norm

TOLERANCE = 1e-4  # of an 8-bit level: x + eps in float32 falls a few ulp short of the level it means
_ROUNDING = 1e-5  # of eps and of a level
_LARGEST = 1e4  # the diagonal of any canvas is below that: a larger L2 eps is a slip of the pen
_NUMBER = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?"
_EPS = re.compile(rf"\s*({_NUMBER})\s*(?:/\s*({_NUMBER})\s*)?", re.ASCII)


def parse_eps(text: str, norm: Norm = "Linf") -> float:
    """The budget in units of the [0, 1] pixel range, from a fraction (`4/255`) or a decimal (`0.0157`).

    Linf: raises ValueError for anything that is not a number in (0, 1]; a bare `4` is refused, not divided by 255.
    L2: the length of the whole perturbation, any number above 0.
    """
    match = _EPS.fullmatch(text)
    if match is not None:
        over, under = float(match[1]), float(match[2] or 1.0)
        value = over / under if under > 0 else math.inf
        if 0 < value <= (1 if norm == "Linf" else _LARGEST):
            return value
    shown = text if len(text) <= 40 else text[:37] + "..."
    if norm == "L2":
        raise ValueError(
            f"eps under L2 must be a length above 0, in units of the pixel range: got {shown!r}; write 2.0"
        )
    raise ValueError(f"eps must be in (0, 1], the pixel range: got {shown!r}; write 4/255, 8/255 or 0.0157")


def eps_text(eps: float, norm: str | None = "Linf") -> str:
    """`4/255` when eps is a whole number of 8-bit levels, else (and for L2) the shortest exact decimal."""
    if norm == "L2":
        return repr(float(eps))
    levels = round(eps * 255)
    if levels >= 1 and math.isclose(eps, levels / 255, rel_tol=1e-12):
        return f"{levels}/255"
    return repr(float(eps))


def whole_levels(eps: float) -> int:
    """How many 8-bit levels a value may change by within `eps`; 0: every image rounds to the clean one."""
    return int(eps * 255 + TOLERANCE)


def eps_8bit(eps: float, norm: str | None) -> float | None:
    """The Linf budget that 8-bit images have, in whole levels; None under L2, where it depends on the image."""
    return None if norm == "L2" else whole_levels(eps) / 255


def within(distance: float, eps: float) -> bool:
    """Whether an 8-bit image at that distance is in the ball, but for the rounding of float32 numbers."""
    return distance <= eps * (1 + _ROUNDING) + _ROUNDING / 255


def budget_text(eps: float, norm: str | None = "Linf") -> str:
    """`eps_text`, and what 8-bit images have of it where that is less: `0.0078 (1/255 in 8 bits)`."""
    text, left = eps_text(eps, norm), eps_8bit(eps, norm)
    return text if left is None or abs(left - eps) * 255 < TOLERANCE else f"{text} ({eps_text(left)} in 8 bits)"


def check_8bit_budget(eps: float, norm: str | None) -> None:
    """ValueError for a budget that no 8-bit image can use, in either norm: less than one level of one value."""
    if whole_levels(eps) == 0:
        raise ValueError(
            f"eps {eps_text(eps, norm)} is less than one level of an 8-bit image: attacked images would be the clean "
            "ones; give at least 1/255"
        )
