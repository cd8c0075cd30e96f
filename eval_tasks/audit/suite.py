"""Which checks there are, in which order they run, and what each needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from attacks.autoattack import LibraryMissingError, require_library
from eval_tasks.audit import budget_checks, effort_checks, gradient_checks, rival_checks, stability_checks
from eval_tasks.audit.context import AuditContext
from eval_tasks.audit.findings import Audit, Finding, NoSignal
from eval_tasks.audit.target import AuditTarget

Advance = Callable[[int, str], None]
"""Called with (checks done since the last call, the check that begins)."""


@dataclass(frozen=True)
class Check:
    """One check: its function, what of the target it needs (else why it is skipped), and which other checks must
    not have failed for its own numbers to mean anything. held: whether it compares losses at one point, for which the
    draws of a random defence are held fixed: its finding then says so."""

    name: str
    run: Callable[[AuditContext], Finding]
    lacks: Callable[[AuditTarget], str | None] = lambda target: None
    after: tuple[str, ...] = ()
    held: bool = False


def _no_twin(s: AuditTarget) -> str | None:
    return None if s.undefended is not None else "the model has no defence, so no undefended model"


def _no_slope(s: AuditTarget) -> str | None:
    if s.gradient == "exact":
        return None
    return "the attack passes the defence straight through on the way back (BPDA): its gradient is not the loss's slope"


def _no_draws(s: AuditTarget) -> str | None:
    return None if s.drawn is not None else "no defence that draws at random"


def _no_images(s: AuditTarget) -> str | None:
    return None if s.made is not None or s.craft is not None else "no images of an evaluation at hand"


def _no_prompts(s: AuditTarget) -> str | None:
    return None if s.prompts is not None else "the model takes no prompts"


def _no_target(s: AuditTarget) -> str | None:
    if not s.targeted:
        return "the attack has no targeted form, or is one, or holds one"
    return None if s.answers is not None and s.score is not None else "no answers are scored"


def _no_square(s: AuditTarget) -> str | None:
    if s.logits is None or s.labels is None or s.answers is None or s.score is None:
        return "the model is no classifier"
    try:
        require_library()
    except LibraryMissingError as error:
        return str(error)
    return None


def _no_half(s: AuditTarget) -> str | None:
    return "half precision is not at hand" if s.half is None else None


_SOUND = ("gradients", "determinism", "batch invariance")

CHECKS = (
    Check("gradients", gradient_checks.gradients, held=True),
    Check("ball", budget_checks.ball, _no_images, ("gradients",)),
    Check("determinism", stability_checks.determinism, held=True),
    Check("batch invariance", stability_checks.batch_invariance, after=("determinism",), held=True),
    Check("prompts", stability_checks.prompts, _no_prompts),
    Check("input resolution", gradient_checks.resolution, _no_slope, ("determinism",), held=True),
    Check("gradient accuracy", gradient_checks.accuracy, _no_slope, (*_SOUND, "input resolution"), held=True),
    Check("8-bit round trip", budget_checks.round_trip, after=_SOUND),
    Check("noise", rival_checks.noise, after=_SOUND),
    Check("random search", rival_checks.search, after=_SOUND),
    Check("square", rival_checks.square, _no_square, _SOUND),
    Check("spsa", rival_checks.estimated, after=_SOUND),
    Check("transfer", rival_checks.transfer, _no_twin, _SOUND),
    Check("bpda", rival_checks.bpda, _no_twin, _SOUND),
    Check("low frequency", rival_checks.low_frequency, after=_SOUND),
    Check("targeted loss", rival_checks.targeted, _no_target, _SOUND),
    Check("half precision", rival_checks.half_precision, _no_half, _SOUND),
    Check("restarts", effort_checks.restarts, after=_SOUND),
    Check("draws", effort_checks.draws, _no_draws, _SOUND),
    Check("steps", effort_checks.steps_ladder, after=_SOUND),
    Check("eps", effort_checks.eps_ladder, after=_SOUND),
)


def full_audit(target: AuditTarget, *, advance: Advance = lambda done, text: None) -> Audit:
    """Every check, with attacks of the target's own steps and black-box ones of four times as many losses."""
    context = AuditContext(target, steps=target.steps, queries=max(4 * target.steps, 20))
    findings, skipped = run_checks(context, CHECKS, advance)
    return Audit("full", len(target), target.steps, findings, skipped, context.cost)


def run_checks(
    context: AuditContext, checks: Sequence[Check], advance: Advance = lambda done, text: None
) -> tuple[tuple[Finding, ...], dict[str, str]]:
    """The findings of these checks in order, and why others were skipped.

    A check whose precondition failed is skipped, not failed: its numbers would speak of the other flaw. So is one that
    finds no signal to judge.
    """
    findings: list[Finding] = []
    skipped: dict[str, str] = {}
    for check in checks:
        advance(0, check.name)
        broken = {finding.name for finding in findings if finding.verdict == "fail"}
        reason = check.lacks(context.target)
        spoilt = [name for name in check.after if name in broken]
        if reason is None and spoilt:
            reason = f"says nothing while {spoilt[0]} fails"
        if reason is not None:
            skipped[check.name] = reason
        else:
            try:
                findings.append(_with_draws(check, check.run(context), context.target.draws))
            except NoSignal as quiet:
                skipped[check.name] = str(quiet)
            except FloatingPointError as error:
                said = f"The attack stopped: {' '.join(str(error).split())}."
                findings.append(Finding(check.name, "fail", said))
        advance(1, check.name)
    return tuple(findings), skipped


def _with_draws(check: Check, finding: Finding, draws: int | None) -> Finding:
    if draws is None or not check.held:
        return finding
    held = f" The defence is random: {draws} of its draws, held fixed."
    return replace(finding, explanation=finding.explanation + held)
