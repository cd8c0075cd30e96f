"""report.html: what was measured, in one file that loads nothing and reads well on a phone and on paper."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval_tasks.audit import Audit
from eval_tasks.metrics.intervals import LEAST
from eval_tasks.report.audit_across import adaptive_against_transfer
from eval_tasks.report.audit_page import TONES, numbers_text
from eval_tasks.report.build_table import tables
from eval_tasks.report.figures import DIFFERENCE_GAIN, difference_image, eps_panels, loss_panels, png_uri, text_uri
from eval_tasks.report.html_templates import templates, write_text
from eval_tasks.report.retrieval_table import COLUMNS as RECALL_COLUMNS
from eval_tasks.report.retrieval_table import recall_rows
from eval_tasks.report.table_formats import METRICS, TOO_FEW, Cell, Row, Table
from eval_tasks.run.facts import judged, metric_of, model_label, setting, strength_of, threat_of
from eval_tasks.run.records import Run, SampleRecord, image_path
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.images import open_image
from lvlm_radapt.utils.writing import check_file

SHOWN = 6  # samples of either kind in the gallery
_MARK = b'<meta name="generator" content="lvlm-radapt report">'
NOT_ATTACKED, CONTROL, NO_ATTACKER = "Not attacked", "Control", "No attacker"
TONE_ORDER = ("bad", "neutral", "good")
_CELLS = ("clean", "transfer", "adaptive", "gain")


@dataclass(frozen=True)
class Finding:
    """What a row says, in words; `tone` is good, bad or neutral."""

    subject: str
    verdict: str
    tone: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Headline:
    """What all rows of a model say together, and each of them."""

    model: str
    verdict: str
    tone: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Picture:
    """A sample of the gallery; an image that is not on disk is None."""

    sample: SampleRecord
    clean: str | None
    attacked: str | None
    difference: str | None
    linf: str
    small: bool


@dataclass(frozen=True)
class SampleGallery:
    """Samples of one run: `broken` lost more than half of their clean score, `held` did not."""

    model: str
    threat: str
    attack: str
    metric: str
    truth: str
    """What the true answers are called."""
    broken: tuple[Picture, ...]
    held: tuple[Picture, ...]
    broken_total: int
    held_total: int


def write_report(runs: Sequence[Run], out_html: Path) -> Path:
    """Write the report of one or several finished runs to `out_html`, and return that path.

    The page is self-contained: styles inline, images as data URIs, no script. Everything that comes from data
    is escaped. Images that are missing are left out. Raises UserError for an image that is not the run's own any more,
    as `eval_tasks.report.table_formats.tables` does, as `check_report` does, and when the file cannot be written.
    """
    check_report(out_html)
    made = tables(runs)
    runs = list({run.path.resolve(): run for run in runs}.values())
    for run in runs:
        run.check_images()
    page = (
        templates(numbers=numbers_text)
        .get_template("report.html.j2")
        .render(
            title=_title(runs),
            created=max(str(run.settings.get("created", "")) for run in runs),
            runs=[_described(run) for run in runs],
            tables=list(made.values()),
            headlines={preset: headlines_of(table) for preset, table in made.items()},
            bars={preset: _bars(table) for preset, table in made.items()},
            panels=[panel for table in made.values() for panel in eps_panels(table)],
            losses=[panel for table in made.values() for panel in loss_panels(table)],
            files={preset: _files(table) for preset, table in made.items()},
            gallery=_gallery(runs),
            recalled=recall_rows(runs),
            recall_columns=RECALL_COLUMNS,
            audits=_audits(runs),
            across=adaptive_against_transfer(runs),
            tones=TONES,
            metrics=sorted({metric_of(run) for run in runs}),
            gain=DIFFERENCE_GAIN,
            least=LEAST,
            cells=_CELLS,
        )
    )
    return write_text(out_html, page)


def check_report(out_html: Path) -> None:
    """UserError unless a report may be written there: a new file, or an earlier report."""
    check_file(out_html, what="report", own=lambda head: _MARK in head)


def findings_of(table: Table) -> list[Finding]:
    """What the rows of a table say, in plain words, negative results included."""
    return [_finding(row) for row in table.rows]


def headlines_of(table: Table) -> list[Headline]:
    """The findings by model. A verdict that not all attacked rows share says how many have it, bad ones first."""
    found: dict[str, list[Finding]] = {}
    for row, finding in zip(table.rows, findings_of(table), strict=True):
        found.setdefault(row.model, []).append(finding)
    return [_headline(model, findings) for model, findings in found.items()]


def _headline(model: str, findings: Sequence[Finding]) -> Headline:
    attacked = [one for one in findings if one.verdict not in (CONTROL, NOT_ATTACKED, NO_ATTACKER)] or findings
    counts = Counter(one.verdict for one in sorted(attacked, key=lambda one: TONE_ORDER.index(one.tone)))
    tones = {one.tone for one in attacked}
    tone = "bad" if "bad" in tones else "good" if tones == {"good"} else "neutral"
    shared = next(iter(counts)) if len(counts) == 1 else None
    verdict = shared or "; ".join(f"{said}: {count} of {len(attacked)} rows" for said, count in counts.items())
    return Headline(model, verdict, tone, tuple(findings))


def _finding(row: Row) -> Finding:
    subject = f"{row.model}, {row.task}, {row.attack_text}"
    notes = tuple(f"{note[0].upper()}{note[1:]}." for note in row.notes)
    clean = f"On clean images it scores {_figure(row.clean)} ({row.metric_text}, n = {row.n})."
    if row.attack == "none":
        return Finding(row.model + f", {row.task}", NOT_ATTACKED, "neutral", (clean, *_cost(row), *notes))
    if row.attack == "noise":
        said = f"Random noise of this size leaves {_kept(row.transfer, row.clean)}: an attack must do more harm."
        return Finding(subject, CONTROL, "neutral", (clean, said, *notes))
    sentences = [clean, *_cost(row)]
    if row.eps is None:
        said = f"Such images leave {_kept(row.transfer, row.clean)}. Nobody attacked: this speaks of no attacker."
        return Finding(subject, NO_ATTACKER, "neutral", (*sentences, said, *notes))
    if row.transfer.value is not None:
        origin = f", {row.transfer.detail}," if row.transfer.detail else " crafted on the undefended model"
        sentences.append(f"The attack{origin} leaves {_kept(row.transfer, row.clean)}{_said(row.transfer)}.")
    if row.adaptive.value is None:
        sentences.append("The adaptive attack was not run, so nothing here speaks of an attacker who knows the model.")
        return Finding(subject, "Adaptive attack not run", "neutral", (*sentences, *notes))
    leaves = f"{_kept(row.adaptive, row.clean)}{_said(row.adaptive)}"
    sentences.append(f"The attack crafted on this very model leaves {leaves}.")
    if not row.defended:
        return Finding(subject, "Undefended", "neutral", (*sentences, *notes))
    if row.no_base:
        return Finding(subject, "Gains mean nothing here", "neutral", (*sentences, *notes))
    verdict, tone = "Undefended model not run", "neutral"
    if row.gain.value is None or row.gain.interval is None:
        sentences.append("Without the undefended model under the same attack, there is no gain to state.")
    else:
        gain = _figure(row.gain)
        if row.gain.too_few:
            verdict, tone = "Too few samples to tell", "neutral"
            sentences.append(
                f"Against the undefended model that is {gain}: {row.gain.images} images are too few to tell a gain "
                f"from chance, {LEAST} are the least."
            )
        elif row.gain.sign > 0:
            verdict, tone = "Gains under the adaptive attack", "good"
            sentences.append(f"That is {gain} against the undefended model under its own adaptive attack.")
        elif row.gain.sign < 0:
            verdict, tone = "Worse than undefended", "bad"
            sentences.append(f"That is {gain} against the undefended model: the defence does harm here.")
        else:
            verdict, tone = "No gain shown", "bad"
            sentences.append(
                f"Against the undefended model that is {gain}: "
                f"{row.n} samples show no gain once the attacker knows the defence."
            )
        if row.transfer_gain is not None:
            sentences.append(f"The transfer attack alone would have shown {_figure(row.transfer_gain)}.")
        if row.only_transfer:
            verdict, tone = "Holds only against attacks that do not know it", "bad"
    return Finding(subject, verdict, tone, (*sentences, *(note for note in notes if verdict + "." != note)))


def _cost(row: Row) -> list[str]:
    change = row.clean_change
    if row.no_base or change is None or change.interval is None:
        return []
    unclear = TOO_FEW if change.too_few else f"no difference that {row.n} samples can show"
    judged = {1: "a gain", -1: "a cost", 0: unclear}[change.sign]
    return [f"Against the undefended model that is {_figure(change)}: {judged}."]


def _figure(cell: Cell) -> str:
    return " ".join(part for part in (cell.number, cell.bounds) if part)


def _kept(cell: Cell, clean: Cell) -> str:
    if cell.value is None:
        return cell.words
    share = f", {100 * cell.value / clean.value:.0f} % of the clean score" if clean.value else ""
    return f"{_figure(cell)}{share}"


def _said(cell: Cell) -> str:
    """What a targeted attack reached, to follow the score it leaves."""
    return f" and has the {cell.success} of the answers" if cell.success else ""


def _title(runs: Sequence[Run]) -> str:
    labels = list(dict.fromkeys(model_label(run) for run in runs))
    names = list(dict.fromkeys(str(setting(run, "model", "name")) for run in runs))
    return labels[0] if len(labels) == 1 else ", ".join(Path(name).name for name in names)


def _bars(table: Table) -> list[dict[str, tuple[float, float, float] | None]]:
    """For each row and score, (value, low, high) in percent of the metric's largest number in the table."""
    tops: dict[str, float] = {}
    for row in table.rows:
        for cell in (row.clean, row.transfer, row.adaptive):
            if cell.value is not None:
                high = cell.interval.high if cell.interval else cell.value
                tops[row.metric] = max(tops.get(row.metric, 0.0), cell.value, high)

    def bar(cell: Cell, top: float) -> tuple[float, float, float] | None:
        if cell.value is None or cell.signed or top <= 0:
            return None
        low, high = cell.interval or (cell.value, cell.value)
        value, low, high = (round(min(max(100 * number / top, 0), 100), 2) for number in (cell.value, low, high))
        return value, low, high

    return [{name: bar(getattr(row, name), tops.get(row.metric, 0.0)) for name in _CELLS} for row in table.rows]


def _files(table: Table) -> list[tuple[str, str, str]]:
    """(label, file name, data URI) of the table as CSV and as Markdown."""
    stem = "scores-" + re.sub(r"[^\w.-]+", "-", table.preset)[:40]
    return [
        ("CSV", f"{stem}.csv", text_uri("text/csv", table.to_csv())),
        ("Markdown", f"{stem}.md", text_uri("text/markdown", table.to_markdown())),
    ]


def _described(run: Run) -> dict[str, Any]:
    attack = setting(run, "attack")
    apart = ("command", "environment", "schema", "created", "resumed")
    metric = metric_of(run)
    return {
        "label": model_label(run),
        "folder": run.path.name,
        "task": setting(run, "task"),
        "attack": "no attack" if attack is None else f"{attack['name']}, {strength_of(run)}",
        "threat": threat_of(run),
        "n": len(run.samples),
        "metric": METRICS.get(metric, metric),
        "command": str(run.settings.get("command", "not recorded")),
        "settings": _flat({key: value for key, value in run.settings.items() if key not in apart}),
        "environment": _flat(
            {key: run.settings[key] for key in ("created", "environment", "resumed") if key in run.settings}
        ),
        "seconds": run.metrics.get("seconds"),
        "notes": [str(note) for note in run.metrics.get("notes") or []] + ([run.remark] if run.remark else []),
    }


def _audits(runs: Sequence[Run]) -> list[tuple[str, Audit]]:
    """The audits that runs carry, with what they are of."""
    found = []
    for run in runs:
        if run.metrics.get("audit") is None:
            continue
        audit = Audit.from_dict(run.metrics["audit"])
        attack = setting(run, "attack")
        subject = f"{model_label(run)}, {setting(run, 'task')}, {attack['name']}, {strength_of(run)}"
        found.append((subject, audit))
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            lines += _flat(value, f"{name}.")
        else:
            lines.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return lines


def _gallery(runs: Sequence[Run]) -> SampleGallery | None:
    """Of the run that tells most: with images, attacked rather than noisy, defended, adaptive, and with
    samples of both kinds."""
    threats = {"adaptive": 0, "transfer": 1, "natural": 2, "noise": 3}
    attacked = [run for run in runs if threat_of(run) in threats]
    if not attacked:
        return None

    def rank(run: Run) -> tuple[bool, bool, bool, int, int]:
        threat = threat_of(run)
        bare = not any((run.path / "images").glob("*.png"))
        undefended = not judged(run)
        return bare, threat == "noise", undefended, threats[threat], -min(SHOWN, *map(len, _split(run)))

    run = min(attacked, key=rank)
    broken, held = _split(run)
    attack = setting(run, "attack")
    steps = f", {attack['steps']} steps" if attack.get("steps") else ""
    target = f' "{attack["target"]}"' if attack.get("target") else ""
    return SampleGallery(
        model=model_label(run),
        threat=threat_of(run),
        attack=f"{attack['name']}{target}, {strength_of(run)}{steps}",
        metric=METRICS.get(metric_of(run), metric_of(run)),
        truth={"accuracy": "Class", "recall@1": "Captions"}.get(metric_of(run), "References"),
        broken=tuple(_picture(run, sample) for sample in broken[:SHOWN]),
        held=tuple(_picture(run, sample) for sample in held[:SHOWN]),
        broken_total=len(broken),
        held_total=len(held),
    )


def _split(run: Run) -> tuple[list[SampleRecord], list[SampleRecord]]:
    """(broken, held): those with images first, then the largest loss, or the most that was kept."""
    broken: list[tuple[int, float, SampleRecord]] = []
    held: list[tuple[int, float, SampleRecord]] = []
    for sample in run.samples:
        clean = sample.clean.score
        after = None if sample.adversarial is None else sample.adversarial.score
        if not clean or clean < 0 or after is None:
            continue  # nothing to lose, or nothing to compare
        missing = sum(not image_path(run.path, folder, sample.id).is_file() for folder in ("images", "clean"))
        if after < clean / 2:
            broken.append((missing, after - clean, sample))
        else:
            held.append((missing, -after / clean, sample))
    ordered = [[sample for *_, sample in sorted(kind, key=lambda entry: entry[:2])] for kind in (broken, held)]
    return ordered[0], ordered[1]


def _picture(run: Run, sample: SampleRecord) -> Picture:
    clean, attacked = (_pixels(image_path(run.path, folder, sample.id)) for folder in ("clean", "images"))
    difference, linf = None, None if sample.adversarial is None else sample.adversarial.linf
    if clean is not None and attacked is not None and clean.shape == attacked.shape:
        difference = png_uri(difference_image(clean, attacked))
        linf = int(np.abs(attacked.astype(int) - clean).max()) / 255
    seen = attacked if attacked is not None else clean
    return Picture(
        sample=sample,
        clean=None if clean is None else png_uri(clean),
        attacked=None if attacked is None else png_uri(attacked),
        difference=difference,
        linf="" if linf is None else _levels(linf),
        small=seen is not None and max(seen.shape[:2]) <= 160,
    )


def _pixels(path: Path) -> NDArray[np.uint8] | None:
    try:
        return np.asarray(open_image(path), dtype=np.uint8)
    except UserError:  # missing or damaged: the page shows a placeholder
        return None


def _levels(linf: float) -> str:
    """k/255; the image is 8-bit, so k is whole up to float rounding."""
    levels = linf * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-3 else f"{levels:.2f}/255"
