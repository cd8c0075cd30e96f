"""`lvlm-radapt serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.group import exit_unless_rank0
from lvlm_radapt.cli.options import DeviceOption, Dtype


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An export, folded or fine-tuned weights, or any model.")
    ],
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 8000,
    device: DeviceOption = "auto",
    dtype: Annotated[Dtype, typer.Option(help="What the weights are computed in; auto: as they are stored.")] = "auto",
) -> None:
    """Serve MODEL with transformers' own server, as OpenAI's chat completions, at http://HOST:PORT/v1.

    Of an export the Python files in its folder are run, and the defence is inside. Of folded weights those of its image
    processor are, which filters. Nobody is asked for a key.
    """
    exit_unless_rank0()
    from lvlm_radapt.serving import serve as answer

    answer(model, host=host, port=port, device=device, dtype=dtype, tell=console.tell)
