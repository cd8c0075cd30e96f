"""Scores as curves with their 95 % intervals as bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lvlm_radapt.errors import UserError
from lvlm_radapt.plots.axes import LINE, TEXT, THREATS, axes_or_new, tidy

Score = float | Sequence[float]
"""A score, or (score, low, high) with the ends of its 95 % interval."""


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
                x, values, curve.style, color=curve.colour, label=curve.label, linewidth=1.8, marker="o", markersize=4
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


def replacement_curve(rows: Sequence[Mapping[str, str | Score]], ax: Axes | None = None) -> Axes:
    """Scores as more and more parts of a tower come from its robust twin.

    rows: in the order of replacement, mappings with `part` (the part that was replaced last, in words) and the scores
    `clean`, `transfer`, `adaptive` (percent or CIDEr x100; at least one of them): a number, or (score, low, high) with
    the ends of its 95 % interval. The threat models have curves of their own; there is no mere "robust". A score that
    a row lacks, or has as None, leaves a gap in nothing: its curve goes on at the next row.
    ax: where to draw; None makes a new pyplot figure. Returns the axes; x is the row's number from 0.
    Raises UserError for no rows, a row without `part`, no scores at all, and scores that are no finite numbers.
    """
    labels = [row.get("part") for row in rows]
    if not all(isinstance(label, str) for label in labels):
        raise UserError("rows of a replacement curve need `part`, the part that was replaced, in words")
    axes = axes_or_new(ax)
    _draw_scores(axes, rows, [float(place) for place in range(len(rows))])
    axes.set_xticks(range(len(rows)), [str(label) for label in labels], rotation=30, ha="right")
    axes.set_xlabel("replaced up to")
    tidy(axes)
    return axes


def clean_robust_curves(
    rows: Sequence[Mapping[str, str | Score]], ax: Axes | None = None, *, knob: str = "cutoff"
) -> Axes:
    """Clean, transfer and adaptive scores over one knob of the defence, as `lvlm-radapt tune` measures them.

    rows: mappings with the knob's value under its name (`cutoff` in cycles per 224 px, `alpha` without unit) and the
    scores `clean`, `transfer`, `adaptive` as in `replacement_curve`; other keys are not looked at. In any order.
    ax: where to draw; None makes a new pyplot figure. Returns the axes; x is the knob.
    Raises UserError for no rows, a row without the knob, two rows with the same value of it (another knob varies, too:
    choose rows in which one does), no scores at all, and scores that are no finite numbers.
    """
    values = [row.get(knob) for row in rows]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise UserError(f"rows of a curve over {knob} need a number under {knob!r} each")
    if len({*values}) < len(values):
        raise UserError(f"two rows have the same {knob}: choose rows in which nothing but {knob} varies")
    axes = axes_or_new(ax)
    ordered = sorted(rows, key=lambda row: float(row[knob]))  # type: ignore[arg-type]
    _draw_scores(axes, ordered, [float(row[knob]) for row in ordered])  # type: ignore[arg-type]
    axes.set_xlabel("cutoff D0, cycles per 224 px" if knob == "cutoff" else knob)
    tidy(axes)
    return axes


def _draw_scores(axes: Axes, rows: Sequence[Mapping[str, str | Score]], places: Sequence[float]) -> None:
    if not rows:
        raise UserError("there is nothing to draw: no rows")
    curves = []
    for name, (colour, style) in THREATS.items():
        points = [
            (x, *_bounded(row[name], name)) for x, row in zip(places, rows, strict=True) if row.get(name) is not None
        ]
        curves.append(Curve(name, points, colour, style))
    if not any(curve.points for curve in curves):
        raise UserError(f"the rows hold no scores: each needs one or more of {', '.join(THREATS)}")
    draw_curves(axes, curves)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))  # a cut axis makes small differences look large
    axes.set_ylabel("score")
    axes.legend(frameon=False, labelcolor=TEXT, handlelength=2.6)


def _bounded(score: str | Score, name: str) -> tuple[float, float, float]:
    parts = [score, score, score] if isinstance(score, str | int | float) else [*score]
    if len(parts) != 3 or not all(isinstance(part, int | float) and math.isfinite(part) for part in parts):
        raise UserError(f"a {name} score must be a number or (score, low, high), not {score!r}")
    value, low, high = (float(part) for part in parts)
    return value, low, high
