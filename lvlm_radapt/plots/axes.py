"""Axes to draw on, and the look that all pictures share."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from lvlm_radapt.utils.printing import readable

TEXT, LINE = "#5c6470", "#dcdfe4"
CLEAN, TRANSFER, ADAPTIVE = "#8a919c", "#2f6db3", "#b3452c"
THREATS = {"clean": (CLEAN, ":"), "transfer": (TRANSFER, "--"), "adaptive": (ADAPTIVE, "-")}
"""Colour and line of each kind of score, the same in every picture and in the report."""
DOTS_PER_INCH = 160
"""Of the PNG files."""


def axes_or_new(ax: Axes | None, width: float = 5.0, height: float = 3.4) -> Axes:
    """`ax`, or the axes of a new pyplot figure of that size in inches (so that notebooks show it by themselves)."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def tidy(axes: Axes, text: str = TEXT, line: str = LINE) -> None:
    """Horizontal grid lines, no box, quiet ticks."""
    axes.tick_params(colors=text, length=0)
    axes.xaxis.label.set_color(text)
    axes.yaxis.label.set_color(text)
    axes.grid(axis="y", color=line, linewidth=0.8)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(line)


def plain(text: str) -> str:
    """A name as matplotlib shows it: it reads `$` as mathematics, and takes no bytes that are not UTF-8."""
    return readable(text).replace("$", r"\$")


def bare(axes: Axes) -> None:
    """No ticks and no box: for pictures that are images."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def colour_bar(figure: Figure | SubFigure, axes: Any, shown: Any, label: str, text: str = TEXT) -> None:
    """A colour bar beside one axes, or beside several that share it."""
    bar = figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.04)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=text, length=0)
    bar.set_label(label, color=text)


def spectrum_extent(shape: tuple[int, ...], cycles: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Left, right, bottom, top of a shifted spectrum, its frequencies scaled to `cycles` a full axis."""
    (bottom, top), (left, right) = (
        ((-(side // 2) - 0.5) * total / side, (side - side // 2 - 0.5) * total / side)
        for side, total in zip(shape, cycles, strict=True)
    )
    return left, right, bottom, top


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return out.getvalue()
