"""`lvlm-radapt compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.group import leave_it_to_the_first
from lvlm_radapt.cli.options import DeviceOption, DtypeOption, LogJsonOption, TableFormat
from lvlm_radapt.cli.placing import place_of
from lvlm_radapt.cli.resuming import command_line, progress, resumable
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.printing import readable
from lvlm_radapt.utils.progress import JsonLines


@app.command()
def compare(
    preset: Annotated[
        str, typer.Argument(metavar="PRESET", help="A comparison (lvlm-radapt list presets), or your own YAML file.")
    ],
    out: Annotated[Path, typer.Option(help="A new or empty folder for scenes, models, runs and the table.")],
    samples: Annotated[
        int | None, typer.Option(min=2, max=MOST, help="A column; the preset's number if left out.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Of every attack; the preset's number if left out.")
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Budgets with commas: 2/255,4/255,8/255; the preset's if left out.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    form: Annotated[TableFormat, typer.Option("--format", help="Of the table on stdout.")] = TableFormat.table,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a comparison that was stopped.")] = False,
    log_json: LogJsonOption = None,
) -> None:
    """Score many defences on the same samples under the same attacks, and set them side by side.

    What a row needs is trained once (learned anchors, fine-tuned weights). Transfer images are crafted once, on the
    undefended model; adaptive ones on each row's own. Every cell is a run folder with its report.
    """
    leave_it_to_the_first()
    from lvlm_radapt.experiments.compare.preset import load_comparison
    from lvlm_radapt.experiments.compare.results import write_results
    from lvlm_radapt.experiments.compare.runs import run_comparison

    chosen = load_comparison(preset).changed(
        samples=samples, steps=steps, eps=None if eps is None else [one.strip() for one in eps.split(",")]
    )
    place = place_of(device, dtype, None, None)
    with (
        JsonLines.to(log_json) as log,
        resumable(command_line("--resume")),
        log.ended(),
        progress(log) as announce,
    ):
        compared = run_comparison(
            chosen,
            out,
            announce=announce,
            resume=resume,
            command=command_line(),
            device=place["device"],
            dtype=place["dtype"],
        )
        table = write_results(compared, out, command=command_line())
    if log_json == "-":
        return
    if form is TableFormat.markdown:
        sys.stdout.write(readable(table.to_markdown()))
    elif form is TableFormat.csv:
        sys.stdout.write(table.to_csv())
    else:
        console.print(table.to_rich())
    console.tell(f"page: {out / 'comparison.html'}")
