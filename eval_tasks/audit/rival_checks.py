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
from eval_tasks.audit.bench import FORWARD, Bench, Made, mean, shifted
from eval_tasks.audit.findings import Finding, NoSignal, Number, worst
from eval_tasks.audit.rules import MARGIN, bounded, exceeds


def noise(bench: Bench) -> Finding:
    """Random signs of full strength."""
    s = bench.subject
    return _rival(
        bench, "noise", "Random noise", bench.losses(random_noise(s.x, eps=s.eps, norm=s.norm, seed=bench.seeds))
    )


def search(bench: Bench) -> Finding:
    """Random squares, kept where they raise the loss."""
    s = bench.subject
    bench.cost += FORWARD * bench.queries * len(s)
    losses: list[float] = []
    for rows in bench.pieces():
        found = random_search(
            shifted(s.loss, rows[0]),
            s.x[rows],
            eps=s.eps,
            queries=bench.queries,
            norm=s.norm,
            seed=[bench.seeds[i] for i in rows],
        )
        losses += found.loss.double().tolist()
    return _rival(bench, "random search", f"A random search of {bench.queries} losses", losses)


def square(bench: Bench) -> Finding:
    """Square from the official code, which sees logits and no gradient. It leaves alone what it cannot break, so that
    scores are compared."""
    _needs_scores(bench)
    s = bench.subject
    assert s.logits is not None
    assert s.labels is not None
    classify = s.logits
    bench.cost += FORWARD * bench.queries * len(s)
    found = [
        library_square(
            lambda x: classify(x, [0] * len(x)), s.x[rows], s.labels[rows], eps=s.eps, norm=s.norm,
            queries=bench.queries, seed=[bench.seeds[i] for i in rows],
        )
        for rows in bench.pieces()
    ]  # fmt: skip
    scores = bench.scores(Made(torch.cat(found), []))
    said = (
        f"Square with {bench.queries} queries leaves a score of {mean(scores):.3g}, "
        f"the adaptive attack {mean(bench.adaptive_scores):.3g}."
    )
    return _compared(bench, Finding("square", "pass", said), scores, f"Square, with {bench.queries} queries,")


def estimated(bench: Bench) -> Finding:
    """SPSA: gradients estimated from losses alone."""
    s = bench.subject
    pairs = 4
    steps = max(1, (bench.queries - 2) // (2 * pairs + 1))
    losses: list[float] = []
    for rows in bench.pieces():
        found = spsa(
            shifted(s.loss, rows[0]),
            s.x[rows],
            eps=s.eps,
            steps=steps,
            pairs=pairs,
            norm=s.norm,
            seed=[bench.seeds[i] for i in rows],
        )
        losses += found.loss.double().tolist()
        bench.cost += FORWARD * found.queries * len(rows)
    return _rival(bench, "spsa", f"SPSA with {bench.queries} losses", losses)


def transfer(bench: Bench) -> Finding:
    """The same attack crafted on the undefended model."""
    assert bench.subject.undefended is not None
    made = bench.attack(bench.subject.undefended)
    finding = _rival(bench, "transfer", "The attack crafted on the undefended model", made.loss)
    return _scored(bench, finding, made, "the transfer attack")


def bpda(bench: Bench) -> Finding:
    """Forward through the defence, backward through the undefended model."""
    s = bench.subject
    assert s.undefended is not None
    made = bench.attack(straight_through(s.loss, s.undefended))
    return _rival(bench, "bpda", "An attack with the undefended model's gradient (BPDA)", made.loss)


def low_frequency(bench: Bench) -> Finding:
    """A perturbation a quarter as fine as the image, which a low-pass filter lets through."""
    s = bench.subject
    bench.cost += len(s) * bench.steps
    x_adv = low_frequency_apgd(
        s.loss, s.x, eps=s.eps, steps=bench.steps, norm=s.norm, seed=bench.seeds, batch_size=s.batch_size
    )
    losses = bench.losses(x_adv)
    return _rival(bench, "low frequency", "A low-frequency attack, made for the filter,", losses)


def targeted(bench: Bench) -> Finding:
    """Losses that pull towards a fixed answer: does one break what the untargeted one leaves?"""
    _needs_scores(bench)
    found = {name: bench.scores(bench.attack(loss)) for name, loss in bench.subject.targeted.items()}
    lowest = [min(values) for values in zip(*found.values(), strict=True)]
    numbers: dict[str, Number] = {f"score_{name}": mean(values) for name, values in found.items()}
    finding = Finding("targeted loss", "pass", "No targeted loss breaks what the untargeted one leaves.", numbers)
    return _compared(bench, finding, lowest, f"the attack towards {' or '.join(map(repr, found))}")


def half_precision(bench: Bench) -> Finding:
    """The attack computed in half precision, its images judged in full precision."""
    assert bench.subject.half is not None
    made = bench.attack(bench.subject.half)
    finding = _rival(bench, "half precision", "The attack computed in half precision", made.loss)
    weaker = exceeds(bench.difference(bench.adaptive.loss, made.loss), 0.5 * bench.gain)
    if weaker != "pass":
        said = "Half precision loses over half of the attack's gain: attack this model in full precision."
        finding = Finding(finding.name, worst(finding.verdict, "warn"), said, finding.numbers)
    return _scored(bench, finding, made, "the half-precision attack")


def _needs_scores(bench: Bench) -> None:
    """NoSignal where there is no score to lose."""
    if mean(bench.clean_scores) <= 0:
        raise NoSignal("the model scores nothing on these images, clean as they are")


def _rival(bench: Bench, name: str, who: str, losses: list[float]) -> Finding:
    """The rival's losses against the adaptive attack's."""
    found = bench.difference(losses, bench.adaptive.loss)
    if max(bench.gain, abs(found.mean)) <= bench.rounding:
        raise NoSignal("neither attack moves the loss by more than its rounding")
    verdict = exceeds(found, MARGIN * bench.gain)
    wins = sum(a > b for a, b in zip(losses, bench.adaptive.loss, strict=True))
    numbers: dict[str, Number] = {
        "clean_loss": mean(bench.clean_loss),
        "adaptive_loss": mean(bench.adaptive.loss),
        "rival_loss": mean(losses),
        "difference": found.mean,
        "difference_low": bounded(found.low),
        "difference_high": bounded(found.high),
        "wins": wins,
        "samples": len(losses),
    }
    reached = f"reaches loss {mean(losses):.3g}, the adaptive attack {mean(bench.adaptive.loss):.3g}"
    if verdict == "pass":
        said = f"{who} {reached} (clean {mean(bench.clean_loss):.3g})."
    elif verdict == "warn":
        said = f"{who} {reached}: more, but {len(losses)} images cannot tell it from chance."
    else:
        said = f"{who} {reached}: it beats an attack that knows everything, whose gradient is thus no guide."
    return Finding(name, verdict, said, numbers)


def _scored(bench: Bench, finding: Finding, made: Made, who: str) -> Finding:
    """The finding with the comparison of scores added, where answers are scored."""
    return _compared(bench, finding, bench.scores(made), who) if bench.has_scores else finding


def _compared(bench: Bench, finding: Finding, scores: list[float], who: str) -> Finding:
    found = bench.difference(bench.adaptive_scores, scores)
    verdict = exceeds(found, MARGIN * mean(bench.clean_scores))
    numbers = dict(finding.numbers) | {
        "adaptive_score": mean(bench.adaptive_scores),
        "rival_score": mean(scores),
        "score_difference": found.mean,
        "score_difference_low": bounded(found.low),
    }
    said = finding.explanation
    if worst(verdict, finding.verdict) != finding.verdict:
        sure = "" if verdict == "fail" else f", though {len(scores)} images cannot prove it"
        told = f"{who[0].upper()}{who[1:]} leaves a score of {mean(scores):.3g}"
        said = f"{told}, the adaptive one {mean(bench.adaptive_scores):.3g}{sure}."
    return Finding(finding.name, worst(finding.verdict, verdict), said, numbers)
