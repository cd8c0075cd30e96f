"""`lvlm-radapt check`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from lvlm_radapt.cli import options
from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.group import exit_unless_rank0
from lvlm_radapt.cli.placing import place_of
from lvlm_radapt.utils.errors import UserError

_FORMAT = "lvlm-radapt check"


@app.command()
def check(
    model: options.ModelArgument,
    image: Annotated[Path | None, typer.Option(help="What it is shown.", show_default="a drawn one")] = None,
    written: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="The checks and their numbers, as JSON.")
    ] = None,
    tower: options.TowerOption = None,
    device: options.DeviceOption = "auto",
    device_map: options.DeviceMapOption = None,
    dtype: options.DtypeOption = "auto",
    quantize: options.QuantizeOption = None,
    conversation: options.ConversationOption = None,
    max_pixels: options.MaxPixelsOption = None,
) -> None:
    """Try MODEL before you measure with it: does it do here what it does in transformers, and can it be attacked?

    Pixels, prompt tokens, logits and answers against transformers' own; gradients against finite differences; filter
    and anchor against plain forms; a batch against single images; the cost of a step. Exit code 2 if a check fails.
    """
    exit_unless_rank0()
    from lvlm_radapt.selfcheck.run import self_check
    from lvlm_radapt.utils.images import open_image
    from lvlm_radapt.utils.writing import check_file, write_whole

    if written is not None:
        check_file(written, what="check", own=lambda head: f'"format": "{_FORMAT}"'.encode() in head)
    shown = None if image is None else open_image(image)
    place = place_of(device, dtype, quantize, device_map, max_pixels=max_pixels)
    found = []
    for one in self_check(model, {**place, "conversation": conversation, "tower": tower}, image=shown):
        found.append(one)
        console.print(one.line(), soft_wrap=True)
    if written is not None:
        content = {"format": _FORMAT, "model": model, "checks": [one.to_dict() for one in found]}
        write_whole(written, (json.dumps(content, indent=1) + "\n").encode())
    failed = [one.name for one in found if one.verdict == "fail"]
    if failed:
        raise UserError(f"{len(failed)} of {len(found)} checks of {model} failed: {', '.join(failed)}")
    count = Counter(one.verdict for one in found)
    console.tell(f"{count['pass']} checks passed, {count['skipped']} skipped")
