"""`lvlm-radapt audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_radapt.cli import options
from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.asking import attack_of, defence_of, evaluation_of, protocol_of
from lvlm_radapt.cli.group import exit_unless_rank0
from lvlm_radapt.cli.placing import place_of
from lvlm_radapt.cli.resuming import command_line, progress
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.progress import JsonLines


@app.command()
def audit(
    model: options.ModelArgument,
    task: options.TaskOption,
    data: Annotated[Path, typer.Option(help="The task's data folder.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder for audit.json and audit.html.")],
    attack: Annotated[str, typer.Option(help="A white-box attack (lvlm-radapt list attacks).")] = "e2e",
    target: options.TargetOption = None,
    eps: options.EpsOption = "4/255",
    norm: options.NormOption = None,
    steps: options.StepsOption = None,
    samples: Annotated[int, typer.Option(min=2, max=MOST, help="How many samples; more of them prove more.")] = 16,
    seed: options.SeedOption = None,
    preset: options.PresetOption = None,
    batch_size: options.BatchSizeOption = 16,
    tokenizer: options.TokenizerOption = "ptb",
    defence: options.DefenceOption = None,
    defence_set: options.DefenceSetOption = None,
    eot_draws: options.EotDrawsOption = None,
    tower: options.TowerOption = None,
    texts: options.TextsOption = None,
    device: options.DeviceOption = "auto",
    device_map: options.DeviceMapOption = None,
    dtype: options.DtypeOption = "auto",
    quantize: options.QuantizeOption = None,
    log_json: options.LogJsonOption = None,
) -> None:
    """Check that an attack on MODEL measures what it says: some 20 checks, each pass, warn or fail.

    Among them: gradients against finite differences, black-box and transfer attacks against the white-box one,
    larger eps, more steps, restarts, half precision, a low-frequency attack, one through the undefended model.
    """
    exit_unless_rank0()
    from eval_tasks.report.audit_page import audit_table, write_audit
    from eval_tasks.run.audit_model import run_audit

    protocol = protocol_of(preset, model)
    chosen_defence = defence_of(defence, defence_set, eot_draws)
    place = place_of(device, dtype, quantize, device_map, model=model)
    plan = attack_of(attack, protocol, place, eps=eps, norm=norm, steps=steps, target=target)
    asked = evaluation_of(
        task, data, protocol, plan, samples=samples, seed=seed, batch_size=batch_size, tokenizer=tokenizer
    )
    with JsonLines.to(log_json) as log, log.ended():
        with progress(log) as announce:
            found = run_audit(
                model,
                asked,
                out,
                announce=announce,
                tower=tower,
                texts=texts,
                defence=chosen_defence,
                eot_draws=eot_draws,
                command=command_line(),
                **place,
            )
        if log_json != "-":  # before it is written: a full disk must not lose it
            console.print(audit_table(found.audit))
            console.tell(f"verdict: {found.audit.line()}")
        write_audit(found, out)
    if log_json != "-":
        console.tell(f"report: {out / 'audit.html'}")
