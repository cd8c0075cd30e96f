"""`lvlm-radapt chat`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_radapt.cli import options
from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.asking import defence_of
from lvlm_radapt.cli.placing import default_preset, place_of
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from lvlm_radapt.defences.base import Defence
    from lvlm_radapt.models.base import LVLM


@app.command()
def chat(
    model: options.ModelArgument,
    image: Annotated[Path | None, typer.Option(help="The image to talk about; /image FILE shows another.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="The model without its defence and with it, side by side.")
    ] = False,
    web: Annotated[bool, typer.Option("--web", help="In the browser, both models side by side (extra web).")] = False,
    host: Annotated[
        str | None, typer.Option(help="For --web: whom to listen to; 127.0.0.1, this machine alone.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="For --web: 7860, 0 for any free one.")] = None,
    defence: options.DefenceOption = None,
    defence_set: options.DefenceSetOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=MOST, help="The longest answer, in tokens.")] = 256,
    device: options.DeviceOption = "auto",
    device_map: options.DeviceMapOption = None,
    dtype: options.DtypeOption = "auto",
    quantize: options.QuantizeOption = None,
    conversation: options.ConversationOption = None,
    max_pixels: options.MaxPixelsOption = None,
) -> None:
    """Talk with MODEL about an image, attack the image, switch the defence, and see what it says then.

    Lines are said to the model, in its own chat template or --conversation; /help lists the commands. In a pipe a line
    is a turn, and stdout holds the answers alone. With --web all of it is a page in the browser.
    """
    from lvlm_radapt.chat.session import Session
    from lvlm_radapt.chat.terminal import Terminal
    from lvlm_radapt.chat.web import check_web, listening, serve
    from lvlm_radapt.defences.radapt.defence import RAdapt
    from lvlm_radapt.loading.load import load_model
    from lvlm_radapt.utils.images import open_image

    if image is not None:
        open_image(image)  # a mistake there shows before the model is loaded
    chosen = defence_of(defence, defence_set)
    if web and not isinstance(chosen, RAdapt | None):
        raise UserError("--web shows the settings of R-Adapt: leave --defence out, or chat in the terminal")
    place = place_of(device, dtype, quantize, device_map, model=model, max_pixels=max_pixels)
    place["conversation"] = conversation
    if web:
        check_web()
        host = host or "127.0.0.1"
        with listening(host, 7860 if port is None else port) as bound:
            serve(
                _defended(load_model(model, **place), chosen),
                bound,
                host=host,
                samples=_samples(model, image),
                questions=_questions(model),
                max_new_tokens=max_new_tokens,
                ready=lambda address: console.tell(f"{address} (Ctrl-C ends)"),
            )
        return
    if host is not None or port is not None:
        raise UserError("--host and --port are for --web: add it, or leave them out")
    loaded = _defended(load_model(model, **place), chosen)
    hint = _embedded_prompts() if default_preset(model) == "scenes" else None
    Terminal(Session(loaded, compare=compare, max_new_tokens=max_new_tokens)).run(image, hint=hint)


def _defended(model: LVLM, defence: Defence | None) -> LVLM:
    if defence is not None:
        defence.attach(model)
    return model


def _embedded_prompts() -> str:
    caption, question = _scene_prompts("QUESTION")
    return f"the embedded models were trained on single turns (/reset begins anew) of two kinds: {caption} | {question}"


def _scene_prompts(question: str) -> list[str]:
    from eval_tasks.config.presets import load_protocol

    prompts = load_protocol("scenes").prompts
    return [" ".join(prompts[kind].replace("{question}", question).split()) for kind in ("caption", "vqa")]


def _questions(model: str) -> list[str]:
    """What the page offers to be asked; the embedded models know two kinds of prompts only."""
    if default_preset(model) == "scenes":
        return [*_scene_prompts("what color is the background?"), *_scene_prompts("how many shapes are there?")[1:]]
    return ["Describe the image in one sentence.", "What is the main object in the image?"]


def _samples(model: str, image: Path | None) -> list[tuple[str, Image.Image]]:
    """Images to pick: the one given; scenes for the embedded models, which know nothing else."""
    from lvlm_radapt.embedded.scenes import render, sample_scene
    from lvlm_radapt.utils.images import open_image

    given = [] if image is None else [(image.name, open_image(image))]
    scenes = range(1, 7) if default_preset(model) == "scenes" else ()
    return [*given, *((f"scene {i}", render(sample_scene("test", 0, i))) for i in scenes)]
