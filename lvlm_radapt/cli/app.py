"""The command itself and its consoles: results go to stdout, progress to stderr."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from lvlm_radapt.utils.printing import PlainConsole

app = typer.Typer(
    name="lvlm-radapt",
    help="Make a vision-language model robust to adversarial images without touching a weight (R-Adapt), "
    "and measure honestly what that buys: under attacks that do not know the defence, and under ones that do.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Data sets on disk.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lvlm-radapt {version('lvlm-radapt')}")
        raise typer.Exit


@app.callback()
def _common(
    shown: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Flags that belong to no command."""


console = PlainConsole()
progress_console = PlainConsole(stderr=True)
