"""What the settings of the defence buy: scores against one knob, and adaptive against clean score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lvlm_radapt.plots.axes import THREATS, axes_or_new, tidy
from lvlm_radapt.plots.curves import Curve, draw_curves
from lvlm_radapt.utils.errors import UserError

LOOKS = {**THREATS, "clean": ("#4b5563", "-")}
"""Colour and line by score; dotted lines are the undefended model's here."""

Rows = Sequence[Mapping[str, Any]]


def clean_robust_curves(
    rows: Rows,
    ax: Axes | None = None,
    *,
    knob: str = "cutoff",
    undefended: Mapping[str, Any] | None = None,
    label: str = "score",
) -> Axes:
    """Clean, transfer and adaptive score against one knob, bands for the 95 % intervals.

    rows: settings as tune.json's `points` hold them: the knob's value and, by score, {"value", "low", "high"}. A cutoff
    of None (no filter) stands at the right end. undefended: the same scores of the undefended model, drawn as level
    dotted lines. label: of the y axis, with the unit.
    ax: where to draw; None makes a new pyplot figure.
    Raises UserError for no rows.
    """
    if not rows:
        raise UserError("there is nothing to draw: no settings")
    axes = axes_or_new(ax, 5, 3.6)
    numbered = sorted((row for row in rows if row[knob] is not None), key=lambda row: row[knob])
    without = [row for row in rows if row[knob] is None]
    values = [float(row[knob]) for row in numbered]
    step = (values[-1] - values[0]) / max(len(values) - 1, 1) if values else 1.0
    end = (values[-1] if values else 0.0) + 1.5 * (step or 1.0)
    for name, (colour, style) in LOOKS.items():
        if undefended is not None and undefended.get(name, {}).get("value") is not None:
            axes.axhline(
                undefended[name]["value"], color=colour, linestyle=":", linewidth=1.4, label=f"undefended, {name}"
            )
        cells = [(x, row[name]) for x, row in zip(values, numbered, strict=True) if row[name]["value"] is not None]
        points = [(x, cell["value"], cell["low"], cell["high"]) for x, cell in cells]
        draw_curves(axes, [Curve(name, points, colour, style)])
        for row in without:
            if row[name]["value"] is not None:
                _errors(axes, end, row[name], colour)
    ticks = values[:: -(-len(values) // 9) or 1]  # more would run into each other
    texts = [f"{value:g}" for value in ticks]
    if without:
        ticks, texts = [*ticks, end], [*texts, "no filter" if knob == "cutoff" else "none"]
    axes.set_xticks(ticks, texts)
    units = {"cutoff": "cutoff D0, cycles per 224 px", "alpha": "alpha, weight of the anchor"}
    _furnish(axes, units.get(knob, knob), label)
    return axes


def tradeoff(
    rows: Rows,
    ax: Axes | None = None,
    *,
    undefended: Mapping[str, Any],
    best: str | None = None,
    max_loss: float | None = None,
    label: str = "score",
) -> Axes:
    """Adaptive score against clean score, a point a setting, with its intervals.

    rows, undefended, label: as for `clean_robust_curves`. best: the `name` of the setting to mark; max_loss: in percent
    of the undefended clean score, drawn as the border of what is allowed.
    ax: where to draw; None makes a new pyplot figure.
    Raises UserError for no rows.
    """
    if not rows:
        raise UserError("there is nothing to draw: no settings")
    axes = axes_or_new(ax, 5, 3.6)
    shown = [row for row in rows if row["clean"]["value"] is not None and row["adaptive"]["value"] is not None]
    own = undefended["adaptive"]
    if own["value"] is not None:
        axes.axhspan(own["low"], own["high"], color="#8a919c", alpha=0.15, linewidth=0)
        axes.axhline(own["value"], color="#8a919c", linestyle=":", linewidth=1.4)
    families = {
        "filter alone": ("#2c7a55", "s", lambda row: row["alpha"] == 0),
        "anchor alone": ("#8a6100", "^", lambda row: row["alpha"] != 0 and row["cutoff"] is None),
        "both, interpolate": (
            "#b3452c",
            "o",
            lambda row: row["alpha"] and row["cutoff"] and row["mix"] == "interpolate",
        ),
        "both, add": ("#7a4fa3", "D", lambda row: row["alpha"] and row["cutoff"] and row["mix"] == "add"),
    }
    for name, (colour, marker, belongs) in families.items():
        group = [row for row in shown if belongs(row)]
        if not group:
            continue
        for row in group:
            _cross(axes, row, colour)
        xs, ys = [r["clean"]["value"] for r in group], [r["adaptive"]["value"] for r in group]
        axes.scatter(xs, ys, color=colour, marker=marker, s=26, label=name, zorder=3)
    clean = undefended["clean"]["value"]
    if clean is not None and own["value"] is not None:
        axes.scatter([clean], [own["value"]], color="#1d232b", marker="*", s=110, label="undefended", zorder=4)
    if clean is not None and max_loss is not None:
        border = clean * (1 - max_loss / 100)
        axes.axvline(border, color="#5c6470", linewidth=1, linestyle="--", label=f"{max_loss:g} % clean loss")
    for row in shown:
        if row["name"] == best:
            x, y = [row["clean"]["value"]], [row["adaptive"]["value"]]
            axes.scatter(x, y, facecolors="none", edgecolors="#1d232b", s=150, linewidths=1.4, zorder=5)
    _furnish(axes, f"clean {label}", f"adaptive {label}")
    return axes


def _errors(axes: Axes, x: float, cell: Mapping[str, Any], colour: str) -> None:
    spread = [[max(cell["value"] - cell["low"], 0)], [max(cell["high"] - cell["value"], 0)]]
    axes.errorbar([x], [cell["value"]], yerr=spread, color=colour, marker="o", markersize=4, linewidth=1.2, capsize=2)


def _cross(axes: Axes, row: Mapping[str, Any], colour: str) -> None:
    x, y = row["clean"], row["adaptive"]
    axes.plot([x["low"], x["high"]], [y["value"]] * 2, color=colour, alpha=0.25, linewidth=1)
    axes.plot([x["value"]] * 2, [y["low"], y["high"]], color=colour, alpha=0.25, linewidth=1)


def _furnish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    tidy(axes)
