"""The command itself and its consoles: results go to stdout, progress to stderr."""

from __future__ import annotations

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

console = PlainConsole()
progress_console = PlainConsole(stderr=True)
