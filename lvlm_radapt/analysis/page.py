"""The page of an analysis: self-contained, no script, light and dark."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval_tasks.report.html_templates import data_uri, templates
from lvlm_radapt.plots.axes import DOTS_PER_INCH


def analysis_page(document: Mapping[str, Any], figures: Mapping[str, tuple[bytes, bytes]]) -> str:
    """HTML of what analysis.json holds, with its figures (PNG for light and dark) inside."""
    pictures = {
        name: (*(data_uri("image/png", one) for one in both), _width(both[0])) for name, both in figures.items()
    }
    pages = templates("lvlm_radapt.analysis", basename=os.path.basename, short=_short)
    return pages.get_template("analysis.html.j2").render(
        document=document, figures=pictures, findings=_findings(document)
    )


def _short(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


def _findings(document: Mapping[str, Any]) -> dict[str, str]:
    """One sentence of plain reading under each figure."""
    cka, kernels, attention = document["cka"], document["kernels"], document["attention"]
    diagonal = [line[i] for i, line in enumerate(cka["matrix"]) if line[i] is not None]
    found = {}
    if diagonal:
        layers = [layer for i, layer in enumerate(cka["layers"]) if cka["matrix"][i][i] is not None]
        low = min(range(len(diagonal)), key=diagonal.__getitem__)
        last = "" if low == len(diagonal) - 1 else f", {diagonal[-1]:.2f} at the last"
        found["cka"] = (
            f"Layer against the same layer: {diagonal[0]:.2f} at the {layers[0]}, lowest {diagonal[low]:.2f} at "
            f"{layers[low]}{last}."
        )
    side = len(kernels["shift"])
    near: list[float] = []
    far: list[float] = []
    for y, line in enumerate(kernels["shift"]):
        for x, value in enumerate(line):
            distance = ((y - side // 2) ** 2 + (x - len(line) // 2) ** 2) ** 0.5
            (near if distance <= side / 4 else far).append(value)
    found["kernels"] = (
        f"Mean change up to {side / 4:g} cycles per patch: {sum(near) / len(near):+.3g}; above: "
        f"{sum(far) / len(far):+.3g}."
    )
    mean, spread = attention["mean"], attention["spread"]
    found["attention"] = (
        f"Evenness (1 looks everywhere alike): standard {mean['standard_evenness']:.3f}, robust "
        f"{mean['robust_evenness']:.3f}. Attention that the encoder's own attack moves to other patches: standard "
        f"{100 * mean['standard_moved']:.1f} %, robust {100 * mean['robust_moved']:.1f} %."
    )
    if None not in spread.values():
        found["attention"] += (
            f" An image's map differs from the mean map by {100 * spread['standard']:.1f} % of the attention in the "
            f"standard encoder, by {100 * spread['robust']:.1f} % in the robust twin."
        )
    return found


def _width(png: bytes) -> int:
    """How wide the figure is shown at most, in CSS pixels: a little over its size in print."""
    return round(int.from_bytes(png[16:20], "big") / DOTS_PER_INCH * 100)
