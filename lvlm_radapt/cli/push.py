"""`lvlm-radapt push`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.group import exit_unless_rank0


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An adapter, an export, fine-tuned or folded weights.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to on the Hugging Face hub.")],
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN...]", help="Its finished runs and its base's, for the card.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="As the hub names it: mit, llama2 ...; of embedded models mit.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository that others do not see.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the card; nothing is sent.")] = False,
) -> None:
    """Push a model's folder to the Hugging Face hub, with a card that holds the scores of its runs.

    The token is that of `hf auth login`, or HF_TOKEN. DIR stays as it is.
    """
    exit_unless_rank0()
    from eval_tasks.run.records import read_run
    from lvlm_radapt.hub import model_card, push_to_hub
    from lvlm_radapt.utils.printing import readable

    read = [read_run(path) for path in runs or ()]
    if dry_run:
        sys.stdout.write(readable(model_card(folder, repo, read, licence=licence)))
        return
    console.tell(push_to_hub(folder, repo, read, licence=licence, private=True if private else None))
