"""`lvlm-radapt robustify --replace`: a robust twin's parts, no filter and no anchor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from lvlm_radapt.cli.app import console
from lvlm_radapt.utils.errors import UserError

ReplaceOption = Annotated[
    str | None,
    typer.Option(
        metavar="PARTS",
        help="Take these parts of --guide instead of filter and anchor: embedding,attention1,block1,block2 ... "
        "Writes plain stock weights, for any server.",
    ),
]
_TAKEN = {"model", "out", "replace", "guide", "tower", "device", "device_map", "dtype"} | {"conversation", "max_pixels"}


def replace_in(flags: Mapping[str, Any], place: dict[str, Any]) -> None:
    """Write MODEL with the guide's parts to --out.

    flags: all of the command's by name; place: where the model is opened. UserError for flags that ask for something
    else too.
    """
    from lvlm_radapt.loading.load import is_robustified, load_any
    from lvlm_radapt.saving.write_replaced import write_replaced
    from lvlm_radapt.utils.atomic_folder import check_new_folder

    model, out, guide = flags["model"], flags["out"], flags["guide"]
    extra = [
        f"--{name.replace('_', '-')}"
        for name, value in flags.items()
        if name not in _TAKEN and value is not None and value is not False
    ]
    if extra:
        raise UserError(
            f"--replace writes plain weights with neither filter nor anchor: leave {' and '.join(extra)} out, "
            "and robustify the folder it wrote for these"
        )
    if guide is None:
        raise UserError("--replace needs --guide ENCODER, the robust twin whose parts are taken")
    if is_robustified(model):
        raise UserError(f"{model} is robustified: replace parts of its base model, then robustify that folder")
    named = [part.strip() for part in flags["replace"].split(",") if part.strip()]
    check_new_folder(out)
    write_replaced(load_any(model, tower=flags["tower"], **place), guide, named, out)
    console.tell(f"{out}: {model} with {', '.join(named)} of {guide}, plain stock weights, no filter and no anchor")
