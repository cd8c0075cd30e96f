"""`lvlm-radapt chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_radapt.cli.app import app
from lvlm_radapt.cli.options import DeviceMapOption, DeviceOption, Dtype, DtypeOption, ModelArgument, QuantizeOption
from lvlm_radapt.cli.placing import default_preset, place_of


@app.command()
def chat(
    model: ModelArgument,
    image: Annotated[Path | None, typer.Option(help="The image to talk about; /image FILE shows another.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="The model without its defence and with it, side by side.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = Dtype.float32,
    quantize: QuantizeOption = None,
) -> None:
    """Talk with MODEL about an image, attack the image, switch the defence, and see what it says then.

    Lines are said to the model, in its own chat template; /help lists the commands. In a pipe a line is a turn, and
    stdout holds the answers alone.
    """
    from eval_tasks.data.images import open_image
    from lvlm_radapt.chat.session import Session
    from lvlm_radapt.chat.terminal import run_chat
    from lvlm_radapt.models.load import load_model

    if image is not None:
        open_image(image)  # a mistake there shows before the model is loaded
    loaded = load_model(model, **place_of(device, dtype, quantize, device_map))
    hint = _embedded_prompts() if default_preset(model) == "scenes" else None
    run_chat(Session(loaded, compare=compare, max_new_tokens=max_new_tokens), image=image, hint=hint)


def _embedded_prompts() -> str:
    from eval_tasks.presets import load_protocol, load_task_config

    protocol = load_protocol("scenes")
    caption, question = (
        " ".join(protocol.prompt(load_task_config(task), "QUESTION").split()) for task in ("coco", "vqav2")
    )
    return f"the embedded models were trained on single turns (/reset begins anew) of two kinds: {caption} | {question}"
