"""The figures of `lvlm-radapt analyze`, each from plain data, for light and for dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from lvlm_radapt.plots.axes import bare, colour_bar, plain, spectrum_extent, tidy
from lvlm_radapt.plots.curves import Curve, draw_curves


@dataclass(frozen=True)
class Look:
    """Colours of a page: paper, text, lines, and of the curves clean, transfer, adaptive, standard and robust."""

    paper: str
    text: str
    line: str
    clean: str
    transfer: str
    adaptive: str
    standard: str
    robust: str


LIGHT = Look("#fcfcfb", "#3d444e", "#dcdfe4", "#6b7280", "#2f6db3", "#b3452c", "#6b7280", "#2c7a55")
DARK = Look("#14171b", "#c3cad3", "#343a43", "#9aa3b0", "#7fb0ea", "#ea8a6e", "#9aa3b0", "#6cc49a")


def cka_figure(matrix: ArrayLike, layers: Sequence[str], look: Look = LIGHT) -> Figure:
    """matrix [L, L]: CKA of the standard encoder's layers (rows) and the robust twin's (columns), named `layers`; NaN
    is left blank."""
    values = np.asarray(matrix, dtype=np.float64)
    figure = _figure(look, 6.4, 5.2)
    axes = figure.add_subplot()
    shown = axes.imshow(values, origin="lower", cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    every = max(1, len(layers) // 12)
    places = range(0, len(layers), every)
    axes.set_xticks(places, [layers[i] for i in places], rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, [layers[i] for i in places])
    axes.set_xlabel("layer of the robust twin")
    axes.set_ylabel("layer of the standard encoder")
    if len(layers) <= 9:
        for (row, column), value in np.ndenumerate(values):
            colour = "#000000" if value > 0.6 else "#ffffff"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    _colours(axes, look)
    colour_bar(figure, axes, shown, "linear CKA (no unit)", look.text)
    return figure


def replacement_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, look: Look = LIGHT) -> Figure:
    """curves: title -> rows {step, clean, clean_low, clean_high, transfer ..., adaptive ...} in the order of
    replacement, in the unit that `metric` names; a panel each on one scale, bands are 95 % intervals."""
    most = max(map(len, curves.values()))
    figure = _figure(look, max(5.2, 0.45 * most + 1.6) * len(curves), 3.9)
    panels: Any = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    looks = {"clean": (look.clean, ":"), "transfer": (look.transfer, "--"), "adaptive": (look.adaptive, "-")}
    for axes, (title, rows) in zip(panels, curves.items(), strict=True):
        for name, (colour, style) in looks.items():
            points = [(float(x), r[name], r[f"{name}_low"], r[f"{name}_high"]) for x, r in enumerate(rows)]
            draw_curves(axes, [Curve(name, points, colour, style)])
        axes.set_xticks(
            range(len(rows)), [str(r["step"]) for r in rows], rotation=45, ha="right", rotation_mode="anchor"
        )
        axes.set_xlabel("last part taken from the robust twin")
        axes.set_title(plain(title), color=look.text, fontsize=10)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        _tidy(axes, look)
    panels[0].set_ylabel(metric)
    panels[0].set_ylim(bottom=min(0.0, panels[0].get_ylim()[0]))
    panels[-1].legend(
        frameon=False, labelcolor=look.text, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=2.6
    )
    return figure


def kernel_figure(standard: ArrayLike, robust: ArrayLike, look: Look = LIGHT) -> Figure:
    """[p, p] mean magnitudes of the patch embedding's kernels, frequency 0 in the centre: both encoders on one scale,
    and robust minus standard, red where the robust twin is stronger."""
    before, after = (np.asarray(one, dtype=np.float64) for one in (standard, robust))
    figure = _figure(look, 10.6, 3.1)
    panels: Any = figure.subplots(1, 3)
    extent = spectrum_extent(before.shape, before.shape)
    top = max(before.max(), after.max())
    shift = after - before
    limit = float(np.abs(shift).max()) or 1.0
    scales: tuple[dict[str, Any], ...] = (
        {"cmap": "viridis", "vmin": 0, "vmax": top},
        {"cmap": "viridis", "vmin": 0, "vmax": top},
        {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit},
    )
    titles = ("standard", "robust twin", "robust minus standard")
    shown: list[Any] = []
    for axes, values, title, scale in zip(panels, (before, after, shift), titles, scales, strict=True):
        shown.append(axes.imshow(values, origin="lower", extent=extent, interpolation="nearest", **scale))
        axes.set_title(title, color=look.text, fontsize=10)
        axes.set_xlabel("horizontal, cycles per patch")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(7, integer=True))
        _colours(axes, look)
    colour_bar(figure, panels[:2], shown[0], "mean magnitude", look.text)
    colour_bar(figure, panels[2], shown[2], "mean magnitude, difference", look.text)
    panels[0].set_ylabel("vertical, cycles per patch")
    return figure


def perturbation_figure(
    standard: ArrayLike, robust: ArrayLike, profiles: Mapping[str, Sequence[float]], look: Look = LIGHT
) -> Figure:
    """[H, W] mean magnitudes (in 1/255) of the perturbations that attack either encoder, frequency 0 in the centre, and
    `profiles`: frequency (cycles per pixel), standard, robust, their means over rings. Magnitudes on a log scale."""
    before, after = (np.asarray(one, dtype=np.float64) for one in (standard, robust))
    figure = _figure(look, 10.6, 3.3)
    panels: Any = figure.subplots(1, 3)
    extent = spectrum_extent(before.shape, (1, 1))
    top = max(float(before.max()), float(after.max()), 1e-6)
    least = max(min(float(before.min()), float(after.min())), top / 1e4)  # a log scale has no 0
    titles = ("attack on the standard encoder", "attack on the robust twin")
    shown: Any = None
    for axes, values, title in zip(panels, (before, after), titles, strict=False):
        shown = axes.imshow(
            values.clip(least),
            origin="lower",
            extent=extent,
            cmap="viridis",
            norm=LogNorm(least, top),
            interpolation="nearest",
        )
        axes.set_title(title, color=look.text, fontsize=10)
        axes.set_xlabel("horizontal, cycles per pixel")
        _colours(axes, look)
    colour_bar(figure, panels[:2], shown, "mean magnitude, 1/255", look.text)
    panels[0].set_ylabel("vertical, cycles per pixel")
    axes = panels[2]
    axes.set_box_aspect(1)
    for name, label, colour in (("standard", "standard", look.standard), ("robust", "robust twin", look.robust)):
        axes.plot(profiles["frequency"], np.clip(profiles[name], least, None), color=colour, label=label, linewidth=1.8)
    axes.set_yscale("log")
    axes.set_title("mean over rings, 1/255", color=look.text, fontsize=10)  # a label would touch the colour bar's
    axes.set_xlabel("frequency, cycles per pixel")
    axes.legend(frameon=False, labelcolor=look.text, fontsize=9)
    _tidy(axes, look)
    return figure


def attention_figure(rows: Sequence[Mapping[str, Any]], look: Look = LIGHT) -> Figure:
    """A line an image: the clean image, then where the first block looks (1: as if all patches were looked at alike).

    rows: {image: [H, W, 3] in [0, 1], maps: title -> [high, wide]}; the same titles in each, one scale for all maps.
    """
    titles = list(rows[0]["maps"])
    figure = _figure(look, 1.75 * (len(titles) + 1) + 0.9, 1.75 * len(rows) + 0.5)
    panels: Any = figure.subplots(len(rows), len(titles) + 1, squeeze=False)
    top = max(float(np.asarray(one).max()) for row in rows for one in row["maps"].values())
    shown: Any = None
    for line, row in zip(panels, rows, strict=True):
        image: NDArray[np.float64] = np.asarray(row["image"])
        line[0].imshow(image, interpolation="nearest")
        for axes, title in zip(line[1:], titles, strict=True):
            shown = axes.imshow(
                np.asarray(row["maps"][title]), cmap="inferno", vmin=0, vmax=top, interpolation="nearest"
            )
        for axes in line:
            bare(axes)
    for axes, title in zip(panels[0], ["clean image", *titles], strict=True):
        axes.set_title(title, color=look.text, fontsize=9.5)
    colour_bar(figure, panels, shown, "attention a patch gets (1 = even)", look.text)
    return figure


def _figure(look: Look, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_facecolor(look.paper)
    return figure


def _tidy(axes: Axes, look: Look) -> None:
    tidy(axes, look.text, look.line)
    axes.set_facecolor(look.paper)


def _colours(axes: Axes, look: Look) -> None:
    axes.set_facecolor(look.paper)
    axes.tick_params(colors=look.text, length=0)
    axes.xaxis.label.set_color(look.text)
    axes.yaxis.label.set_color(look.text)
    for spine in axes.spines.values():
        spine.set_edgecolor(look.line)
