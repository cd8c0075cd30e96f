"""Every setting of the defence, validated, each with its unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from lvlm_radapt.utils.errors import UserError

CutoffUnit = Literal["px224", "image"]
Boundary = Literal["reflect", "periodic"]
Mix = Literal["interpolate", "add"]
AnchorSource = Literal["white", "guided", "learned"]


@dataclass(frozen=True)
class RAdaptConfig:
    """Settings of the Gaussian input filter and of the fixed robustness anchor (R-Adapt, arXiv 2603.12799).

    `cutoff=None` leaves the filter out, `alpha=0` the anchor; with both the model is the stock one, bit for
    bit. Any value out of range is a `UserError`.
    """

    cutoff: float | None = 40.0
    """D0 of the filter's response exp(-D^2 / (2 D0^2)); > 0 and finite, None for no filter.
    The paper swept 10..60."""
    cutoff_unit: CutoffUnit = "px224"
    """Unit of D and D0: "px224" is cycles per 224 px (the same blur in pixels on every canvas), "image" is
    cycles per image side. The two agree at 224 px."""
    boundary: Boundary = "reflect"
    """How the image goes on past its edge: "reflect" mirrors it (edge pixel not repeated), "periodic" repeats
    it, as a plain product in Fourier space does."""
    alpha: float = 1.0
    """Weight of the anchor A against the first attention's output r; a finite real. The paper swept 0..2."""
    mix: Mix = "interpolate"
    """How: "interpolate" is (1 - alpha) r + alpha A, "add" is r + alpha A."""
    anchor: AnchorSource = "white"
    """Where the anchor comes from: "white" is the same encoder's first attention output on a white image (the paper's
    R-Adapt_CLIP), "guided" an adversarially fine-tuned twin's (R-Adapt_M), "learned" what an optimisation on
    adversarial images made of the white one (R-Adapt+). The last two are given to `robustify` as an `Anchor`."""
    anchor_from: str | None = None
    """Of a guided or learned anchor, in one line: which guide, or which images, budget, steps and seed."""

    def __post_init__(self) -> None:
        if self.cutoff is not None:
            cutoff = _real("cutoff", self.cutoff)
            if cutoff <= 0:
                raise UserError(f"cutoff is {cutoff:g}: give a number above 0, or None for no filter")
            object.__setattr__(self, "cutoff", cutoff)
        object.__setattr__(self, "alpha", _real("alpha", self.alpha))
        _choice("cutoff_unit", self.cutoff_unit, get_args(CutoffUnit))
        _choice("boundary", self.boundary, get_args(Boundary))
        _choice("mix", self.mix, get_args(Mix))
        _choice("anchor", self.anchor, get_args(AnchorSource))
        _origin(self.anchor, self.anchor_from)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values; `from_dict` takes them back. No `anchor_from` where there is none, so
        that the white anchor's are those that earlier versions wrote."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("anchor_from", None)}

    def describe(self) -> str:
        """The settings in words."""
        parts = []
        if self.cutoff is not None:
            parts.append(f"a Gaussian filter (cutoff {self.cutoff:g})")
        if self.alpha != 0:
            origin = f" from {self.anchor_from}" if self.anchor_from else ""
            parts.append(f"the {self.anchor} anchor{origin} (alpha {self.alpha:g}, {self.mix})")
        return " and ".join(parts) or "nothing (no filter, alpha 0)"

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> RAdaptConfig:
        """A config from plain values. Missing keys keep their defaults, an unknown one is a `UserError`."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(str(key) for key in settings if key not in known)
        if unknown:
            raise UserError(f"unknown R-Adapt setting {', '.join(unknown)}: known are {', '.join(known)}")
        return cls(**settings)


def _real(name: str, value: object) -> float:
    """`value` as a float; bools, text, infinities and NaN are refused."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}: give a finite number")
    return float(value)


def _origin(anchor: str, told: object) -> None:
    if told is None:
        return
    if anchor == "white":
        raise UserError(f"anchor_from is {told!r}: the white anchor is the encoder's own, leave it out")
    if not isinstance(told, str) or not told.strip() or not told.isprintable():
        raise UserError(f"anchor_from is {told!r}: say in one line where the anchor comes from")


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}: choose one of {', '.join(allowed)}")
