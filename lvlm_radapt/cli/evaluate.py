"""`lvlm-radapt eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.asking import attack_of, evaluation_of, protocol_of
from lvlm_radapt.cli.defending import defence_of
from lvlm_radapt.cli.group import Processes, is_first
from lvlm_radapt.cli.options import (
    DefenceOption,
    DefenceSetOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    EotDrawsOption,
    Half,
    LogJsonOption,
    MaxPixelsOption,
    ModelArgument,
    NormOption,
    PresetOption,
    QuantizeOption,
    SeedOption,
    StepsOption,
    TargetOption,
    TextsOption,
    Threat,
    TokenizerOption,
    TowerOption,
)
from lvlm_radapt.cli.placing import place_of
from lvlm_radapt.cli.resuming import command_line, progress, resumable, saved_in
from lvlm_radapt.cli.tables import print_tables
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.progress import JsonLines


@app.command("eval")
def eval_(
    model: ModelArgument,
    task: Annotated[
        str, typer.Option(help="coco, vqav2, textvqa, imagenet, flickr30k-retrieval ... (lvlm-radapt list tasks).")
    ],
    data: Annotated[Path, typer.Option(help="The task's data folder.")],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    attack: Annotated[
        str | None,
        typer.Option(
            help="none, noise, embedding, e2e, ensemble, targeted ... (lvlm-radapt list attacks).", show_default="none"
        ),
    ] = None,
    threat: Annotated[
        Threat | None,
        typer.Option(help="adaptive: made through the defence; transfer: on the undefended model or --surrogate."),
    ] = None,
    surrogate: Annotated[str | None, typer.Option(help="Craft transfer images on this model.")] = None,
    images_from: Annotated[
        Path | None,
        typer.Option(
            help="Score the attacked images of this finished run: its attack, samples, seed, preset; transfer."
        ),
    ] = None,
    target: TargetOption = None,
    eps: Annotated[
        str | None,
        typer.Option(help="Budget in [0, 1] pixel units: 4/255, 0.0157; under L2 a length: 2.0.", show_default="4/255"),
    ] = None,
    norm: NormOption = None,
    steps: StepsOption = None,
    samples: Annotated[
        int | None, typer.Option(max=MOST, help="How many samples; the preset's number if left out.")
    ] = None,
    seed: SeedOption = None,
    preset: PresetOption = None,
    batch_size: Annotated[int, typer.Option(min=1, max=MOST, help="Images at a time.")] = 32,
    chunk_size: Annotated[
        int, typer.Option(min=1, max=MOST, help="Samples of a unit of work; a kill costs at most one.")
    ] = 64,
    tokenizer: TokenizerOption = "ptb",
    defence: DefenceOption = None,
    defence_set: DefenceSetOption = None,
    eot_draws: EotDrawsOption = None,
    tower: TowerOption = None,
    texts: TextsOption = None,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = "auto",
    half: Annotated[
        Half, typer.Option(help="Of an ensemble's first stages; auto: the attack's own on a GPU, none on a CPU.")
    ] = "auto",
    early_exit: Annotated[
        bool, typer.Option("--early-exit", help="Adaptive e2e or ensemble: a sample leaves once its answer scores 0.")
    ] = False,
    quantize: QuantizeOption = None,
    max_pixels: MaxPixelsOption = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave samples without an image out; the run says how many.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    log_json: LogJsonOption = None,
) -> None:
    """Score MODEL on a task, clean and under attack, into a run folder with a report.

    The attacked images lie in the run folder as PNG files and can be scored again on another model: --images-from.
    Under `accelerate launch` or torchrun, all processes share the work. Ctrl-C keeps what is done: --resume goes on.
    """
    from eval_tasks.api import run_evaluation
    from eval_tasks.run.processes import restarted
    from eval_tasks.run.reuse import taken_from

    given = {
        "attack": attack,
        "eps": eps,
        "norm": norm,
        "steps": steps,
        "target": target,
        "half": None if half == "auto" else half,
        "early_exit": early_exit or None,
        "samples": samples,
        "seed": seed,
        "preset": preset,
    }
    flags: dict[str, Any] = given | {"half": half, "early_exit": early_exit}
    ids = None
    if images_from is not None:
        taken = taken_from(images_from, given | {"task": task})
        flags, ids, threat = taken.flags, taken.ids, threat or "transfer"
    protocol = protocol_of(flags["preset"], model)
    chosen_defence = defence_of(defence, defence_set, eot_draws)
    place = place_of(device, dtype, quantize, device_map, model=model, max_pixels=max_pixels)
    chosen = attack_of(
        flags["attack"] or "none",
        protocol,
        place,
        eps="4/255" if flags["eps"] is None else flags["eps"],
        threat=threat,
        norm=flags["norm"],
        **{name: flags[name] for name in ("steps", "target", "half", "early_exit")},
    )
    if chosen is None and surrogate is not None:
        raise UserError("--surrogate needs an attack: choose one with --attack")
    asked = evaluation_of(
        task,
        data,
        protocol,
        chosen,
        samples=flags["samples"],
        seed=flags["seed"],
        ids=ids,
        chunk_size=chunk_size,
        batch_size=batch_size,
        tokenizer=tokenizer,
        skip_missing=skip_missing,
    )
    with (
        JsonLines.to(log_json if is_first() else None) as log,
        resumable(command_line("--resume"), saved_in(out)),
        log.ended(),
        progress() as announce,
    ):
        run = run_evaluation(
            model,
            asked,
            out,
            announce=announce,
            tower=tower,
            texts=texts,
            defence=chosen_defence,
            eot_draws=eot_draws,
            surrogate=surrogate,
            images_from=images_from,
            resume=resume or restarted(),
            command=command_line(),
            log=log.write,
            group=Processes.group,
            **place,
        )
    if log_json == "-":
        return
    print_tables([run])
    for note in run.metrics["notes"]:
        console.tell(f"note: {note}")
    if "audit" in run.metrics:
        from eval_tasks.audit import Audit

        found = Audit.from_dict(run.metrics["audit"])
        console.tell(f"audit, short form: {found.line()}")
    console.tell(f"report: {out / 'report.html'}")
