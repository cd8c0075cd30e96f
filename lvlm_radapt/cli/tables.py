"""The comparison of finished runs on stdout."""

from __future__ import annotations

import sys
from typing import Any

from lvlm_radapt.cli.app import console
from lvlm_radapt.cli.options import TableFormat
from lvlm_radapt.utils.printing import readable


def print_table(table: Any, form: TableFormat) -> None:
    """A table on stdout. table: with `to_markdown`, `to_csv` and `to_rich`."""
    if form == "markdown":
        sys.stdout.write(readable(table.to_markdown()))
    elif form == "csv":
        sys.stdout.write(readable(table.to_csv()))
    else:
        console.print(table.to_rich())


def print_tables(runs: list[Any], form: TableFormat = "table") -> None:
    """The comparison of `runs` on stdout, a table a preset, and recall in both directions where it was measured."""
    from eval_tasks.report.page import tables
    from eval_tasks.report.retrieval_table import recall_markdown, recall_rows, recall_table

    recalled = recall_rows(runs)  # a UserError before anything is printed

    for table in tables(runs).values():
        print_table(table, form)
        if form == "markdown":
            sys.stdout.write("\n")
    if recalled and form == "markdown":
        sys.stdout.write(readable(recall_markdown(recalled)))
    elif recalled and form == "table":
        console.print(recall_table(recalled))
