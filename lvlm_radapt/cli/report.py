"""`lvlm-radapt report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_radapt.cli.app import app, progress_console
from lvlm_radapt.cli.group import exit_unless_rank0
from lvlm_radapt.cli.options import TableFormat
from lvlm_radapt.cli.tables import print_tables


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Finished run folders.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    baseline: Annotated[
        Path | None, typer.Option(help="A run of the undefended model that all other models are measured against.")
    ] = None,
    form: Annotated[TableFormat, typer.Option("--format", help="Of the table on stdout.")] = "table",
) -> None:
    """Compare finished runs: one table (transfer and adaptive side by side) and one HTML report.

    A gain is measured against the undefended model: the same weights without the defence, or the model that the weights
    were fine-tuned from, which `finetune` writes into its folder. --baseline names it where nothing else does.
    """
    exit_unless_rank0()
    from eval_tasks.report.baseline import credited
    from eval_tasks.report.page import write_report
    from eval_tasks.run.records import read_run

    read = [read_run(path) for path in runs]
    if baseline is not None:
        read = credited(read, read_run(baseline))
    write_report(read, out)
    print_tables(read, form)
    progress_console.tell(f"report: {out}")
