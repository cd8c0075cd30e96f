"""`lvlm-radapt tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_radapt.cli import options
from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.asking import attack_of, evaluation_of, protocol_of
from lvlm_radapt.cli.group import exit_unless_rank0
from lvlm_radapt.cli.placing import place_of
from lvlm_radapt.cli.resuming import command_line, resumable_progress
from lvlm_radapt.utils.bounds import MOST


@app.command()
def tune(
    model: options.ModelArgument,
    task: Annotated[str, typer.Option(help="What is asked of the calibration images (lvlm-radapt list tasks).")],
    data: Annotated[Path, typer.Option(help="The CALIBRATION data: never the images a score is reported on.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder for runs, tune.json, figures and tune.html.")],
    cutoffs: Annotated[
        str, typer.Option(help="D0 values: 20,40 or 10..60 (every 10) or 10..60:5; none is no filter.")
    ] = "10..60,none",
    alphas: Annotated[str, typer.Option(help="Weights of the anchor: 0,1 or 0..2 (every 0.25) or 0..2:0.5.")] = "0..2",
    mixes: Annotated[str, typer.Option(help="interpolate, add, or both with a comma.")] = "interpolate,add",
    max_clean_loss: Annotated[
        float, typer.Option(min=0, max=100, help="The price: percent of the undefended model's clean score.")
    ] = 2.0,
    attack: Annotated[str, typer.Option(help="A white-box attack (lvlm-radapt list attacks).")] = "e2e",
    eps: options.EpsOption = "4/255",
    steps: Annotated[int, typer.Option(min=1, max=MOST, help="Gradient steps.")] = 20,
    samples: Annotated[int, typer.Option(min=2, max=MOST, help="Calibration samples; more of them prove more.")] = 128,
    seed: options.SeedOption = None,
    preset: options.PresetOption = None,
    batch_size: options.BatchSizeOption = 32,
    tower: options.TowerOption = None,
    device: options.DeviceOption = "auto",
    device_map: options.DeviceMapOption = None,
    dtype: options.DtypeOption = "auto",
    quantize: options.QuantizeOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that was stopped.")] = False,
    log_json: options.LogJsonOption = None,
) -> None:
    """Sweep filter and anchor settings of MODEL on a calibration set, and recommend one, if any is worth it.

    One knob at a time around the default, then the best of each together; every setting clean, under transfer and under
    adaptive attack. `lvlm-radapt data scenes --split validation` draws calibration scenes that no test scene repeats.
    """
    exit_unless_rank0()
    from lvlm_radapt.experiments.tune.knobs import knobs_of
    from lvlm_radapt.experiments.tune.results import kept_apart, table, write_results
    from lvlm_radapt.experiments.tune.run import run_tune

    knobs = knobs_of(cutoffs, alphas, mixes)
    protocol = protocol_of(preset, model)
    place = place_of(device, dtype, quantize, device_map, model=model)
    plan = attack_of(attack, protocol, place, eps=eps, steps=steps)
    asked = evaluation_of(task, data, protocol, plan, samples=samples, seed=seed, batch_size=batch_size)
    with resumable_progress(log_json) as announce:
        found = run_tune(
            model,
            asked,
            out,
            knobs=knobs,
            max_loss=max_clean_loss,
            announce=announce,
            tower=tower,
            resume=resume,
            command=command_line(),
            **place,
        )
        document = write_results(found, out, model=model, command=command_line())
    if log_json == "-":
        return
    console.print(table(found))
    console.tell(found.choice.said)
    console.tell(kept_apart(found))
    if document["recommendation"]["command"]:
        console.tell(f"recommended: {document['recommendation']['command']}")
    console.tell(f"page: {out / 'tune.html'}")
