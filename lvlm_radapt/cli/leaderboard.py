"""`lvlm-radapt leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lvlm_radapt.cli.app import app, console, progress_console
from lvlm_radapt.cli.group import exit_unless_rank0
from lvlm_radapt.cli.resuming import command_line


@app.command()
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished run folders.")],
    out: Annotated[Path, typer.Option(help="The page to write; JSON where it ends in .json.")] = Path(
        "leaderboard.html"
    ),
) -> None:
    """Rank models by their score under the adaptive attack, never under transfer.

    Runs whose task, attack, eps, steps or samples differ stand in tables of their own. A model without an adaptive run
    has no rank: it is not shown to hold.
    """
    exit_unless_rank0()
    from eval_tasks.report.leaderboard import check_leaderboard, write_leaderboard
    from eval_tasks.report.leaderboard import leaderboard as ranked
    from eval_tasks.run.records import read_run

    check_leaderboard(out)
    made = ranked([read_run(path) for path in runs])
    write_leaderboard(made, out, command_line())
    for board in made.boards:
        console.print(Text(f"{board.title} · {board.unit} · n = {board.n} · preset {board.preset}", style="bold"))
        console.print(board.table().to_rich())
    if made.left_out:
        console.tell(f"left out: {made.left_out} runs without an attacker")
    progress_console.tell(f"leaderboard: {out}")
