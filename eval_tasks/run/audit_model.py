"""The audit of a model by name: data, target, all checks, audit.json and audit.html."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.eps import budget_text
from eval_tasks.audit.build_target import on_one_canvas
from eval_tasks.audit.findings import Audit
from eval_tasks.audit.suite import CHECKS, Advance, full_audit
from eval_tasks.run.audit_of_run import target_of_run
from eval_tasks.run.environment import environment
from eval_tasks.run.options import Evaluation, Selection, select_samples
from lvlm_radapt.defences.base import Defence, attach, defence_document
from lvlm_radapt.loading.load import load_any
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.utils.atomic_folder import check_new_folder
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True)
class Audited:
    """A finished audit, and what audit.json says of it."""

    audit: Audit
    document: dict[str, Any]


def run_audit(
    model: str,
    asked: Evaluation,
    out: Path,
    *,
    announce: Callable[[str, int], Advance],
    tower: str | None = None,
    texts: str | None = None,
    defence: Defence | None = None,
    eot_draws: int | None = None,
    command: str = "",
    **place: Any,
) -> Audited:
    """Audit the model of that name under an attack, to be written to the folder `out` by `write_audit`.

    The attack is adaptive, with its own or the given number of steps; of the selected samples, those of the most
    frequent canvas shape are used. texts: the model that supplies text embeddings, for a bare vision tower.
    defence, eot_draws: as for `eval_tasks.api.run_evaluation`. `place`: keywords of `load_any`. Raises UserError for
    what does not fit together, and at once where `out` cannot be written.
    """
    task, attack = asked.task, asked.attack
    if attack is None or attack.threat != "adaptive" or attack.gradient_steps is None:
        raise UserError(
            "an audit needs a white-box attack with gradient steps: use --attack e2e, embedding or apgd-ce, or give "
            "your own a field steps"
        )
    check_new_folder(out)
    selection = select_samples(task, asked.options)
    victim = load_any(model, **asked.protocol.opening(), tower=tower, **place)
    attach(victim, defence, eot_draws)
    source = load_any(texts, device=victim.device, dtype=victim.dtype) if texts else None
    advance = announce(f"{Path(model).name} · {task.name} · audit", len(CHECKS))
    return audit_opened(victim, asked, selection=selection, texts=source, advance=advance, command=command)


def audit_opened(
    victim: PixelModel,
    asked: Evaluation,
    *,
    selection: Selection,
    texts: PixelModel | None = None,
    advance: Advance,
    command: str = "",
) -> Audited:
    """`run_audit` of a model that is open. asked: with an attack; selection: the samples, as `select_samples` reads."""
    task, attack, options = asked.task, asked.attack, asked.options
    assert attack is not None
    run = task.bind(victim, selection.everything, selection.samples, batch_size=options.batch_size, texts=texts)
    run.check(attack, selection.samples)
    chosen, pixels = on_one_canvas(victim, selection.samples, options.seed)
    target = target_of_run(run, chosen, pixels, attack, seed=options.seed)
    audit = full_audit(target, advance=advance)
    document = {
        "command": command,
        "environment": environment(),
        "model": {
            "name": victim.label,
            "radapt": victim.radapt.to_dict() if victim.radapt else None,
            **defence_document(victim),
        },
        "task": task.name,
        "preset": task.preset,
        **run.settings(),
        "attack": attack.to_dict() | {"eps_text": budget_text(attack.eps, attack.norm)},
        "seed": options.seed,
        "audit": audit.to_dict(),
    }
    return Audited(audit, document)
