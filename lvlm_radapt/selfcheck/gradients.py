"""The gradient that every attack follows: there, and the slope of the loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from eval_tasks.audit.context import AuditContext
from eval_tasks.audit.findings import Finding, NoSignal
from eval_tasks.audit.gradient_checks import accuracy, gradients
from eval_tasks.audit.target import AuditTarget
from lvlm_radapt.selfcheck.result import Check, Skipped
from lvlm_radapt.selfcheck.trial import Trial

NAMES = ("gradient", "finite differences")


def check_gradient(trial: Trial) -> Iterator[Check]:
    """As the audit of a run checks them, on two images and a wrong answer."""
    batch = trial.three[:2]
    context = AuditContext(AuditTarget(batch.x, trial.loss(batch), eps=4 / 255, steps=1), steps=1, queries=1)
    yield _said("gradient", gradients(context))
    if trial.model.dtype != torch.float32:
        raise Skipped(f"{str(trial.model.dtype).removeprefix('torch.')} rounds them away: --dtype float32 has them")
    try:
        found = accuracy(context)
    except NoSignal as reason:
        raise Skipped(str(reason)) from reason
    yield _said("finite differences", found)


def _said(name: str, found: Finding) -> Check:
    return Check(
        name, "fail" if found.verdict == "fail" else "pass", found.explanation.rstrip("."), dict(found.numbers)
    )
