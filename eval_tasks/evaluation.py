"""One evaluation by name: load the models, run the loop, write the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from eval_tasks.data import load_task, select
from eval_tasks.records import Run
from eval_tasks.report import write_report
from eval_tasks.runner import Advance, EvalSettings, evaluate
from lvlm_radapt.models.load import load_model, load_surrogate

Announce = Callable[[str, int], Advance]
"""Called once with (title, number of samples) before work begins; what it returns is told of progress."""


def run_evaluation(
    model: str,
    settings: EvalSettings,
    out: Path,
    *,
    announce: Announce,
    surrogate: str | None = None,
    images_from: Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    resume: bool = False,
    command: str = "",
) -> Run:
    """Evaluate the model of that name into the run folder `out`, report.html included.

    Arguments and errors as for `eval_tasks.runner.evaluate` and `lvlm_radapt.load_model`.
    """
    chosen, _ = select(load_task(settings.task, settings.data), settings.samples, settings.seed)
    conversation = settings.protocol.conversation
    weights = getattr(torch, dtype)
    victim = load_model(
        model,
        device=device,
        dtype=weights,
        geometry=settings.protocol.geometry,
        conversation=conversation.name if conversation else None,
    )
    source = load_surrogate(surrogate, device=device, dtype=weights) if surrogate else None
    run = evaluate(
        victim,
        settings,
        out,
        surrogate=source,
        images_from=images_from,
        resume=resume,
        command=command,
        advance=announce(f"{Path(model).name} · {settings.task} · {settings.describe()}", len(chosen)),
    )
    write_report([run], out / "report.html")
    return run
