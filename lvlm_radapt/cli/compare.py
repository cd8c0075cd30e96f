"""`lvlm-radapt compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.group import exit_unless_rank0
from lvlm_radapt.cli.options import DeviceOption, DtypeOption, LogJsonOption, TableFormat
from lvlm_radapt.cli.placing import default_preset, place_of
from lvlm_radapt.cli.resuming import command_line, resumable_progress
from lvlm_radapt.cli.tables import print_table
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from lvlm_radapt.experiments.compare.preset import Comparison


@app.command()
def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="PRESET | MODEL ROW...",
            help="A comparison (lvlm-radapt list presets) or your own YAML file. Or an undefended model and the rows "
            "to score against it: filter, anchor, radapt, learned, jpeg, random-resize, a defence of your own as "
            "pkg.module:Name, low-rank, shallow, fare, two as low-rank+filter, or a model's folder.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new or empty folder for scenes, models, runs and the table.")],
    task: Annotated[str | None, typer.Option(help="For MODEL ROW...: what is asked (lvlm-radapt list tasks).")] = None,
    data: Annotated[Path | None, typer.Option(help="For MODEL ROW...: the task's data folder.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="For rows that are trained (learned, low-rank ...): a folder of other images.")
    ] = None,
    image_count: Annotated[
        int | None, typer.Option(min=8, max=MOST, help="How many of --images are used at most.", show_default="2000")
    ] = None,
    train_steps: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Training steps of a row; the method's own if left out.")
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(help="For MODEL ROW...: a white-box attack.", show_default="apgd-ce for encoders, e2e for others"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=2, max=MOST, help="A column; the preset's number if left out.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Of every attack; the preset's or its own if left out.")
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Budgets with commas: 2/255,4/255,8/255; the preset's, or 4/255, if left out.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="For MODEL ROW...: the protocol; scenes for embedded models, native for others.")
    ] = None,
    early_exit: Annotated[
        bool, typer.Option("--early-exit", help="For MODEL ROW...: a sample leaves once its answer scores 0.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    form: Annotated[TableFormat, typer.Option("--format", help="Of the table on stdout.")] = "table",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a comparison that was stopped.")] = False,
    log_json: LogJsonOption = None,
) -> None:
    """Score many defences on the same samples under the same attacks, and set them side by side.

    What a row needs is trained once (learned anchors, fine-tuned weights). Transfer images are crafted once, on the
    undefended model; adaptive ones on each row's own. Every cell is a run folder with its report.
    """
    exit_unless_rank0()
    from lvlm_radapt.experiments.compare.results import write_results
    from lvlm_radapt.experiments.compare.runs import run_comparison

    budgets = None if eps is None else [one.strip() for one in eps.split(",")]
    chosen = _chosen(
        words,
        changes={"samples": samples, "steps": steps, "eps": budgets},
        task=task,
        data=data,
        images=images,
        image_count=image_count,
        train_steps=train_steps,
        attack=attack,
        preset=preset,
        early_exit=early_exit or None,
    )
    place = place_of(device, dtype, None, None)
    with resumable_progress(log_json) as announce:
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
    print_table(table, form)
    console.tell(f"page: {out / 'comparison.html'}")


def _chosen(words: list[str], *, changes: dict[str, Any], **own: Any) -> Comparison:
    """The comparison that the words name. changes: to a preset; own: flags that a preset has no use for."""
    from lvlm_radapt.experiments.compare.preset import load_comparison
    from lvlm_radapt.experiments.compare.words import comparison_of

    given = {name: value for name, value in own.items() if value is not None}
    if len(words) == 1 and not given:
        return load_comparison(words[0]).changed(**changes)
    if "task" not in given or "data" not in given:
        raise UserError("models on the command line are scored on your own data: give both --task and --data")
    flags = given | {name: value for name, value in changes.items() if value is not None}
    return comparison_of(words, **{"preset": default_preset(words[0]), **flags})
