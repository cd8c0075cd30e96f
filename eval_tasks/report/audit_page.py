"""audit.html, and how numbers of a finding read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.box
import rich.table
from rich.text import Text

from eval_tasks.audit.findings import Audit, Finding, Judgement, Number, Verdict
from eval_tasks.report.html_templates import templates
from eval_tasks.run.audit_model import Audited
from eval_tasks.run.facts import model_words
from lvlm_radapt.utils.atomic_folder import new_folder

TONES: Mapping[Judgement, str] = {"pass": "good", "warn": "warn", "fail": "bad", "too little to judge": "neutral"}
_COLOURS: Mapping[Verdict, str] = {"pass": "green", "warn": "yellow", "fail": "red"}


def numbers_text(finding: Finding) -> str:
    """`clean loss 1.42, adaptive loss 2.77`."""
    return ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in finding.numbers.items())


def audit_table(audit: Audit) -> rich.table.Table:
    """For the terminal: check, verdict, what it means."""
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, show_edge=False)
    table.add_column("Check", no_wrap=True)
    table.add_column("Verdict")
    table.add_column("What it says")
    for finding in audit.findings:
        verdict = Text(finding.verdict, style=_COLOURS[finding.verdict])
        table.add_row(Text(finding.name), verdict, Text(finding.explanation))
    for name, reason in audit.skipped.items():
        table.add_row(Text(name, style="dim"), Text("not run", style="dim"), Text(reason, style="dim"))
    return table


def audit_page(document: Mapping[str, Any], audit: Audit) -> str:
    """The page of one full audit: self-contained, no script. `document`: what audit.json holds."""
    page = templates(numbers=numbers_text).get_template("audit.html.j2")
    return page.render(document=document, model=model_words(document["model"]), audit=audit, tones=TONES)


def _number(value: Number) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unbounded"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_audit(audited: Audited, out: Path) -> None:
    """audit.json and audit.html in the new folder `out`. UserError when it holds anything or cannot be written."""
    with new_folder(out) as folder:
        document = json.dumps(audited.document, indent=2, allow_nan=False) + "\n"
        (folder / "audit.json").write_text(document, encoding="utf-8")
        (folder / "audit.html").write_text(audit_page(audited.document, audited.audit), encoding="utf-8")
