"""Does the same image give the same loss and answer, whatever the moment, the batch and the prompt's way there?"""

from __future__ import annotations

from eval_tasks.audit.context import AuditContext
from eval_tasks.audit.findings import Finding, NoSignal, Verdict, worst


def determinism(context: AuditContext) -> Finding:
    """The same images twice."""
    first, second = (context.losses(context.start) for _ in range(2))
    changed = 0
    if context.target.answers is not None:
        changed = _changed(context.clean_answers, context.answers(context.target.x))
    apart = _relative(first, second)
    verdict: Verdict = "fail" if changed else _graded(apart, context.target.rounding)
    numbers = {"relative_difference": apart, "changed_answers": changed, "samples": len(first)}
    if verdict == "pass":
        return Finding("determinism", verdict, "The same images give the same losses and answers again.", numbers)
    said = (
        f"The same images gave losses {apart:.2g} apart (relative) and {changed} other answers: the model is random, "
        "and an attack has to average over it."
    )
    return Finding("determinism", verdict, said, numbers)


def batch_invariance(context: AuditContext) -> Finding:
    """Every image alone against all in one batch."""
    if min(len(context.target), context.target.batch_size) < 2:
        raise NoSignal("one image at a time: there is no batch that could matter")
    apart = _relative(context.losses(context.start), context.losses(context.start, one_by_one=True))
    verdict = _graded(apart, context.target.rounding)
    changed = 0
    if context.target.answers is not None:
        changed = _changed(context.clean_answers, context.answers(context.target.x, batch_size=1))
        # Rounding may tip one answer that stood on the edge; more than a tenth of them is no accident.
        verdict = worst(
            verdict, "fail" if changed * 10 > max(len(context.target), 10) else "warn" if changed else "pass"
        )
    numbers = {"relative_difference": apart, "changed_answers": changed, "samples": len(context.target)}
    if verdict == "pass":
        return Finding("batch invariance", verdict, "An image alone and in a batch: same loss, same answer.", numbers)
    said = (
        f"In a batch losses are {apart:.2g} off (relative) and {changed} answers differ: images influence each other."
    )
    return Finding("batch invariance", verdict, said, numbers)


def prompts(context: AuditContext) -> Finding:
    """The text the attack's loss is computed with against the text the scored answers come from."""
    assert context.target.prompts is not None
    attacked, answered = context.target.prompts()
    differ = sum(a != b for a, b in zip(attacked, answered, strict=False)) + abs(len(attacked) - len(answered))
    numbers = {"samples": len(answered), "different": differ}
    if differ:
        said = f"On {differ} of {len(answered)} images the attack and the answer have different prompts."
        return Finding("prompts", "fail", said, numbers)
    return Finding("prompts", "pass", "The attack's loss and the answers come from the same prompts.", numbers)


def _changed(first: list[str], second: list[str]) -> int:
    return sum(a != b for a, b in zip(first, second, strict=True))


def _relative(first: list[float], second: list[float]) -> float:
    """Largest difference in units of the mean size of the losses, or of 0.1 where that is less: what rounds in a small
    negative log-likelihood are logits, which are not small."""
    scale = sum(abs(v) for v in first) / len(first)
    return max(abs(a - b) for a, b in zip(first, second, strict=True)) / max(scale, 0.1)


def _graded(apart: float, rounding: float) -> Verdict:
    if apart <= rounding:
        return "pass"
    return "fail" if apart > 10 * rounding else "warn"
