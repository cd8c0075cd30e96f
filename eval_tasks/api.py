"""The way in: `evaluate` scores a model on a task under an attack; `run_evaluation` does so by the model's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.report.page import write_report
from eval_tasks.run.calibration import read_calibration
from eval_tasks.run.evaluate import evaluate
from eval_tasks.run.options import EvalOptions, Evaluation, select_samples
from eval_tasks.run.processes import Group
from eval_tasks.run.progress import Advance, Log
from eval_tasks.run.records import Run, RunFolder, Scored
from eval_tasks.run.threads import on_recorded_threads
from eval_tasks.tasks.make_task import make_task
from lvlm_radapt.defences.base import Defence, attach
from lvlm_radapt.loading.api import Service, is_api, load_api
from lvlm_radapt.loading.load import load_any, load_surrogate
from lvlm_radapt.loading.quantised import Quantisation
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.utils.errors import UserError

__all__ = ["EvalOptions", "Evaluation", "evaluate", "make_attack", "make_task", "run_evaluation"]

Announce = Callable[[str, int], Advance]
"""Called once with (title, number of samples) before work begins; what it returns is called with the progress."""


@on_recorded_threads
def run_evaluation(
    model: str,
    asked: Evaluation,
    out: Path,
    *,
    announce: Announce,
    tower: str | None = None,
    surrogate: str | None = None,
    texts: str | None = None,
    images_from: Path | None = None,
    resume: bool = False,
    command: str = "",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: Quantisation | None = None,
    device_map: str | None = None,
    max_pixels: int | None = None,
    log: Log = lambda event: None,
    group: Group | None = None,
    open_model: Callable[..., PixelModel] = load_any,
    open_surrogate: Callable[..., PixelModel] = load_surrogate,
    clean: dict[str, Scored] | None = None,
    defence: Defence | None = None,
    eot_draws: int | None = None,
    service: Service | None = None,
) -> Run:
    """Evaluate the model of that name into the run folder `out`, report.html included.

    Arguments and errors as for `eval_tasks.run.evaluate.evaluate` and `lvlm_radapt.loading.load.load_any`. A surrogate
    is opened on the victim's device in its dtype, whole, and so is the model whose `texts` are asked. open_model and
    open_surrogate: in place of `load_any` and `load_surrogate`, what keeps models open. defence: put into the model,
    which must have none. eot_draws: over how many draws attacks average where it is random; None for 10. service: how a
    model behind an API is asked, whose canvas is the surrogate's. The run notes where samples are among those that the
    model's settings were chosen on.
    """
    if group is None or group.first:
        RunFolder(out).check(resume=resume)
    selection = select_samples(asked.task, asked.options)  # before a model is loaded for nothing
    calibration = read_calibration(model)
    warned = None if calibration is None else calibration.note(selection.samples)
    opening = asked.protocol.opening()
    victim: PixelModel
    source: PixelModel | None
    if is_api(model):
        opened_here = {"tower": tower, "texts": texts, "quantize": quantize, "device_map": device_map}
        _refuse_given(model, opened_here | {"max_pixels": max_pixels})
        if surrogate is None:
            raise UserError(f"{model} needs --surrogate MODEL: the images lie on that model's canvas")
        source = open_surrogate(surrogate, device=device, dtype=dtype, **opening)
        victim = load_api(model, source, service or Service())
    else:
        victim = open_model(
            model,
            device=device,
            dtype=dtype,
            quantize=quantize,
            device_map=device_map,
            **opening,
            tower=tower,
            **({} if max_pixels is None else {"max_pixels": max_pixels}),
        )
        source = open_surrogate(surrogate, device=victim.device, dtype=dtype) if surrogate else None
    attach(victim, defence, eot_draws)
    run = evaluate(
        victim,
        asked.task,
        asked.attack,
        out,
        asked.options,
        selection=selection,
        surrogate=source if _is_crafted_on(source, victim, asked.attack) else None,
        texts=load_any(texts, device=victim.device, dtype=dtype) if texts else None,
        images_from=images_from,
        resume=resume,
        command=command,
        advance=announce(f"{Path(model).name} · {asked.describe()}", len(selection.samples)),
        log=log,
        group=group,
        clean=clean,
        remarks=() if warned is None else (warned,),
    )
    if group is None or group.first:
        write_report([run], out / "report.html")
    return run


def _is_crafted_on(source: PixelModel | None, victim: PixelModel, attack: Attack | None) -> bool:
    """Whether images are made on the surrogate, which may be there for its canvas alone."""
    return not victim.answers_only or (source is not None and attack is not None and attack.threat == "transfer")


def _refuse_given(model: str, flags: Mapping[str, object]) -> None:
    """UserError for the first flag that is given to open a model with."""
    given = next((name for name, value in flags.items() if value is not None), None)
    if given is not None:
        raise UserError(f"--{given.replace('_', '-')} is for models that are opened here, {model} runs elsewhere")
