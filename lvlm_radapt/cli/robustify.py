"""`lvlm-radapt robustify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lvlm_radapt.cli import options
from lvlm_radapt.cli.anchors import AnchorChoice, made_anchor
from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.group import exit_unless_rank0
from lvlm_radapt.cli.placing import default_preset, place_flags, place_of
from lvlm_radapt.cli.replacing import ReplaceOption, replace_in
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError

_LEARNED = "Learned anchor"


@app.command()
def robustify(
    model: options.ModelArgument,
    out: Annotated[Path, typer.Option(help="A new or empty folder for what is written.")],
    cutoff: Annotated[
        float | None, typer.Option(help="D0 of the Gaussian filter, cycles per 224 px; above 0.", show_default="40")
    ] = None,
    no_filter: Annotated[bool, typer.Option("--no-filter", help="Leave the filter out.")] = False,
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the anchor; 0 leaves it out.", show_default="1")
    ] = None,
    mix: Annotated[
        options.Mix | None, typer.Option(help="(1 - alpha) r + alpha A, or r + alpha A.", show_default="interpolate")
    ] = None,
    anchor: Annotated[
        options.Anchor | None,
        typer.Option(
            help="The encoder's own answer to white, a robust twin's, or a learned one.", show_default="white"
        ),
    ] = None,
    guide: Annotated[
        str | None,
        typer.Option(
            metavar="ENCODER", help="The robust twin: an embedded name, an open_clip/FARE/TeCoA file, a folder or id."
        ),
    ] = None,
    replace: ReplaceOption = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Any folder of images, no labels.", rich_help_panel=_LEARNED)
    ] = None,
    learn_images: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="How many of them, at most.", show_default="2000", rich_help_panel=_LEARNED),
    ] = None,
    learn_eps: Annotated[
        str | None,
        typer.Option(
            help="Budget of the attacks it is learned against.", show_default="4/255", rich_help_panel=_LEARNED
        ),
    ] = None,
    learn_steps: Annotated[
        int | None, typer.Option(max=MOST, help="Updates of the anchor.", show_default="200", rich_help_panel=_LEARNED)
    ] = None,
    learn_batch: Annotated[
        int | None, typer.Option(max=MOST, help="Images of an update.", show_default="32", rich_help_panel=_LEARNED)
    ] = None,
    learn_rate: Annotated[
        float | None,
        typer.Option(help="Size of an update, in the anchor's own.", show_default="0.05", rich_help_panel=_LEARNED),
    ] = None,
    learn_alpha: Annotated[
        bool, typer.Option("--learn-alpha", help="Learn --alpha too, from its value on.", rich_help_panel=_LEARNED)
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Draws images and noise.", show_default="0", rich_help_panel=_LEARNED)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with learning that was stopped.", rich_help_panel=_LEARNED)
    ] = False,
    tuned: Annotated[
        Path | None, typer.Option(help="The settings that this folder of `lvlm-radapt tune` recommends.")
    ] = None,
    tower: options.TowerOption = None,
    export: Annotated[
        bool, typer.Option("--export", help="Write a whole model folder that needs transformers alone.")
    ] = False,
    fold: Annotated[
        bool, typer.Option("--fold", help="Write plain stock weights, for any server; images are filtered before.")
    ] = False,
    device: options.DeviceOption = "auto",
    device_map: options.DeviceMapOption = None,
    dtype: options.DtypeOption = "auto",
    quantize: options.QuantizeOption = None,
    conversation: options.ConversationOption = None,
    max_pixels: options.MaxPixelsOption = None,
) -> None:
    """Protect MODEL: write an adapter folder that every other command takes as a model.

    With --export a whole model, which transformers opens with trust_remote_code=True and refuses to open
    unprotected. With --fold plain weights, for the filter alone (--alpha 0) or an anchor of one vector (Qwen2-VL and
    2.5); the filter runs in the folder's image processor, with trust_remote_code=True. Of an adapter folder both write
    the defence that is in it.

    The anchor is an answer of the first attention to a white image: the encoder's own (white, training-free), or that
    of an adversarially fine-tuned twin (guided, --guide). A learned one starts from the white and is optimised on
    attacked images (--images); Ctrl-C keeps what is done: --resume goes on.

    The adapter remembers --dtype, --conversation and --max-pixels: a command that opens it needs them no more.

    With --replace no adapter is written but the whole model, in which the parts named are the robust twin's.
    """
    flags = dict(locals())
    exit_unless_rank0()
    import lvlm_radapt as package
    from eval_tasks.run.calibration import calibration_note, read_calibration
    from lvlm_radapt.loading.load import is_encoder, is_robustified, load_any
    from lvlm_radapt.saving.adapter import save_adapter
    from lvlm_radapt.saving.plain_weights import weight_bytes
    from lvlm_radapt.training.learned_anchor import LEARNED
    from lvlm_radapt.utils.atomic_folder import check_new_folder, made_before

    place = place_of(device, dtype, quantize, device_map, model=model, max_pixels=max_pixels)
    place["conversation"] = conversation
    if replace is not None:
        replace_in(flags, place)
        return
    if export and fold:
        raise UserError("--export and --fold write different folders: choose one")
    knobs = {"cutoff": cutoff, "alpha": alpha, "mix": mix, "anchor": anchor}
    chosen: dict[str, Any] = {name: value for name, value in knobs.items() if value is not None}
    if no_filter:
        chosen["cutoff"] = None
    given = [f"--{name}" if value is not None else "--no-filter" for name, value in chosen.items()]
    config = package.RAdaptConfig(**chosen)
    calibration = read_calibration(model)
    if tuned is not None:
        from lvlm_radapt.experiments.tune.results import recommended

        if given:
            raise UserError(f"--tuned brings its settings: leave {' and '.join(given)} out")
        given = ["--tuned"]
        config, calibration = recommended(tuned)
    learning = {
        "eps": learn_eps, "steps": learn_steps, "batch": learn_batch, "rate": learn_rate, "seed": seed,
        "learn_alpha": learn_alpha or None,
    }  # fmt: skip
    choice = AnchorChoice(
        config,
        out,
        guide=guide,
        images=images,
        count=learn_images,
        learning={name: value for name, value in learning.items() if value is not None},
        resume=resume,
    )
    protected_already = is_robustified(model)
    if protected_already:
        _check_robustified(model, given, written_whole=export or fold)
    if resume and made_before(out, choice.state, LEARNED):
        console.tell(f"{out} was whole when the command was stopped")
        return
    check_new_folder(out)
    encoder = is_encoder(model)
    if encoder and (export or fold):
        raise UserError(
            f"{model} is an image encoder: --export and --fold are for vision-language models, leave them out"
        )
    loaded = load_any(model, tower=tower, **place)
    if export or fold:
        check_new_folder(out, room=weight_bytes(loaded))  # before an anchor is learned for nothing
    with made_anchor(choice, loaded) as made:
        notes = {**made.notes, **calibration_note(calibration)}
        protected = loaded if protected_already else package.robustify(loaded, made.config, made.anchor)
        if export or fold:
            _write_model(protected, out, notes, fold=fold)
            return
        save_adapter(protected, out, notes=notes)
    console.tell(f"{out}: {model} protected by {made.config.describe()}")
    task, attack = ("imagefolder", "apgd-ce") if encoder else ("coco", "e2e")
    opened = place_flags(device, dtype, quantize, device_map)
    if default_preset(model) != "scenes":  # the embedded models are checked by the tests
        console.tell(f"first: lvlm-radapt check {out}{opened}")
    console.tell(
        f"next: lvlm-radapt eval {out} --task {task} --data DIR --attack {attack} --eps 4/255{opened} --out RUN"
    )


def _check_robustified(model: str, given: list[str], *, written_whole: bool) -> None:
    """UserError for what cannot be asked of a folder that is robustified already."""
    from lvlm_radapt.loading.adapter_files import base_name
    from lvlm_radapt.loading.export_files import exported_from

    if given:
        base = exported_from(base_name(model))
        raise UserError(f"{model} has its settings already: leave {' and '.join(given)} out, or robustify {base} anew")
    if not written_whole:
        raise UserError(f"{model} is robustified already: use it as it is, or write it whole with --export or --fold")


def _write_model(protected: Any, out: Path, notes: dict[str, str], *, fold: bool) -> None:
    from lvlm_radapt.saving.export import export_model
    from lvlm_radapt.saving.fold import FILTER, fold_model
    from lvlm_radapt.saving.plain_weights import torchvision_user

    config = protected.radapt
    needing = torchvision_user(protected)
    if needing is not None:
        console.tell(f"AutoProcessor needs torchvision here: {needing} takes videos too. pip install torchvision")
    if fold:
        fold_model(protected, out, notes=notes)
        anchor = f"the {config.anchor} anchor folded in" if config.alpha else "no anchor"
        console.tell(f"{out}: {protected.name} as plain weights, {anchor}")
        if config.cutoff is not None:
            console.tell(
                f"The filter (cutoff {config.cutoff:g}) is NOT in the weights. The processor in the folder runs it: "
                f"AutoProcessor.from_pretrained({str(out)!r}, trust_remote_code=True). Without it, pass every image "
                f"through filter_image of {out / FILTER} first, or the model is only half protected."
            )
        return
    export_model(protected, out, notes=notes)
    console.tell(f"{out}: {protected.name} with {config.describe()} inside")
    console.tell(
        f"load: AutoModelForImageTextToText.from_pretrained({str(out)!r}, trust_remote_code=True); "
        f"every lvlm-radapt command takes it as a model too"
    )
