"""Scores as curves with their 95 % intervals as bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lvlm_radapt.plots.axes import LINE, TEXT, THREATS, axes_or_new, plain, tidy
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True)
class Curve:
    """Points (x, value, low, high), in the order of x, with the look of their line."""

    label: str
    points: Sequence[tuple[float, float, float, float]]
    colour: str
    style: str


def draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """A band and a line with dots for each curve that has points; one that has none is left out of the legend too."""
    for curve in curves:
        if curve.points:
            x, values, lows, highs = (list(column) for column in zip(*curve.points, strict=True))
            axes.fill_between(x, lows, highs, color=curve.colour, alpha=0.13, linewidth=0)
            axes.plot(
                x,
                values,
                curve.style,
                color=curve.colour,
                label=plain(curve.label),
                linewidth=1.8,
                marker="o",
                markersize=4,
            )


def finish_eps(
    axes: Axes, ticks: Mapping[float, str], label: str, *, top: float | None = None, text: str = TEXT, line: str = LINE
) -> None:
    """Axes over eps from 0 on: `ticks` are eps in [0, 1] pixel units with their words, `label` names the y axis, which
    ends at `top` (None: where the curves end) and begins at 0 or below."""
    levels = sorted({0.0, *ticks})
    axes.set_xticks(levels, [ticks.get(level, "0") for level in levels])
    axes.set_xlim(-0.05 * levels[-1], 1.05 * levels[-1])
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), top)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("eps")
    axes.set_ylabel(label)
    tidy(axes, text, line)


def replacement_curve(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Scores as more and more parts of a tower come from its robust twin.

    rows: in the order of replacement, mappings with `step` (the part that was replaced last, in words) and the scores
    `clean`, `transfer`, `adaptive` (CIDEr x100 or percent; at least one of them), each with the ends of its 95 %
    interval where it has one: `clean_low`, `clean_high`, and so on. The threat models have curves of their own: there
    is no mere "robust". A score that a row lacks, or has as None, is left out, and its curve goes on at the next row.
    ax: where to draw; None makes a new pyplot figure. Returns the axes; x is the row's number from 0.
    Raises UserError for no rows, a row without `step`, no scores at all, and scores that are no finite numbers.
    """
    if not rows:
        raise UserError("there is nothing to draw: no rows")
    steps = [row.get("step") for row in rows]
    if not all(isinstance(step, str) for step in steps):
        raise UserError("rows of a replacement curve need `step`, the part that was replaced last, in words")
    curves = []
    for name, (colour, style) in THREATS.items():
        points = [(float(x), *_bounded(row, name)) for x, row in enumerate(rows) if row.get(name) is not None]
        curves.append(Curve(name, points, colour, style))
    if not any(curve.points for curve in curves):
        raise UserError(f"the rows hold no scores: each needs one or more of {', '.join(THREATS)}")
    axes = axes_or_new(ax)
    draw_curves(axes, curves)
    axes.set_xticks(range(len(rows)), [str(step) for step in steps], rotation=30, ha="right")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))  # a cut axis makes small differences look large
    axes.set_xlabel("last part taken from the robust twin")
    axes.set_ylabel("score")
    axes.legend(frameon=False, labelcolor=TEXT, handlelength=2.6)
    tidy(axes)
    return axes


def _bounded(row: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    found = [row.get(name), row.get(f"{name}_low", row.get(name)), row.get(f"{name}_high", row.get(name))]
    if not all(isinstance(part, int | float) and math.isfinite(part) for part in found):
        raise UserError(f"{name} and the ends of its interval must be finite numbers, not {found}")
    value, low, high = map(float, found)
    return value, low, high
