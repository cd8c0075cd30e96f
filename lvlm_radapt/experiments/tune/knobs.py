"""Which settings are tried: one knob at a time around the default, then the best of each together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lvlm_radapt.defences.radapt.config import Mix, RAdaptConfig
from lvlm_radapt.utils.errors import UserError

DEFAULT = RAdaptConfig()
MOST = 200  # values a knob: more is a slip of the pen, and days of attacks


@dataclass(frozen=True)
class Knobs:
    """The values of each knob; a cutoff of None leaves the filter out."""

    cutoffs: tuple[float | None, ...]
    alphas: tuple[float, ...]
    mixes: tuple[Mix, ...]

    def cutoff_line(self) -> list[RAdaptConfig]:
        """Every cutoff at the default anchor."""
        return [replace(DEFAULT, cutoff=cutoff) for cutoff in self.cutoffs]

    def alpha_line(self, mix: Mix) -> list[RAdaptConfig]:
        """Every alpha under that mix at the default cutoff."""
        return [replace(DEFAULT, alpha=alpha, mix=mix) for alpha in self.alphas]

    def points(self) -> list[RAdaptConfig]:
        """All of these lines with the default, each setting once, what does nothing left out."""
        lines = [DEFAULT, *self.cutoff_line(), *(point for mix in self.mixes for point in self.alpha_line(mix))]
        return list(dict.fromkeys(settled(point) for point in lines if point.cutoff is not None or point.alpha != 0))


def settled(point: RAdaptConfig) -> RAdaptConfig:
    """The same defence, written in one way: without an anchor there is nothing to mix."""
    return replace(point, mix=DEFAULT.mix) if point.alpha == 0 else point


def point_name(point: RAdaptConfig) -> str:
    """What its run folders are called: `cutoff-40-alpha-1-interpolate`."""
    cutoff = "none" if point.cutoff is None else f"{point.cutoff:g}"
    return f"cutoff-{cutoff}-alpha-{point.alpha:g}" + (f"-{point.mix}" if point.alpha else "")


def point_text(point: RAdaptConfig) -> str:
    """`cutoff 40, alpha 1 (interpolate)`."""
    cutoff = "no filter" if point.cutoff is None else f"cutoff {point.cutoff:g}"
    return f"{cutoff}, alpha {point.alpha:g} ({point.mix})" if point.alpha else f"{cutoff}, no anchor"


def numbers(text: str, flag: str, *, step: float) -> tuple[float | None, ...]:
    """The values that a user wrote: `20,40`, `10..60` (every `step`), `10..60:5` (every 5), `none`, and lists of these.

    Raises UserError, naming the flag, for anything else.
    """
    values: list[float | None] = []
    for part in text.split(","):
        word = part.strip()
        if word.lower() == "none":
            values.append(None)
            continue
        range_, _, by = word.partition(":")
        low, dots, high = range_.partition("..")
        try:
            ends = [float(low), float(high if dots else low)]
            width = float(by) if by else step
        except ValueError:
            raise UserError(
                f"{flag} {text!r}: {word!r} is no number or range; write 20,40 or 10..60 or 10..60:5"
            ) from None
        if not all(map(math.isfinite, [*ends, width])) or width <= 0 or ends[1] < ends[0]:
            raise UserError(f"{flag} {text!r}: {word!r} must go up, by a step above 0; write 10..60:5")
        if by and not dots:
            raise UserError(f"{flag} {text!r}: {word!r} has a step and no range; write 10..60:5")
        count = math.floor((ends[1] - ends[0]) / width + 1e-9) + 1
        if count > MOST:
            raise UserError(f"{flag} {text!r}: {word!r} is {count} values, {MOST} are the most; take a larger step")
        values += [round(ends[0] + i * width, 9) for i in range(count)]
    return tuple(dict.fromkeys(values))


def knobs_of(cutoffs: str, alphas: str, mixes: str) -> Knobs:
    """The sweep behind the three flags. UserError for values that no defence can have."""
    chosen = numbers(alphas, "--alphas", step=0.25)
    if None in chosen:
        raise UserError(f"--alphas {alphas!r}: none is for --cutoffs; alpha 0 leaves the anchor out")
    kinds = tuple(dict.fromkeys(word.strip() for word in mixes.split(",")))
    knobs = Knobs(
        numbers(cutoffs, "--cutoffs", step=10.0), tuple(a for a in chosen if a is not None), _mixes(kinds, mixes)
    )
    knobs.points()  # every value in its range, asked before a model is opened
    return knobs


def _mixes(words: Sequence[str], text: str) -> tuple[Mix, ...]:
    known: tuple[Mix, ...] = ("interpolate", "add")
    unknown = [word for word in words if word not in known]
    if unknown:
        raise UserError(f"--mixes {text!r}: {unknown[0]!r} is unknown; write {','.join(known)}")
    return tuple(mix for mix in known if mix in words)
