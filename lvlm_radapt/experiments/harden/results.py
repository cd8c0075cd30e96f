"""The verdict in words, the same on the terminal and at the top of the page, with the numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from eval_tasks.report.html_templates import write_json, write_page
from eval_tasks.report.table_formats import METRICS, Cell, score_cell
from eval_tasks.run.environment import environment
from eval_tasks.run.records import Part, Run, images_of
from lvlm_radapt.experiments.harden.plan import CANDIDATES
from lvlm_radapt.experiments.harden.run import AS_IT_IS, AUDIT, MODEL, Hardening, mean_score

PAGE, DOCUMENT = "report.html", "harden.json"
MADE = {
    AS_IT_IS: "the model itself",
    "filter": "R-Adapt's Gaussian filter in front of it",
    "radapt": "R-Adapt: the filter and the training-free anchor",
    "learned": "R-Adapt with a learned anchor",
    "low-rank": "low-rank adversarial fine-tuning of the vision tower",
    "low-rank+filter": "low-rank fine-tuning, and the filter in front",
}


@dataclass(frozen=True)
class Line:
    """A row of one part: scores with their 95 % intervals, and where its adaptive run lies. None: not scored."""

    name: str
    clean: Cell
    transfer: Cell | None
    adaptive: Cell
    run: Path


def table_of(runs: Mapping[tuple[str, str], Run]) -> list[Line]:
    """The rows of one part in the order of the candidates."""

    def line(name: str) -> Line:
        adaptive, transfer = runs[name, "adaptive"], runs.get((name, "transfer"))
        return Line(
            name,
            _cell(adaptive, "clean"),
            None if transfer is None or name == AS_IT_IS else _cell(transfer, "adversarial"),
            _cell(adaptive, "adversarial"),
            adaptive.path,
        )

    return [line(name) for name in (AS_IT_IS, *CANDIDATES) if (name, "adaptive") in runs]


def survivors(adaptive: float, clean: float, metric: str) -> float:
    """Of 100 how many answers are still right under attack; of captions, how much of `clean`, the model's score as it
    is without attack, is left."""
    return adaptive if metric != "cider" else 100 * adaptive / clean


def headline(found: Hardening, out: Path) -> list[str]:
    """The verdict, what it costs, what still falls, the audit, and the command that serves the model."""
    word, reason = found.verdict.word, found.verdict.reason
    if found.winner is None:
        return [f"{word}. {_sentence(reason)}"]
    before, after = (found.scored[name, "adaptive"] for name in (AS_IT_IS, found.winner))
    metric = str(before.metrics["metric"])
    clean = mean_score(before, "clean")
    old, new = (survivors(mean_score(run, "adversarial"), clean, metric) for run in (before, after))
    what = "answers survive" if metric != "cider" else "points of the caption score survive"
    assert found.audit is not None
    audit = f"AUDIT: {found.audit.line()}."
    if word == "AUDIT FAILED":
        return [f"{word}. No verdict: {reason}.", audit]
    numbers = f"{new:.0f} of 100 {what} the attack instead of {old:.0f} (difference {found.gain})."
    if word != "HELPS":
        return [f"{word}. {_sentence(reason)}", _capital(numbers), audit]
    return [
        f"{word}. {numbers}",
        f"COST: the clean score changes by {found.change}, to {mean_score(after, 'clean'):.1f}."
        f"{_other(found)}{_latency(found)}",
        f"STILL FALLS: {100 - new:.0f} of 100. A stronger attack takes more.",
        audit,
        f"SERVE: {serving(found, out)}",
        f"TRY: lvlm-radapt chat {out / MODEL}",
    ]


def _other(found: Hardening) -> str:
    """What becomes of the second task, in a sentence with a space in front; "" where there is none."""
    if not found.other or found.winner is None:
        return ""
    before, after = (_cell(found.other[name], "clean") for name in (AS_IT_IS, found.winner))
    run = found.other[AS_IT_IS]
    return f" On {run.settings['task']} it is {after} instead of {before} (n = {len(run.samples)})."


def _latency(found: Hardening) -> str:
    assert found.seconds is not None
    before, after = (f"{1000 * seconds:.0f} ms" for seconds in found.seconds)
    return f" An answer takes {after} instead of {before}."


def serving(found: Hardening, out: Path) -> str:
    """The line of Python that opens the winner."""
    trust = "" if found.winner == "low-rank" else ", trust_remote_code=True"
    return f"transformers.AutoModelForImageTextToText.from_pretrained({str(out / MODEL)!r}{trust})"


def settings_of(found: Hardening) -> str:
    """What was done, in a line."""
    search, sizes, split = found.prepared.search, found.prepared.sizes, found.prepared.split
    quantised = next(iter(found.chosen_on.values())).settings["model"].get("quantize")
    packed = f", its language model in {quantised} where it is scored" if quantised else ""
    return (
        f"{Path(search.model).name}{packed}, {search.task}, preset {search.preset}, Linf {search.eps}, "
        f"{sizes.steps} steps. "
        f"{len(split.training)} images to train on, {split.images[0]} to choose on, {split.images[1]} to score on; no "
        "image is in two parts."
    )


def text_tables(found: Hardening) -> list[str]:
    """Both parts' scores as lines of plain text."""
    told = ["Chosen on (attack e2e, each model its own):", *_columns(table_of(found.chosen_on))]
    if not found.scored:
        return told
    return ["Scored on (attack ensemble, each model its own):", *_columns(table_of(found.scored)), "", *told]


def write_results(found: Hardening, out: Path, *, command: str) -> None:
    """report.html and harden.json in `out`."""
    tables = {"Scored on": found.scored, "Chosen on": found.chosen_on}
    metric = str(next(iter(found.chosen_on.values())).metrics["metric"])
    write_page(
        out / PAGE,
        "harden.html.j2",
        kicker="Harden",
        title=f"{Path(found.prepared.search.model).name} on {found.prepared.search.task}",
        lines=headline(found, out),
        good=found.verdict.word == "HELPS",
        settings=settings_of(found),
        metric=METRICS.get(metric, metric),
        parts=[(title, table_of(runs)) for title, runs in tables.items() if runs],
        winner=found.winner,
        made=MADE,
        link=lambda path: quote(str(path.relative_to(out) / "report.html")),
        audit=None if found.audit is None else f"{AUDIT}/audit.html",
        command=command,
    )
    document: dict[str, Any] = {
        "format": "lvlm-radapt harden",
        "version": 1,
        "command": command,
        "environment": environment(),
        "verdict": found.verdict.word,
        "reason": found.verdict.reason,
        "told": headline(found, out),
        "winner": found.winner,
        "search": asdict(found.prepared.search),
        "sizes": asdict(found.prepared.sizes),
        "candidates": [asdict(candidate) for candidate in found.candidates],
        "gain": found.gain and found.gain.numbers,
        "clean_change": found.change and found.change.numbers,
        "seconds_per_answer": found.seconds,
        "audit": None if found.audit is None else found.audit.verdict,
    }
    write_json(out / DOCUMENT, document)


def _columns(lines: list[Line]) -> list[str]:
    rows = [["", "no attack", "transfer", "adaptive"]]
    rows += [[line.name, line.clean.number, str(line.transfer or "-"), str(line.adaptive)] for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(run: Run, part: Part) -> Cell:
    return score_cell([*run.scores(part).values()], str(run.metrics["metric"]), images_of(run.samples))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    return f"{_capital(text)}."
