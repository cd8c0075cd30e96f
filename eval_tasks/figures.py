"""Pictures of a report, as data URIs: score against eps, and what an attack changed in an image."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from eval_tasks.eps import eps_text
from eval_tasks.table import Cell, Row, Table

LARGEST_SIDE = 512  # pixels; larger images are embedded reduced
DIFFERENCE_GAIN = 16

# The same colours as the template's: (text, lines, transfer, adaptive, undefended).
_LIGHT = ("#5c6470", "#dcdfe4", "#2f6db3", "#b3452c", "#8a919c")
_DARK = ("#9aa3b0", "#343a43", "#7fb0ea", "#ea8a6e", "#78808c")


@dataclass(frozen=True)
class Panel:
    """One model's curves: title and caption in words, the picture for light and dark pages."""

    title: str
    caption: str
    light: str
    dark: str


def difference_image(clean: NDArray[np.uint8], attacked: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: attacked minus clean, times DIFFERENCE_GAIN, around grey 128, clipped to 0..255."""
    if clean.shape != attacked.shape:
        raise ValueError(f"the images differ in shape: {clean.shape} and {attacked.shape}")
    difference = attacked.astype(np.int32) - clean.astype(np.int32)
    return np.clip(128 + DIFFERENCE_GAIN * difference, 0, 255).astype(np.uint8)


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """A uint8 [H, W, 3] image as a data URI, exact unless a side is over LARGEST_SIDE."""
    image = Image.fromarray(pixels)
    if max(image.size) > LARGEST_SIDE:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return _uri("image/png", out.getvalue())


def eps_panels(table: Table) -> list[Panel]:
    """A panel for each model, task and attack that was run at two eps or more; eps 0 is the clean score."""
    families: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in table.rows:
        if row.eps is not None and row.attack != "noise":
            families[(row.task, row.attack, row.norm, row.steps, row.target, row.variant)].append(row)
    panels = []
    for family in families.values():
        models: dict[str, list[Row]] = defaultdict(list)
        for row in family:
            models[row.model].append(row)
        stock = next((rows for rows in models.values() if not rows[0].defended), [])
        top = max([1.0, *(_high(cell) for row in family for cell in (row.clean, row.transfer, row.adaptive))])
        for model, rows in models.items():
            if len({row.eps for row in rows}) >= 2:
                steps = f", {rows[0].steps} steps" if rows[0].steps else ""
                caption = f"{rows[0].task}, {rows[0].attack} {rows[0].norm}{steps}"
                reference = stock if rows[0].defended else []
                drawn = [_draw(rows, reference, top, palette) for palette in (_LIGHT, _DARK)]
                panels.append(Panel(model, caption, *drawn))
    return panels


def _draw(rows: Sequence[Row], stock: Sequence[Row], top: float, palette: tuple[str, ...]) -> str:
    text, line, transfer, adaptive, undefended = palette
    # Text as outlines: the picture needs no font of the reader's machine. The salt keeps ids repeatable.
    style = {"svg.fonttype": "path", "svg.hashsalt": "lvlm-radapt", "font.size": 9.5}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        _curve(axes, stock, "adaptive", undefended, "undefended, adaptive", ":")
        _curve(axes, rows, "transfer", transfer, "transfer", "--")
        _curve(axes, rows, "adaptive", adaptive, "adaptive", "-")
        levels = sorted({0.0, *(row.eps for row in (*rows, *stock) if row.eps is not None)})
        axes.set_xticks(levels, ["0", *(eps_text(eps, rows[0].norm) for eps in levels[1:])])
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), top * 1.05)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("eps", color=text)
        axes.set_ylabel(rows[0].metric_text, color=text)
        axes.tick_params(colors=text, length=0)
        axes.grid(axis="y", color=line, linewidth=0.8)
        axes.set_axisbelow(True)
        for name, spine in axes.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color(line)
        axes.legend(frameon=False, labelcolor=text, fontsize=8.5, loc="upper right", handlelength=2.4)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _uri("image/svg+xml", out.getvalue())


def _curve(axes: Axes, rows: Sequence[Row], column: str, colour: str, label: str, style: str) -> None:
    points: list[tuple[float, float, float, float]] = []
    for row in rows:
        cell: Cell = getattr(row, column)
        if cell.value is not None and row.eps is not None:
            low, high = cell.interval or (cell.value, cell.value)
            points.append((row.eps, cell.value, low, high))
    if not points:
        return
    clean = next((row.clean for row in rows if row.clean.value is not None), None)
    if clean is not None and clean.value is not None:
        low, high = clean.interval or (clean.value, clean.value)
        points.append((0.0, clean.value, low, high))
    points.sort()
    eps, values, lows, highs = (list(axis) for axis in zip(*points, strict=True))
    axes.fill_between(eps, lows, highs, color=colour, alpha=0.13, linewidth=0)
    axes.plot(eps, values, style, color=colour, label=label, linewidth=1.8, marker="o", markersize=4)


def _high(cell: Cell) -> float:
    if cell.value is None:
        return 0.0
    return max(cell.value, cell.interval.high) if cell.interval else cell.value


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
