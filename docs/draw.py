"""Draws the pictures of these pages into docs/images.

python docs/draw.py svg          answer.svg, curves.svg (both from results.md) and how-it-works.svg, each light and dark
python docs/draw.py demo DIR     demo-light.png and demo-dark.png from the folder `lvlm-radapt demo` wrote
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"
SHOWN = "131"  # a sample of the demo on which the two threat models part ways
_LIGHT, _DARK = ("#1d232b", "#5c6470", "#dcdfe4"), ("#e6e9ed", "#9aa3b0", "#343a43")

_STYLE = """
.page { fill: #fcfcfb; }
.box { fill: #ffffff; stroke: #c3c9d1; } .ours { fill: #e8f0fa; stroke: #2f6db3; } .attack { fill: #faece8; stroke: #b3452c; }
text { font: 14px system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; fill: #1d232b; text-anchor: middle; }
.soft { font-size: 12px; fill: #5c6470; } .left { text-anchor: start; } .head { font-weight: 600; }
path { stroke: #8a919c; fill: none; } .tip { fill: #8a919c; stroke: none; } .red { stroke: #b3452c; } .tip.red { fill: #b3452c; stroke: none; }
@media (prefers-color-scheme: dark) {
.page { fill: #14171b; }
.box { fill: #1b1f25; stroke: #3d4550; } .ours { fill: #1a2a3d; stroke: #7fb0ea; } .attack { fill: #38211b; stroke: #ea8a6e; }
text { fill: #e6e9ed; } .soft { fill: #9aa3b0; } path { stroke: #78808c; } .tip { fill: #78808c; }
.red { stroke: #ea8a6e; } .tip.red { fill: #ea8a6e; }
}
"""  # noqa: E501


def how_it_works() -> str:
    """The defence in its tower and the road of a measurement, as an SVG document."""
    parts = [
        '<rect class="page" width="910" height="450" rx="10"/>',  # readable whatever page it lies on
        _text(20, 28, "The defence: everything is frozen, two things are added", "head left"),
        _box(20, 50, 110, 62, "image x", "[0, 1], canvas"),
        _box(170, 50, 150, 62, "Gaussian filter", "cutoff D0", "ours"),
        _box(350, 50, 150, 62, "patch embedding", "frozen"),
        _box(530, 50, 130, 62, "first attention", "frozen: r"),
        _box(700, 50, 190, 62, "(1 - \u03b1) r + \u03b1 A", "A: the fixed anchor", "ours"),
        _box(360, 160, 300, 54, "blocks 2 ... L, projector", "frozen"),
        _box(20, 160, 300, 54, "language model \u2192 answer", "frozen"),
        *(_arrow(x, 81, to, 81) for x, to in ((130, 170), (320, 350), (500, 530), (660, 700))),
        '<path d="M795 112 V187 H668"/>' + _tip(660, 187, "left"),
        _arrow(360, 187, 320, 187),
        _text(20, 268, "The measurement: what is scored is the image on disk", "head left"),
        _box(20, 292, 150, 62, "sample", "image, question"),
        _box(210, 292, 150, 62, "attack", "APGD, eps, steps", "attack"),
        _box(400, 292, 130, 62, "8-bit PNG", "in the run folder"),
        _box(570, 292, 150, 62, "defended model", "its answer"),
        _box(760, 292, 130, 62, "score", "95 % interval"),
        *(_arrow(x, 323, to, 323) for x, to in ((170, 210), (360, 400), (530, 570), (720, 760))),
        '<path class="red" d="M645 354 V396 H285 V362"/>' + _tip(285, 354, "up", "red"),
        _text(465, 414, "adaptive: gradients come back through filter and anchor", "soft"),
        _text(465, 432, "transfer: they come from the undefended model, which knows neither", "soft"),
    ]
    lines = "\n".join(parts)
    label = "The defence in the vision tower, and how an attack on it is measured"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 910 450" role="img" aria-label="{label}">\n'
        f"<style>{_STYLE}</style>\n{lines}\n</svg>\n"
    )


ANSWER = {
    "none": "as it is",
    "R-Adapt_CLIP": "R-Adapt, no training",
    "low rank": "low-rank fine-tuning",
    "low rank + filter": "low rank + filter",
}
"""The bars of answer.svg: the row of results.md, and its label."""
_SCORE = re.compile(r"(\d+\.\d) \[(\d+\.\d), (\d+\.\d)\]")


def answer(results: str) -> str:
    """Right answers left under the worst of all attacks, with their intervals, as an SVG document.

    results: the text of results.md, whose first table of the worst of several attacks is drawn. ValueError where a row
    is missing.
    """
    parts = [
        '<rect class="page" width="910" height="304" rx="10"/>',
        _text(20, 32, "Right answers of 100 under the worst of several attacks", "head left"),
        _text(20, 54, "tiny-llava, 100 questions on drawn scenes, Linf 4/255, 50 steps", "soft left"),
    ]
    table = results[results.index("\n## The worst of several attacks") :]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    found = {cells[0].removeprefix("| "): cells[-2] for cells in reversed(rows)}  # of two tables the first one
    for place, (row, label) in enumerate(ANSWER.items()):
        score = _SCORE.fullmatch(found.get(row, ""))
        if score is None:
            raise ValueError(f"results.md has no score of the worst attack in a row {row!r}")
        value, low, high = (float(number) for number in score.groups())
        y, kind = 78 + 50 * place, "ours" if "rank" in label else ""
        unit = 5.2
        parts += [
            _text(20, y + 22, label, "left"),
            f'<rect class="box {kind}" x="200" y="{y}" width="{value * unit:.1f}" height="34" rx="4"/>',
            f'<path d="M{200 + low * unit:.1f} {y + 17} H{200 + high * unit:.1f}" stroke-width="2"/>',
            _text(int(200 + high * unit) + 16, y + 22, f"{value:.1f}  [{low:.1f}, {high:.1f}]", "head left"),
        ]
    parts.append(
        _text(
            20,
            290,
            "Lines: 95 % intervals. Fine-tuning: mean of three trainings. A better attack can only lower these.",
            "soft left",
        )
    )
    label = "Right answers of 100 under the worst of several attacks"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 910 304" role="img" aria-label="{label}">\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


CURVES = {"tiny-llava": ("as it is", ""), "low-rank-filter": ("low rank + filter", "ours")}
"""The lines of curves.svg: how the table's column is called, the label and its style."""
_CURVES_STYLE = """
.line { stroke-width: 2; } .grid { stroke: #dcdfe4; } circle { fill: #8a919c; } .end { text-anchor: end; }
path.ours { stroke: #2f6db3; fill: none; } circle.ours, text.ours { fill: #2f6db3; stroke: none; }
@media (prefers-color-scheme: dark) {
.grid { stroke: #343a43; } circle { fill: #78808c; } path.ours { stroke: #7fb0ea; }
circle.ours, text.ours { fill: #7fb0ea; }
}
"""


def curves(results: str) -> str:
    """Scores under the adaptive attack against its steps and its budget, with their intervals, as an SVG document.

    results: the text of results.md, whose table is drawn. ValueError where it has no such table.
    """
    head = re.search(r"^\| eps \| steps \|(.*)\|$", results, re.MULTILINE)
    if head is None:
        raise ValueError("results.md has no table that begins with eps and steps")
    models = [cell.strip() for cell in head[1].split("|")]
    points: dict[str, dict[tuple[int, int], tuple[float, float, float]]] = {model: {} for model in models}
    for eps, steps, cells in re.findall(r"^\| (\d+)/255 \| (\d+) \|(.*)\|$", results[head.end() :], re.MULTILINE):
        for model, cell in zip(models, cells.split("|"), strict=True):
            if cell.strip():
                value, low, high = map(float, re.findall(r"\d+\.\d", cell))
                points[model][int(eps), int(steps)] = (value, low, high)
    parts = [
        '<rect class="page" width="910" height="376" rx="10"/>',
        _text(20, 32, "Right answers of 100 when the attacker knows the defence", "head left"),
        _text(20, 54, "tiny-llava, 64 questions on drawn scenes, end-to-end APGD, Linf", "soft left"),
        *_legend(),
        *_panel(
            60, "attack steps, at eps 4/255", {m: {s: v for (e, s), v in points[m].items() if e == 4} for m in models}
        ),
        *_panel(
            510, "eps in 1/255, at 50 steps", {m: {e: v for (e, s), v in points[m].items() if s == 50} for m in models}
        ),
        _text(
            20,
            362,
            "Upright lines: 95 % intervals over images. One training seed, one attack, one run a point.",
            "soft left",
        ),
    ]
    label = "Right answers of 100 against the attack's steps and its budget"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 910 376" role="img" aria-label="{label}">\n'
        f"<style>{_STYLE}{_CURVES_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _legend() -> list[str]:
    parts = []
    for place, (label, kind) in enumerate(CURVES.values()):
        x = 610 + 120 * place
        parts.append(
            f'<path class="line {kind}" d="M{x} 50 h24"/><circle class="{kind}" cx="{x + 12}" cy="50" r="3.5"/>'
        )
        parts.append(_text(x + 32, 54, label, "soft left"))
    return parts


def _panel(left: int, title: str, lines: dict[str, dict[int, tuple[float, float, float]]]) -> list[str]:
    """Axes from x = left on and a line for each model; the values of x lie on a logarithmic scale."""
    wide, bottom, unit = 360, 300, 2.1
    ticks = sorted({x for line in lines.values() for x in line})
    first, last = math.log(ticks[0]), math.log(ticks[-1])

    def place(x: int) -> float:
        return left + 14 + (wide - 28) * (math.log(x) - first) / (last - first)

    parts = [_text(left + wide // 2, bottom + 34, title, "soft")]
    for y in (0, 25, 50, 75, 100):
        level = bottom - y * unit
        parts += [
            f'<path class="grid" d="M{left} {level:.1f} h{wide}"/>',
            _text(left - 8, int(level) + 4, f"{y}", "soft end"),
        ]
    parts += [_text(round(place(x)), bottom + 17, f"{x:,}", "soft") for x in ticks]
    for (model, line), aside in zip(lines.items(), (-2, 2), strict=True):  # intervals beside each other
        kind = CURVES[model][1]
        at = [(place(x) + aside, *(bottom - y * unit for y in line[x])) for x in sorted(line)]
        parts.append(f'<path class="line {kind}" d="M' + " L".join(f"{x:.1f} {y:.1f}" for x, y, *_ in at) + '"/>')
        parts += [f'<path class="{kind}" d="M{x:.1f} {low:.1f} V{high:.1f}"/>' for x, _, low, high in at]
        parts += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y, *_ in at]
    return parts


def demo(folder: Path) -> list[Path]:
    """One sample and the scores of a demo, for light and dark pages; the files that were written."""
    return [
        _demo(folder, colours, IMAGES / f"demo-{name}.png") for name, colours in (("light", _LIGHT), ("dark", _DARK))
    ]


def _demo(folder: Path, colours: tuple[str, str, str], to: Path) -> Path:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from eval_tasks.run.records import Run, read_run
    from lvlm_radapt import plot

    ink, soft, line = colours

    def run(kind: str) -> Run:
        return read_run(folder / "runs" / f"tiny-qwen-{kind}-4")

    def answers(kind: str) -> tuple[str, str, str]:
        sample = next(sample for sample in run(kind).samples if sample.id == SHOWN)
        assert sample.question is not None
        assert sample.adversarial is not None
        return sample.question, sample.clean.output, sample.adversarial.output

    stock = "stock-vqav2-e2e-adaptive"
    question, before, after = answers(stock)
    rows = [
        ("undefended, original image", before),
        ("undefended, attacked at 4/255", after),
        ("R-Adapt, the same image (transfer)", answers("radapt-vqav2-e2e-transfer")[2]),
        ("R-Adapt, attacked in turn (adaptive)", answers("radapt-vqav2-e2e-adaptive")[2]),
    ]
    with matplotlib.rc_context({"font.size": 9.5}):
        figure = Figure(figsize=(10.4, 4.0), layout="constrained")
        left, middle, right = figure.subfigures(1, 3, width_ratios=(1.3, 1, 1))
        images, words = left.subplots(2, 1, height_ratios=(1, 0.95))
        of = run(stock).path
        plot.sample_triplet(*(Image.open(of / kind / f"{SHOWN}.png") for kind in ("clean", "images")), ax=images)
        images.set_title(f"\u201c{question}\u201d", fontsize=11)
        words.axis("off")
        for place, (who, answer) in enumerate(rows):
            words.text(0.02, 0.86 - 0.24 * place, who, transform=words.transAxes)
            words.text(0.98, 0.86 - 0.24 * place, answer, transform=words.transAxes, ha="right", weight="bold")
        for part, model in ((middle, "tiny-llava"), (right, "tiny-qwen")):
            axes = part.subplots()
            plot.score_against_eps(*sorted((folder / "runs").glob(f"{model}-*-vqav2-e2e-*")), ax=axes)
            axes.spines["bottom"].set_color(line)
            axes.grid(axis="y", color=line)
        for text in figure.findobj(Text):
            text.set_color(ink if text.get_weight() == "bold" or text is images.title else soft)
        figure.savefig(to, dpi=150, transparent=True, metadata={"Software": None})
    Image.open(to).quantize(255, dither=Image.Dither.NONE).save(to, optimize=True)
    return to


def _box(x: int, y: int, width: int, height: int, title: str, below: str, kind: str = "") -> str:
    middle = x + width // 2
    return (
        f'<rect class="box {kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8" stroke-width="1.5"/>'
        + _text(middle, y + height // 2 - 3, title)
        + _text(middle, y + height // 2 + 16, below, "soft")
    )


def _text(x: int, y: int, words: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{words}</text>'


def _arrow(x: int, y: int, to_x: int, to_y: int) -> str:
    away = "right" if to_x > x else "left"
    return f'<path d="M{x} {y} L{to_x + (-8 if to_x > x else 8)} {to_y}"/>' + _tip(to_x, to_y, away)


def _tip(x: int, y: int, towards: str, kind: str = "") -> str:
    back = {"right": ((-9, -4), (-9, 4)), "left": ((9, -4), (9, 4)), "up": ((-4, 9), (4, 9))}[towards]
    corners = " ".join(f"{x + dx},{y + dy}" for dx, dy in ((0, 0), *back))
    return f'<polygon class="tip {kind}" points="{corners}"/>'


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("svg", "demo"))
    parser.add_argument("folder", type=Path, nargs="?", help="the demo's folder")
    asked = parser.parse_args()
    if asked.what == "svg":
        (IMAGES / "how-it-works.svg").write_text(how_it_works(), encoding="utf-8")
        results = (IMAGES.parent / "results.md").read_text(encoding="utf-8")
        (IMAGES / "answer.svg").write_text(answer(results), encoding="utf-8")
        (IMAGES / "curves.svg").write_text(curves(results), encoding="utf-8")
    elif asked.folder is None:
        parser.error("demo needs the folder that `lvlm-radapt demo` wrote")
    else:
        demo(asked.folder)


if __name__ == "__main__":
    main()
