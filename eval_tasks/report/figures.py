"""Pictures of a report, as data URIs: score and loss against eps, and what an attack changed in an image."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from attacks.eps import eps_text
from eval_tasks.report.html_templates import data_uri
from eval_tasks.report.table_formats import Cell, Row, Table
from lvlm_radapt.plots.curves import Curve, draw_curves, finish_eps
from lvlm_radapt.plots.images import DIFFERENCE_GAIN, difference_image
from lvlm_radapt.utils.printing import readable

__all__ = ["DIFFERENCE_GAIN", "difference_image", "eps_panels", "loss_panels", "png_uri", "points", "text_uri"]

LARGEST_SIDE = 512  # pixels; larger images are embedded reduced

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


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """A uint8 [H, W, 3] image as a data URI, exact unless a side is over LARGEST_SIDE."""
    image = Image.fromarray(pixels)
    if max(image.size) > LARGEST_SIDE:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return data_uri("image/png", out.getvalue())


def eps_panels(table: Table) -> list[Panel]:
    """Score against eps: a panel for each model, task and attack; eps 0 is the clean score."""
    panels = []
    for model, rows, stock, family in _curves(table):
        if all(cell.value is None for row in rows for cell in (row.transfer, row.adaptive)):
            continue
        top = max([1.0, *(_high(cell) for row in family for cell in (row.clean, row.transfer, row.adaptive))])
        axis = _Axis(rows[0].metric_text, top, from_clean=True)
        curves = (("transfer", "transfer"), ("adaptive", "adaptive"))
        panels.append(_panel(model, rows, stock, curves, axis))
    return panels


def loss_panels(table: Table) -> list[Panel]:
    """The adaptive attack's mean loss against eps, for each model, task and attack that was run at two eps or more."""
    panels = []
    for model, rows, stock, family in _curves(table):
        losses = [row.adaptive_loss for row in family if row.adaptive_loss is not None]
        if len({row.eps for row in rows if row.adaptive_loss is not None}) >= 2:
            axis = _Axis("attack's loss", max(map(_high, losses)), from_clean=False)
            panels.append(_panel(model, rows, stock, (("adaptive_loss", "adaptive"),), axis))
    return panels


@dataclass(frozen=True)
class _Axis:
    """The y axis: its words, its end, and whether eps 0 is the clean score."""

    label: str
    top: float
    from_clean: bool


def _curves(table: Table) -> Iterator[tuple[str, list[Row], list[Row], list[Row]]]:
    """(model, its rows, the undefended model's where it is another, all models' rows) for each task and attack."""
    families: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in table.rows:
        if row.eps is not None and row.attack != "noise":
            families[(row.task, row.attack, row.norm, row.steps, row.target, row.variant)].append(row)
    for family in families.values():
        models: dict[str, list[Row]] = defaultdict(list)
        for row in family:
            models[row.model].append(row)
        for model, rows in models.items():
            # the same model without its defence, never another one of the family
            stock = [own for name, own in models.items() if not own[0].defended and model.startswith(f"{name} + ")]
            yield model, rows, stock[0] if stock and rows[0].defended else [], family


def _panel(
    model: str, rows: Sequence[Row], stock: Sequence[Row], curves: Sequence[tuple[str, str]], axis: _Axis
) -> Panel:
    steps = f", {rows[0].steps} steps" if rows[0].steps else ""
    caption = f"{rows[0].task}, {rows[0].attack} {rows[0].norm}{steps}"
    return Panel(model, caption, *(_draw(rows, stock, curves, axis, palette) for palette in (_LIGHT, _DARK)))


def _draw(
    rows: Sequence[Row], stock: Sequence[Row], curves: Sequence[tuple[str, str]], axis: _Axis, palette: tuple[str, ...]
) -> str:
    text, line, transfer, adaptive, undefended = palette
    looks = {"transfer": (transfer, "--"), "adaptive": (adaptive, "-")}
    # Text as outlines: the picture needs no font of the reader's machine. The salt keeps ids repeatable.
    style = {"svg.fonttype": "path", "svg.hashsalt": "lvlm-radapt", "font.size": 9.5}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        against = points(stock, curves[-1][0], from_clean=axis.from_clean)
        lines = [Curve("undefended, adaptive", against, undefended, ":")]
        lines += [
            Curve(label, points(rows, column, from_clean=axis.from_clean), *looks[label]) for column, label in curves
        ]
        draw_curves(axes, lines)
        ticks = {row.eps: eps_text(row.eps, rows[0].norm) for row in (*rows, *stock) if row.eps is not None}
        finish_eps(axes, ticks, axis.label, top=axis.top * 1.05 if axis.top > 0 else None, text=text, line=line)
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}  # where no line runs
        axes.legend(frameon=False, labelcolor=text, fontsize=8.5, ncols=3, handlelength=2.4, **above)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return data_uri("image/svg+xml", out.getvalue())


def points(rows: Sequence[Row], column: str, *, from_clean: bool) -> list[tuple[float, float, float, float]]:
    """(eps, score, low, high) of a column of the table, by eps; from_clean: eps 0 is the clean score."""
    found: list[tuple[float, float, float, float]] = []
    for row in rows:
        cell: Cell | None = getattr(row, column)
        if cell is not None and cell.numbers is not None and row.eps is not None:
            found.append((row.eps, *cell.numbers))
    clean = next((row.clean.numbers for row in rows if row.clean.numbers is not None), None)
    if found and from_clean and clean is not None:
        found.append((0.0, *clean))
    return sorted(found)


def _high(cell: Cell) -> float:
    if cell.value is None:
        return 0.0
    return max(cell.value, cell.interval.high) if cell.interval else cell.value


def text_uri(kind: str, text: str) -> str:
    """A text as a data URI; kind: text/csv or text/markdown."""
    return data_uri(f"{kind};charset=utf-8", readable(text).encode())
