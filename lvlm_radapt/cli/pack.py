"""`lvlm-radapt pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.group import exit_unless_rank0


@app.command()
def pack(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run under attack.")],
    out: Annotated[Path, typer.Option(metavar="FILE.zip", help="The file to write.")],
    licence: Annotated[
        str | None, typer.Option(help="Of the images, for the notice; the task's own if left out.", show_default=False)
    ] = None,
) -> None:
    """Pack a run's attacked images with labels, budgets, checksums and a notice into one file to hand on.

    `eval --images-from FILE.zip` scores them on another model. Paths of this machine are left out.
    """
    exit_unless_rank0()
    from eval_tasks.run.checksums import file_sum
    from eval_tasks.run.pack import write_pack
    from eval_tasks.run.records import read_run

    write_pack(read_run(run), out, licence)
    console.tell(f"{out}: SHA-256 {file_sum(out)}")
