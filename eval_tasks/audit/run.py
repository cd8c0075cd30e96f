"""The audit of a model by name: data, subject, all checks, audit.json and audit.html."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval_tasks.asked import Asked
from eval_tasks.audit.build import lvlm_subject, on_one_canvas
from eval_tasks.audit.findings import Audit
from eval_tasks.audit.page import audit_page
from eval_tasks.audit.suite import CHECKS, Advance, full_audit
from eval_tasks.crafting import check_plan
from eval_tasks.data import check_images, load_task, select
from eval_tasks.environment import environment
from eval_tasks.eps import eps_text
from eval_tasks.presets import load_task_config
from eval_tasks.runner import EvalSettings
from eval_tasks.scores import text_scores
from lvlm_radapt.errors import UserError
from lvlm_radapt.folders import check_new_folder
from lvlm_radapt.models.load import load_model


def run_audit(
    model: str,
    settings: EvalSettings,
    out: Path,
    *,
    announce: Callable[[str, int], Advance],
    tower: str | None = None,
    command: str = "",
    **place: Any,
) -> Audit:
    """Audit the model of that name under `settings.attack`, and write audit.json and audit.html into `out`.

    The attack is adaptive, with its own or the given number of steps; of the selected samples, those of the most
    frequent canvas shape are used. `place`: keywords of `load_model`. Raises UserError, before anything is
    written, for what does not fit together.
    """
    plan = settings.attack
    if plan is None or plan.threat != "adaptive" or plan.steps is None:
        raise UserError("an audit needs a white-box attack with gradient steps: use --attack e2e or embedding")
    check_new_folder(out)
    samples, _ = select(load_task(settings.task, settings.data), settings.samples, settings.seed)
    check_images(samples)
    task = load_task_config(settings.task)
    scores = text_scores(task, samples, tokenizer=settings.tokenizer)
    conversation = settings.protocol.conversation
    victim = load_model(
        model,
        geometry=settings.protocol.geometry,
        conversation=conversation.name if conversation else None,
        tower=tower,
        **place,
    )
    prompt = settings.protocol.prompt(task, samples[0].question)
    check_plan(plan, victim, None, prompt=prompt, tokens=settings.protocol.tokens(task.name))
    asked, batch = on_one_canvas(victim, Asked(samples, task, settings.protocol, scores, settings.batch_size))
    subject = lvlm_subject(victim, batch, asked, plan, seed=settings.seed)
    advance = announce(f"{Path(model).name} · {settings.task} · audit", len(CHECKS))
    audit = full_audit(subject, advance=advance)
    document = {
        "command": command,
        "environment": environment(),
        "model": {"name": victim.label, "radapt": victim.radapt.to_dict() if victim.radapt else None},
        "task": settings.task,
        "preset": settings.protocol.name,
        "attack": plan.settings() | {"eps_text": eps_text(plan.eps, plan.config.norm)},
        "seed": settings.seed,
        "audit": audit.to_dict(),
    }
    _write(out, document, audit_page(document, audit))
    return audit


def _write(out: Path, document: dict[str, Any], page: str) -> None:
    texts = {"audit.json": json.dumps(document, indent=2, allow_nan=False) + "\n", "audit.html": page}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            temporary = out / f".{name}.tmp"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, out / name)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
