"""What a comparison leaves behind: the table as JSON, CSV, Markdown and a page that leads to every run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from eval_tasks.report.html_templates import write_json, write_page, write_text
from eval_tasks.run.environment import environment
from lvlm_radapt.experiments.compare.runs import ComparisonRuns
from lvlm_radapt.experiments.compare.table import BETTER, LEGEND, ComparisonTable, table_of
from lvlm_radapt.experiments.rows import RowSpec


def write_results(compared: ComparisonRuns, out: Path, *, command: str) -> ComparisonTable:
    """Write everything to `out` and return the table."""
    table = table_of(compared)
    write_text(out / "comparison.csv", table.to_csv())
    write_text(out / "comparison.md", table.to_markdown())
    entries = {
        (line.name, title, heading): entry for line in table.lines for (title, heading), entry in line.entries.items()
    }
    write_page(
        out / "comparison.html",
        "comparison.html.j2",
        kicker="Comparison",
        title=table.title,
        table=table,
        legend=LEGEND,
        better=BETTER,
        reports={
            key: None if entry.run is None else quote(str((entry.run.path / "report.html").relative_to(out)))
            for key, entry in entries.items()
        },
        made=[(row.name, made_text(row)) for row in compared.comparison.rows],
        command=command,
    )
    cells = [
        {
            "defence": name,
            "column": title,
            "heading": heading,
            "run": None if entry.run is None else str(entry.run.path.relative_to(out)),
            "score": entry.score.numbers,
            "kept": entry.kept.numbers,
            "change": entry.change and entry.change.numbers,
        }
        for (name, title, heading), entry in entries.items()
    ]
    document = {
        "format": "lvlm-radapt comparison",
        "version": 1,
        "command": command,
        "environment": environment(),
        "comparison": json.loads(compared.comparison.model_dump_json()),
        "columns": dict(table.columns),
        "findings": table.findings(),
        "cells": cells,
    }
    write_json(out / "comparison.json", document)
    return table


def made_text(row: RowSpec) -> str:
    """How a row's model is made, in words."""
    if row.plain:
        return "the model as it is"
    told = row.model_dump(exclude={"name"}, exclude_none=True)
    return "; ".join(f"{key}: {_words(value)}" for key, value in told.items())


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(one)}" for key, one in value.items())
    return "none" if value is None else str(value)
