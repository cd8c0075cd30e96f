"""The comparison of finished runs on stdout."""

from __future__ import annotations

import sys
from typing import Any

from lvlm_radapt.cli.app import console
from lvlm_radapt.cli.options import TableFormat
from lvlm_radapt.utils.printing import readable


def print_tables(runs: list[Any], form: TableFormat = "table") -> None:
    """The comparison of `runs` on stdout, a table a preset, and recall in both directions where it was measured."""
    from eval_tasks.report.page import tables
    from eval_tasks.report.retrieval_table import recall_markdown, recall_rows, recall_table

    recalled = recall_rows(runs)  # a UserError before anything is printed

    for table in tables(runs).values():
        if form == "markdown":
            sys.stdout.write(readable(table.to_markdown()) + "\n")
        elif form == "csv":
            sys.stdout.write(readable(table.to_csv()))
        else:
            console.print(table.to_rich())
    if recalled and form == "markdown":
        sys.stdout.write(readable(recall_markdown(recalled)))
    elif recalled and form == "table":
        console.print(recall_table(recalled))
