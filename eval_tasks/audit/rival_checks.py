"""Attacks that know less than the adaptive one, or go another way: none may beat it.

All are held against the adaptive attack image by image. A rival wins where its loss is higher by more than a tenth
of what the adaptive attack gains over the clean image; where answers are scored, rivals that stand in a table beside
the adaptive one (transfer) and other losses are held against its score too.
"""

from __future__ import annotations

import torch

from attacks.autoattack import square as library_square
from attacks.blackbox import random_search, spsa
from attacks.lowfrequency import low_frequency_apgd
from attacks.noise import random_noise
from attacks.straight_through import straight_through
from eval_tasks.audit.context import FORWARD, AttackedBatch, AuditContext, mean, shifted
from eval_tasks.audit.findings import Finding, NoSignal, Number, worst
from eval_tasks.audit.rules import MARGIN, bounded, exceeds


def noise(context: AuditContext) -> Finding:
    """Random signs of full strength."""
    s = context.target
    return _rival(
        context, "noise", "Random noise", context.losses(random_noise(s.x, eps=s.eps, norm=s.norm, seed=context.seeds))
    )


def search(context: AuditContext) -> Finding:
    """Random squares, kept where they raise the loss."""
    s = context.target
    context.cost += FORWARD * context.queries * len(s)
    losses: list[float] = []
    for rows in context.pieces():
        found = random_search(
            shifted(s.loss, rows[0]),
            s.x[rows],
            eps=s.eps,
            queries=context.queries,
            norm=s.norm,
            seed=[context.seeds[i] for i in rows],
        )
        losses += found.loss.double().tolist()
    return _rival(context, "random search", f"A random search of {context.queries} losses", losses)


def square(context: AuditContext) -> Finding:
    """Square from the official code, which sees logits and no gradient. It leaves alone what it cannot break, so that
    scores are compared."""
    _needs_scores(context)
    s = context.target
    assert s.logits is not None
    assert s.labels is not None
    classify = s.logits
    context.cost += FORWARD * context.queries * len(s)
    found = [
        library_square(
            lambda x: classify(x, [0] * len(x)), s.x[rows], s.labels[rows], eps=s.eps, norm=s.norm,
            queries=context.queries, seed=[context.seeds[i] for i in rows],
        )
        for rows in context.pieces()
    ]  # fmt: skip
    scores = context.scores(AttackedBatch(torch.cat(found), []))
    said = (
        f"Square with {context.queries} queries leaves a score of {mean(scores):.3g}, "
        f"the adaptive attack {mean(context.adaptive_scores):.3g}."
    )
    return _compared(context, Finding("square", "pass", said), scores, f"Square, with {context.queries} queries,")


def estimated(context: AuditContext) -> Finding:
    """SPSA: gradients estimated from losses alone."""
    s = context.target
    pairs = 4
    steps = max(1, (context.queries - 2) // (2 * pairs + 1))
    losses: list[float] = []
    for rows in context.pieces():
        found = spsa(
            shifted(s.loss, rows[0]),
            s.x[rows],
            eps=s.eps,
            steps=steps,
            pairs=pairs,
            norm=s.norm,
            seed=[context.seeds[i] for i in rows],
        )
        losses += found.loss.double().tolist()
        context.cost += FORWARD * found.queries * len(rows)
    return _rival(context, "spsa", f"SPSA with {context.queries} losses", losses)


def transfer(context: AuditContext) -> Finding:
    """The same attack crafted on the undefended model."""
    assert context.target.undefended is not None
    made = context.attack(context.target.undefended)
    finding = _rival(context, "transfer", "The attack crafted on the undefended model", made.loss)
    return _scored(context, finding, made, "the transfer attack")


def bpda(context: AuditContext) -> Finding:
    """Forward through the defence, backward through the undefended model."""
    s = context.target
    assert s.undefended is not None
    made = context.attack(straight_through(s.loss, s.undefended))
    return _rival(context, "bpda", "An attack with the undefended model's gradient (BPDA)", made.loss)


def low_frequency(context: AuditContext) -> Finding:
    """A perturbation a quarter as fine as the image, which a low-pass filter lets through."""
    s = context.target
    context.cost += len(s) * context.steps
    x_adv = low_frequency_apgd(
        s.loss, s.x, eps=s.eps, steps=context.steps, norm=s.norm, seed=context.seeds, batch_size=s.batch_size
    )
    losses = context.losses(x_adv)
    return _rival(context, "low frequency", "A low-frequency attack, made for the filter,", losses)


def targeted(context: AuditContext) -> Finding:
    """Losses that pull towards a fixed answer: does one break what the untargeted one leaves?"""
    _needs_scores(context)
    found = {name: context.scores(context.attack(own)) for name, own in context.target.targeted.items()}
    lowest = [min(values) for values in zip(*found.values(), strict=True)]
    numbers: dict[str, Number] = {f"score_{name}": mean(values) for name, values in found.items()}
    finding = Finding("targeted loss", "pass", "No targeted loss breaks what the untargeted one leaves.", numbers)
    return _compared(context, finding, lowest, f"the attack towards {' or '.join(map(repr, found))}")


def half_precision(context: AuditContext) -> Finding:
    """The attack computed in half precision, its images judged in full precision."""
    assert context.target.half is not None
    made = context.attack(context.target.half)
    finding = _rival(context, "half precision", "The attack computed in half precision", made.loss)
    weaker = exceeds(context.difference(context.adaptive.loss, made.loss), 0.5 * context.gain)
    if weaker != "pass":
        said = "Half precision loses over half of the attack's gain: attack this model in full precision."
        finding = Finding(finding.name, worst(finding.verdict, "warn"), said, finding.numbers)
    return _scored(context, finding, made, "the half-precision attack")


def _needs_scores(context: AuditContext) -> None:
    """NoSignal where there is no score to lose."""
    if mean(context.clean_scores) <= 0:
        raise NoSignal("the model scores nothing on these images, clean as they are")


def _rival(context: AuditContext, name: str, who: str, losses: list[float]) -> Finding:
    """The rival's losses against the adaptive attack's."""
    found = context.difference(losses, context.adaptive.loss)
    if max(context.gain, abs(found.mean)) <= context.rounding:
        raise NoSignal("neither attack moves the loss by more than its rounding")
    verdict = exceeds(found, MARGIN * context.gain)
    wins = sum(a > b for a, b in zip(losses, context.adaptive.loss, strict=True))
    numbers: dict[str, Number] = {
        "clean_loss": mean(context.clean_loss),
        "adaptive_loss": mean(context.adaptive.loss),
        "rival_loss": mean(losses),
        "difference": found.mean,
        "difference_low": bounded(found.low),
        "difference_high": bounded(found.high),
        "wins": wins,
        "samples": len(losses),
    }
    reached = f"reaches loss {mean(losses):.3g}, the adaptive attack {mean(context.adaptive.loss):.3g}"
    if verdict == "pass":
        said = f"{who} {reached} (clean {mean(context.clean_loss):.3g})."
    elif verdict == "warn":
        said = f"{who} {reached}: more, but {len(losses)} images cannot tell it from chance."
    else:
        said = f"{who} {reached}: it beats an attack that knows everything, whose gradient is thus no guide."
    return Finding(name, verdict, said, numbers)


def _scored(context: AuditContext, finding: Finding, made: AttackedBatch, who: str) -> Finding:
    """The finding with the comparison of scores added, where answers are scored."""
    return _compared(context, finding, context.scores(made), who) if context.has_scores else finding


def _compared(context: AuditContext, finding: Finding, scores: list[float], who: str) -> Finding:
    found = context.difference(context.adaptive_scores, scores)
    verdict = exceeds(found, MARGIN * mean(context.clean_scores))
    numbers = dict(finding.numbers) | {
        "adaptive_score": mean(context.adaptive_scores),
        "rival_score": mean(scores),
        "score_difference": found.mean,
        "score_difference_low": bounded(found.low),
    }
    said = finding.explanation
    if worst(verdict, finding.verdict) != finding.verdict:
        sure = "" if verdict == "fail" else f", though {len(scores)} images cannot prove it"
        told = f"{who[0].upper()}{who[1:]} leaves a score of {mean(scores):.3g}"
        said = f"{told}, the adaptive one {mean(context.adaptive_scores):.3g}{sure}."
    return Finding(finding.name, worst(finding.verdict, verdict), said, numbers)
