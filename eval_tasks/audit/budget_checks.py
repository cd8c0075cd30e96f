"""Does the evaluation's own image keep to the attack's budget, use it, and survive 8 bits?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attacks.eight_bit import from_8bit, to_8bit
from attacks.eps import budget_text, eps_8bit, within
from attacks.norms import Norm
from eval_tasks.audit.context import AuditContext, mean
from eval_tasks.audit.findings import Finding, NoSignal
from eval_tasks.audit.rules import exceeds

_KEPT, _LOST = 0.8, 0.5  # share of the gain that 8 bits should leave


def ball(context: AuditContext) -> Finding:
    """The images that are scored: 8-bit, within eps of the clean ones, and not far inside."""
    s = context.target
    images = s.made
    if images is None:
        assert s.craft is not None
        context.cost += len(s) * context.steps * s.restarts
        images = s.craft(s.eps, context.steps)
    if images.dtype != torch.uint8 or images.shape != s.x.shape:
        said = f"The images are {images.dtype} {tuple(images.shape)}, not 8-bit ones of the clean images' shape."
        return Finding("ball", "fail", said, {})
    delta = (from_8bit(images).to(s.x) - s.x).double().flatten(1)
    far = delta.abs().amax(dim=1) if s.norm == "Linf" else delta.norm(dim=1)
    return distances_in_ball(
        [d for d in far.tolist() if d > 0 or not s.spares], eps=s.eps, norm=s.norm, nearest=s.nearest
    )


def distances_in_ball(distances: Sequence[float], *, eps: float, norm: Norm, nearest: bool = False) -> Finding:
    """The same of images whose distances from the clean ones are known. nearest: they may be as near as they can.

    Raises NoSignal where there is none."""
    if not distances:
        raise NoSignal("no image had to be attacked")
    outside = sum(not within(far, eps) for far in distances)
    budget = eps_8bit(eps, norm) or eps
    furthest, used = max(distances) / budget, mean(list(distances)) / budget
    numbers = {"samples": len(distances), "outside": outside, "furthest_in_eps": furthest, "mean_in_eps": used}
    if outside:
        said = f"{outside} of {len(distances)} images leave the ball: up to {furthest:.3g} eps from the clean ones."
        return Finding("ball", "fail", said, numbers)
    # An attack goes to the edge of its ball, and rounding leaves it near there.
    if furthest < 0.5 and not nearest:
        said = f"No image uses more than {100 * furthest:.0f} % of the budget: is eps in the unit of [0, 1] pixels?"
        return Finding("ball", "fail", said, numbers)
    said = f"All {len(distances)} images are within eps {budget_text(eps, norm)} and use {100 * used:.0f} % of it."
    return Finding("ball", "pass", said, numbers)


def round_trip(context: AuditContext) -> Finding:
    """What rounding to 8 bits leaves of the attack's gain."""
    s = context.target
    made = context.attack()
    after = context.losses(from_8bit(to_8bit(made.x, s.x, eps=s.eps, norm=s.norm)).to(s.x))
    gain = mean(made.loss) - mean(context.clean_loss)
    if gain <= context.rounding:
        raise NoSignal("the attack adds no more to the loss than its rounding")
    kept = (mean(after) - mean(context.clean_loss)) / gain
    lost = context.difference(made.loss, after)
    numbers = {
        "kept": kept,
        "loss_before": mean(made.loss),
        "loss_after": mean(after),
        "clean_loss": mean(context.clean_loss),
    }
    said = f"{100 * kept:.0f} % of what the attack adds to the loss survives 8 bits."
    if kept < _LOST and exceeds(lost, _LOST * gain) == "fail":
        return Finding("8-bit round trip", "fail", said + " The perturbation lives between the levels.", numbers)
    return Finding("8-bit round trip", "pass" if kept >= _KEPT else "warn", said, numbers)
