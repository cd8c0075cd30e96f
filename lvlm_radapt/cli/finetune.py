"""`lvlm-radapt finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lvlm_radapt.cli.app import app, console, progress_console
from lvlm_radapt.cli.group import Processes, is_first
from lvlm_radapt.cli.options import ConversationOption, DeviceOption, MaxPixelsOption, Precision, ReportToOption
from lvlm_radapt.cli.placing import default_preset, device_named, place_flags
from lvlm_radapt.cli.resuming import command_line, progress, resumable
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError

Method = Literal["fare", "tecoa", "tga"]
Features = Literal["cls", "tokens"]


@app.command()
def finetune(
    encoder: Annotated[
        str,
        typer.Argument(
            metavar="ENCODER", help="An image encoder, or a vision-language model whose tower is tuned (FARE alone)."
        ),
    ],
    method: Annotated[Method, typer.Option(help="TeCoA and TGA need classes, FARE any images.")],
    images: Annotated[
        Path, typer.Option(help="A folder of images; for TeCoA and TGA a folder of images for each class.")
    ],
    out: Annotated[Path, typer.Option(help="A new or empty folder for the fine-tuned model.")],
    scope: Annotated[
        str,
        typer.Option(
            help="What is trained: tower, shallow, embedding+attention, or parts of --replace joined by +; all else "
            "stays as it is."
        ),
    ] = "tower",
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train changes of this low rank of the scope's matrices (LoRA) and merge them at the end. They want "
            "an --lr some ten times higher.",
            show_default="the weights themselves",
        ),
    ] = None,
    features: Annotated[
        Features | None,
        typer.Option(
            help="What FARE holds on to: the image embedding, or the patch tokens that language models read.",
            show_default="cls of an encoder, tokens of a vision-language model",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Recipe, by name or YAML file; scenes for embedded models, published for others.")
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Linf budget: 2/255, 4/255 ...; the preset's if left out.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Training steps; the preset's if left out.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Images a step, over all processes; the preset's if left out.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate; the preset's if left out.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, max=MOST, help="At most so many images, drawn by the seed.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws images, batches and starting noise.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Run the networks under bfloat16 autocast.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where this command was stopped.")] = False,
    device: DeviceOption = "auto",
    dtype: Annotated[Precision, typer.Option(help="What the weights are written in; they are trained in float32.")] = (
        "float32"
    ),
    conversation: ConversationOption = None,
    max_pixels: MaxPixelsOption = None,
    report_to: ReportToOption = None,
) -> None:
    """Fine-tune ENCODER on adversarial images of its own: FARE, TeCoA or TGA, whole or in its first layers alone.

    OUT is a stock checkpoint in Hugging Face layout, plain weights that any server opens. An encoder's serves as
    --tower of a LLaVA, as a guide, and as a model of its own.
    """
    import torch

    from eval_tasks.config.presets import load_recipe
    from eval_tasks.run.processes import Group
    from lvlm_radapt.loading.load import is_encoder, is_robustified, load_any
    from lvlm_radapt.saving.plain_weights import weight_bytes
    from lvlm_radapt.trackers import Tracker, check_tracker, curves
    from lvlm_radapt.training.data_parallel import DataParallel, SingleProcess
    from lvlm_radapt.training.finetune import FinetuneSettings
    from lvlm_radapt.training.finetune import finetune as train
    from lvlm_radapt.training.labelled import TrainingImages
    from lvlm_radapt.training.robust_twin import LOG, save_twin
    from lvlm_radapt.utils.atomic_folder import check_new_folder, made_before
    from lvlm_radapt.utils.budget import parse_eps
    from lvlm_radapt.utils.leftovers import state_of

    check_tracker(report_to)
    if is_robustified(encoder):
        raise UserError(f"{encoder} is robustified: fine-tune its base model, then robustify what comes out")
    known = "scenes" if default_preset(encoder) == "scenes" else "published"
    recipe = load_recipe(preset or known).changed(
        eps=None if eps is None else parse_eps(eps), steps=steps, batch_size=batch_size, lr=lr
    )
    alone = is_encoder(encoder)
    if not alone and method != "fare":
        raise UserError(f"{encoder} has no texts to classify by: --method {method} is for encoders, use fare")
    if features is not None and method != "fare":
        raise UserError(f"--features is FARE's: --method {method} has none, leave it out")
    state = state_of(out.expanduser(), "training")
    work = (Processes.group or Group()).work(str(out))
    if resume and work.lead("made", lambda: made_before(out, state, LOG)):
        console.tell(f"{out} was whole when the command was stopped")
        return
    work.lead("check", lambda: check_new_folder(out) and None)
    place = torch.device(device_named(device))
    written = getattr(torch, dtype)
    model = load_any(
        encoder,
        device=place,
        dtype=torch.float32 if alone else written,
        conversation=conversation,
        max_pixels=max_pixels,
    )
    found = TrainingImages.of(images, limit=limit, seed=seed, classes=method != "fare")
    if found.left_out:
        progress_console.tell(found.left_out)
    settings = FinetuneSettings(
        method=method,
        recipe=recipe,
        scope=scope,
        features=features if features else "cls" if alone else "tokens",
        seed=seed,
        bf16=bf16,
        rank=rank,
    )
    work.lead("room", lambda: check_new_folder(out, room=weight_bytes(model)) and None)
    processes = SingleProcess() if Processes.group is None else DataParallel(place)
    tracker = None
    if report_to is not None and is_first():
        told = settings.plain() | {"model": model.label, "images": found.digest}
        tracker = Tracker(report_to, out, told, progress_console.tell)
    with resumable(command_line("--resume"), lambda: _saved(state)), progress() as announce:
        try:
            log = train(
                model, found, settings, state=state, resume=resume, announce=announce, processes=processes,
                **({} if tracker is None else {"watch": curves(tracker)}),
            )  # fmt: skip
        finally:
            if tracker is not None:
                tracker.finish()
        processes.leave()
        if not is_first():
            return
        model.hf.to(written)
        save_twin(model, log, settings, found, out)
    state.unlink(missing_ok=True)
    before, after = log.probes[0], log.probes[-1]
    counted = "weights" if rank is None else "numbers of low rank"
    console.tell(
        f"{out}: {model.label} fine-tuned by {method}, {log.trained:,} {counted}, {len(found.files):,} images, "
        f"{len(log.losses):,} steps ({LOG} has each)"
    )
    console.tell(
        f"{log.watched} of {len(found.watched)} held-back images: clean {before.clean:.3f} -> {after.clean:.3f}, "
        f"attacked {before.robust:.3f} -> {after.robust:.3f}"
    )
    use = f"LLAVA --tower {out}" if alone else str(out)
    flags = place_flags(device, "auto" if dtype == "float32" else dtype)
    console.tell(f"next: lvlm-radapt eval {use} --task coco --data DIR --attack e2e --eps 4/255{flags} --out RUN")


def _saved(state: Path) -> str:
    return f"what was done until the last save is in {state}" if state.exists() else "nothing was saved yet"
