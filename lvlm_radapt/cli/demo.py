"""`lvlm-radapt demo`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.group import Processes, is_first, say
from lvlm_radapt.cli.options import DeviceOption, LogJsonOption
from lvlm_radapt.cli.placing import device_named
from lvlm_radapt.cli.resuming import command_line, progress, resumable
from lvlm_radapt.cli.tables import print_tables
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import Stopped
from lvlm_radapt.utils.progress import JsonLines


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything is written; run again to continue.")] = Path(
        "lvlm-radapt-demo"
    ),
    samples: Annotated[int, typer.Option(min=2, max=MOST, help="Scenes a model is scored on, each task.")] = 64,
    steps: Annotated[int, typer.Option(min=1, max=MOST, help="APGD steps.")] = 20,
    device: DeviceOption = "auto",
    log_json: LogJsonOption = None,
) -> None:
    """Protect the embedded models and attack them, with and without knowledge of the defence.

    Three models: as they are, with R-Adapt, and tiny-llava hardened, whose training ships with the package.

    Ends with one table and a report; nothing is downloaded.
    """
    from lvlm_radapt.experiments.demo import run_demo

    try:
        with (
            JsonLines.to(log_json if is_first() else None) as log,
            resumable(command_line()),
            log.ended(),
            progress(log) as announce,
        ):
            runs = run_demo(
                out, samples=samples, steps=steps, announce=announce, device=device_named(device), group=Processes.group
            )
    except Stopped as stop:
        say(f"stopped; {stop.advice}", once="stopped")
        sys.stdout.flush()
        if Processes.group is not None:
            Processes.group.leave()
        os._exit(128 + stop.signal_number)  # the other model's thread would work on for as long as its attack takes
    if log_json == "-":
        return
    print_tables(runs)
    console.tell(
        "tiny-llava-low-rank is tiny-llava hardened: fine-tuned beforehand on other scenes (250 steps), the filter in "
        "front. docs/harden.md has the command."
    )
    console.tell(f"report: {out / 'report.html'}")
