"""More room and more work for the attack: the loss must rise, the score must fall, and at last be about nothing."""

from __future__ import annotations

from attacks.eps import eps_text
from eval_tasks.audit.context import AttackedBatch, AuditContext, mean
from eval_tasks.audit.findings import Finding, Number, Verdict, worst
from eval_tasks.audit.rules import MARGIN, bounded, exceeds

LARGEST = 32 / 255
_NOTHING, _LITTLE = 0.1, 0.25  # of the clean score: about nothing, and too much to be that
MORE_STEPS = 5
MORE_RESTARTS = 3
MORE_DRAWS = 4


def eps_ladder(context: AuditContext) -> Finding:
    """eps doubled up to 32/255: monotone on the way, and a score of about nothing at the end.

    About nothing: at most a tenth of the clean score, or no more than the answers to OTHER images of the set would
    get, where answers are much alike.
    """
    s = context.target
    rungs = [s.eps]
    top = LARGEST if s.norm == "Linf" else s.eps * 8  # an L2 eps has no common scale to end at
    while rungs[-1] < top * (1 - 1e-9):
        rungs.append(min(2 * rungs[-1], top))
    made = [context.adaptive if eps == s.eps else context.attack(eps=eps) for eps in rungs]
    numbers: dict[str, Number] = {"clean_loss": mean(context.clean_loss)}
    verdict: Verdict = "pass"
    said = ""
    for (below, before), (eps, after) in zip(
        [(0.0, AttackedBatch(s.x, context.clean_loss)), *zip(rungs, made, strict=True)],
        zip(rungs, made, strict=True),
        strict=False,
    ):
        numbers[f"loss_{eps_text(eps, s.norm)}"] = mean(after.loss)
        gain = max(0.0, mean(before.loss) - mean(context.clean_loss))
        falls = exceeds(context.difference(before.loss, after.loss), MARGIN * gain)
        if worst(verdict, falls) != verdict:
            verdict, said = falls, f"The attack at eps {eps_text(eps, s.norm)} is weaker than at {_eps(below, s.norm)}."
    if context.has_scores:
        scores = [context.scores(one, eps=eps) for eps, one in zip(rungs, made, strict=True)]
        clean = mean(context.clean_scores)
        numbers["clean_score"] = clean
        steps = [context.clean_scores, *scores]
        for eps, before_scores, after_scores in zip(rungs, steps, scores, strict=False):
            numbers[f"score_{eps_text(eps, s.norm)}"] = mean(after_scores)
            rises = exceeds(context.difference(after_scores, before_scores), MARGIN * clean)
            if worst(verdict, rises) != verdict:
                verdict, said = rises, f"The score rises again at eps {eps_text(eps, s.norm)}."
        others = mean(context.grade(context.clean_answers[1:] + context.clean_answers[:1])) if len(s) > 1 else 0.0
        limit = max(_NOTHING * clean, min(others, clean))
        numbers["score_of_others_answers"] = others
        left = mean(scores[-1])
        if clean > 0 and left > limit and rungs[-1] >= top * (1 - 1e-9):
            beyond = context.difference(scores[-1], [max(_LITTLE * clean, limit)] * len(s)).low > 0
            high: Verdict = "fail" if beyond else "warn"
            if worst(verdict, high) != verdict:
                verdict = high
                said = (
                    f"At eps {eps_text(rungs[-1], s.norm)} the score is still {left:.3g} of {clean:.3g}: so large a "
                    "perturbation breaks every model, this attack does not."
                )
    if verdict == "pass":
        last = eps_text(rungs[-1], s.norm)
        end = f", the score falls to {numbers[f'score_{last}']:.3g}" if context.has_scores else ""
        said = f"Up to eps {last} the loss rises{end}."
    return Finding("eps", verdict, said, numbers)


def steps_ladder(context: AuditContext) -> Finding:
    """N steps against 5 N (100 against 500)."""
    more = context.attack(steps=MORE_STEPS * context.steps)
    return _effort(context, "steps", f"{MORE_STEPS * context.steps} steps instead of {context.steps}", more)


def restarts(context: AuditContext) -> Finding:
    """One start against several."""
    count = context.target.restarts + MORE_RESTARTS - 1
    return _effort(
        context, "restarts", f"{count} restarts instead of {context.target.restarts}", context.attack(restarts=count)
    )


def draws(context: AuditContext) -> Finding:
    """N draws of a random defence against 4 N; both judged by draws that neither has seen."""
    s = context.target
    assert s.draws is not None
    assert s.drawn is not None
    more = context.attack(s.drawn(MORE_DRAWS))
    context.cost += (MORE_DRAWS - 1) * len(s) * context.steps * s.restarts
    return _effort(context, "draws", f"{MORE_DRAWS * s.draws} draws instead of {s.draws}", more)


def _effort(context: AuditContext, name: str, what: str, more: AttackedBatch) -> Finding:
    base = context.attack()
    weaker = exceeds(context.difference(base.loss, more.loss), MARGIN * context.gain)
    numbers: dict[str, Number] = {"loss": mean(base.loss), "loss_with_more": mean(more.loss)}
    verdict, said = weaker, f"With {what} the attack gets WEAKER."
    if weaker == "pass":
        said = f"With {what} the loss goes from {mean(base.loss):.3g} to {mean(more.loss):.3g}"
    if context.has_scores:
        scores, longer = context.scores(base), context.scores(more)
        lower = context.difference(scores, longer)
        numbers |= {
            "score": mean(scores), "score_with_more": mean(longer), "difference": lower.mean,
            "difference_low": bounded(lower.low),
        }  # fmt: skip
        found = exceeds(lower, MARGIN * mean(context.clean_scores))
        if weaker == "pass":
            said += f", the score from {mean(scores):.3g} to {mean(longer):.3g}"
            if found != "pass":
                said += ": the attack had not converged"
        verdict = worst(verdict, found)
    elif weaker == "pass" and exceeds(context.difference(more.loss, base.loss), 0.5 * context.gain) == "fail":
        verdict, said = "warn", said + ": the attack had not converged"
    return Finding(name, verdict, said.rstrip(".") + ".", numbers)


def _eps(eps: float, norm: str) -> str:
    return eps_text(eps, norm) if eps else "0"
