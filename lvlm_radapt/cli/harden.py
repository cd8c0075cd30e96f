"""`lvlm-radapt harden`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_radapt.cli import options
from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.group import exit_unless_rank0
from lvlm_radapt.cli.placing import default_preset, place_of
from lvlm_radapt.cli.resuming import command_line, resumable_progress
from lvlm_radapt.utils.bounds import MOST

if TYPE_CHECKING:
    from lvlm_radapt.experiments.harden.run import Prepared


@app.command()
def harden(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="An undefended vision-language model: a name, folder or Hugging Face id."),
    ],
    task: Annotated[str, typer.Option(help="What is asked: coco, vqav2, pope ... (lvlm-radapt list tasks).")],
    data: Annotated[Path, typer.Option(help="The task's data folder: a third to choose on, the rest to score on.")],
    images: Annotated[Path, typer.Option(help="A folder of other images to train on; no labels are needed.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder for runs, report.html and the model in hardened/.")],
    eps: options.EpsOption = "4/255",
    samples: Annotated[
        int | None,
        typer.Option(min=3, max=MOST, help="Of --data.", show_default="150 for embedded models, else the preset's"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Of every attack.", show_default="20 for embedded models, else 100"),
    ] = None,
    train_steps: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Training steps.", show_default="each method's own")
    ] = None,
    image_count: Annotated[int, typer.Option(min=8, max=MOST, help="How many of --images are used at most.")] = 2000,
    max_clean_loss: Annotated[
        float, typer.Option(min=0, max=100, help="The price: points of the clean score that a model may lose.")
    ] = 2.0,
    hours: Annotated[
        float | None, typer.Option(min=0, help="Cut samples and steps until the search fits into so many hours.")
    ] = None,
    also: Annotated[
        str | None, typer.Option(help="Another task of --data: its clean score is told before and after.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what each stage takes in time and memory, and end there.")
    ] = False,
    preset: options.PresetOption = None,
    device: options.DeviceOption = "auto",
    device_map: options.DeviceMapOption = None,
    dtype: options.DtypeOption = "auto",
    quantize: options.QuantizeOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search that was stopped.")] = False,
    log_json: options.LogJsonOption = None,
) -> None:
    """Find a defence for MODEL that holds under attacks that know it, prove it on other images, and write the model.

    Tried are the model as it is, the filter, R-Adapt (training-free and learned), low-rank adversarial fine-tuning, and
    that with the filter. The exit code is 0 where the best one helps, 3 where nothing does, 4 where the audit fails.
    """
    exit_unless_rank0()
    from lvlm_radapt.experiments.harden.results import PAGE, headline, settings_of, text_tables, write_results
    from lvlm_radapt.experiments.harden.run import Search, prepare, run_search
    from lvlm_radapt.experiments.harden.verdict import judge

    search = Search(
        model=model,
        task=task,
        data=str(data.expanduser().resolve()),
        images=str(images.expanduser().resolve()),
        eps=eps,
        preset=preset or default_preset(model),
        max_clean_loss=max_clean_loss,
        samples=samples,
        steps=steps,
        train_steps=train_steps,
        image_count=image_count,
        hours=hours,
        also=also,
    )
    place = place_of(device, dtype, quantize, device_map, model=model)
    with resumable_progress(log_json) as announce:
        prepared = prepare(search, out, resume=resume, **place)
        few = judge(prepared.split.images[1], None, None, None)
        if few.word == "NO VERDICT":
            console.tell(f"{few.word}. {few.reason}")
            raise typer.Exit(few.exit_code)
        if log_json != "-":
            for line in _plan_lines(prepared):
                console.print(line, soft_wrap=True)
        if plan:
            return
        found = run_search(prepared, out, announce=announce, resume=resume, command=command_line(), **place)
        write_results(found, out, command=command_line())
    if log_json != "-":
        for line in (*headline(found, out), "", settings_of(found), "", *text_tables(found), "", f"page: {out / PAGE}"):
            console.print(line, soft_wrap=True)
    raise typer.Exit(found.verdict.exit_code)


def _plan_lines(prepared: Prepared) -> list[str]:
    """What will be done, on what, and how long each stage takes."""
    from lvlm_radapt.experiments.harden.plan import stages, total

    split, sizes, costs = prepared.split, prepared.sizes, prepared.costs
    dropped = f" ({split.dropped} more are in --data, too, and left out)" if split.dropped else ""
    told = [
        f"{len(split.training)} images to train on{dropped}, {split.images[0]} to choose on, {split.images[1]} to "
        f"score on; preset {prepared.search.preset}, {sizes.samples} samples, {sizes.steps} attack steps"
    ]
    if costs is None:
        return told
    told += [f"  {_time(one.seconds):>8}  {one.memory / 1e9:5.1f} GB  {one.name}" for one in stages(costs, sizes)]
    told.append(f"  {_time(total(costs, sizes)):>8}  in all, by two steps of each")
    return told if prepared.cut is None else [*told, prepared.cut]


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"
