"""`lvlm-radapt data`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from lvlm_radapt.cli.app import console, data_app, progress_console
from lvlm_radapt.cli.group import exit_unless_rank0
from lvlm_radapt.cli.options import Split
from lvlm_radapt.cli.resuming import progress
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError


@data_app.command("scenes")
def scenes(
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    count: Annotated[int, typer.Option(min=2, max=MOST, help="How many scenes.")] = 500,
    split: Annotated[
        Split, typer.Option(help="Disjoint by content: validation to choose settings on, test to score them.")
    ] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other scenes.")] = 0,
    mixed: Annotated[bool, typer.Option("--mixed", help="Three aspect ratios instead of squares.")] = False,
    per_class: Annotated[
        int,
        typer.Option(
            min=0, max=MOST, help="Images of each of 36 classes for the task imagefolder, in OUT/classes; 0: none."
        ),
    ] = 8,
    shifted: Annotated[
        bool, typer.Option("--shifted", help="Unlike the training scenes: new textures, held-out pairs in each.")
    ] = False,
) -> None:
    """Write procedural scenes as COCO captions, VQAv2 and TextVQA files, and a folder of classes."""
    exit_unless_rank0()
    from lvlm_radapt.embedded.dataset import write_scenes

    with progress() as announce:
        classes = 32 if split == "train" else 36  # no training scene shows a pair that is held out
        advance = announce("drawing scenes", count + classes * per_class)
        written = write_scenes(
            out,
            count=count,
            split=split,
            seed=seed,
            mixed=mixed,
            per_class=per_class,
            shifted=shifted,
            progress=lambda done, total: advance(1, f"{done} of {total}"),
        )
    console.tell(f"{out}: " + ", ".join(f"{number} {name}" for name, number in written.items()))


@data_app.command("check")
def check(
    task: Annotated[str, typer.Argument(metavar="TASK", help="lvlm-radapt list tasks names them.")],
    data: Annotated[Path, typer.Option(help="The task's data folder, or hf:OWNER/NAME of the Hugging Face hub.")],
    samples: Annotated[int | None, typer.Option(max=MOST, help="Only what eval with that many would draw.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the samples.")] = 42,
) -> None:
    """Tell what is in a data folder, what is missing or damaged, and the layout wanted; no model is loaded.

    Exit code 0 when the task can run, 2 when it cannot.
    """
    from eval_tasks.data.checking import check_data

    shown = progress() if progress_console.is_terminal else nullcontext(None)
    with shown as announce:
        found = check_data(task, data, samples=samples, seed=seed, announce=announce)
    for line in found.lines():
        console.tell(line)
    if not found.ok:
        raise UserError(found.verdict())
    console.tell(found.verdict())
