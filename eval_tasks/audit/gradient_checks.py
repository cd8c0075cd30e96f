"""Is the gradient there, does the loss feel small steps, and is the gradient the slope of the loss?"""

from __future__ import annotations

import math

import torch
from torch import Generator

from attacks.eight_bit import from_8bit, to_8bit
from eval_tasks.audit.context import AuditContext, mean
from eval_tasks.audit.findings import Finding, NoSignal, Verdict

# A perturbation of a quarter of an 8-bit level is lost in any rounding to 8 bits or fewer, and moves every other loss.
_SMALL = 0.25 / 255
_LARGE = 16 / 255  # felt through a rounding to 4 bits
# A smaller loss, the NLL of a confident answer, moves in steps of its own float precision, or not at all.
_NOTHING = 0.01
# Steps of the finite differences. A true gradient agrees at one of them at least: the smaller one is best where the
# loss is curved, the larger where its rounding is coarse.
_REACHES = (0.25 / 255, 1 / 255)
_AGREES, _DIFFERS = 0.1, 0.3  # relative error; tiny-llava in float32 has 0.0006


def gradients(context: AuditContext) -> Finding:
    """The loss and its gradient at a random point of the ball: finite, and not zero."""
    losses = context.losses(context.start)
    slope = context.gradient(context.start)
    finite = sum(map(math.isfinite, losses)) == len(losses) and bool(slope.isfinite().all())
    dead = int((slope == 0).flatten(1).all(dim=1).sum())
    zeros = float((slope == 0).double().mean())
    numbers = {"samples": len(losses), "zero_gradients": dead, "finite": finite, "zero_share": zeros}
    if not finite:
        said = "A loss or a gradient is infinite or no number: the attack cannot follow it."
        return Finding("gradients", "fail", said, numbers)
    if dead:
        verdict: Verdict = "fail" if dead * 2 >= len(losses) else "warn"
        said = f"The gradient is exactly zero on {dead} of {len(losses)} images: the attack does nothing there."
        return Finding("gradients", verdict, said, numbers)
    if zeros > 0.5:
        said = f"The gradient is zero at {100 * zeros:.0f} % of the values: is a part of the image cut off?"
        return Finding("gradients", "warn", said, numbers)
    said = f"Finite, and not zero on any of {len(losses)} images."
    return Finding("gradients", "pass", said, numbers)


def resolution(context: AuditContext) -> Finding:
    """Whether the loss feels a quarter of an 8-bit level: a model that rounds its input does not.

    Asked at the attacked images where there are some: at clean ones the loss of a confident answer may be too small
    to move at all.
    """
    s = context.target
    images = to_8bit(context.start, s.x, eps=s.eps, norm=s.norm) if s.made is None else s.made
    base = from_8bit(images).to(s.x)
    noise = torch.stack([_signs(context, seed, 0) for seed in context.seeds])
    at = context.losses(base)
    # inside [0, 1], which a model may clamp to
    moved = context.losses((base + _SMALL * noise).clamp(0, 1))
    far = context.losses((base + _LARGE * noise).clamp(0, 1))  # a loss that nothing moves is another flaw
    heard = [abs(value) > _NOTHING for value in at]
    deaf = sum(ears and a == b != c for ears, a, b, c in zip(heard, at, moved, far, strict=True))
    numbers = {"samples": sum(heard), "unchanged": deaf}
    if deaf:
        verdict: Verdict = "fail" if deaf * 2 >= sum(heard) else "warn"
        said = (
            f"On {deaf} of {sum(heard)} images a change of a quarter of an 8-bit level leaves the loss exactly as it "
            "was: the input is rounded, and no gradient can see through that."
        )
        return Finding("input resolution", verdict, said, numbers)
    if not any(heard):
        raise NoSignal("the loss is next to nothing at these images")
    return Finding("input resolution", "pass", "The loss feels a quarter of an 8-bit level.", numbers)


def accuracy(context: AuditContext) -> Finding:
    """The gradient against central differences of the loss along random signs and along the attack's own step.

    NoSignal where the loss hardly moves: differences of rounding errors agree with nothing."""
    bounds = max(_REACHES)
    point = context.start.clamp(bounds, 1 - bounds)  # differences stay inside [0, 1]
    slope = context.gradient(point).double()
    size = slope.flatten(1).norm(dim=1)
    along = [torch.stack([_signs(context, seed, k) for seed in context.seeds]) for k in range(context.directions)]
    errors, largest = [], 0.0
    for reach in _REACHES:
        squares = 0.0
        for v in along:
            ahead, behind = (torch.tensor(context.losses(point + s * reach * v)).double() for s in (1, -1))
            measured = (ahead - behind) / (2 * reach)
            expected = (slope * v).flatten(1).sum(1).to(measured)
            squares += float((measured - expected).square().sum())
            largest = max(largest, 2 * reach * float(measured.square().sum().sqrt()))
        errors.append(math.sqrt(squares / len(along)) / max(float(size.square().sum().sqrt()), 1e-300))
    largest = max(largest, 2 * max(_REACHES) * float(size.square().sum().sqrt()))
    at = context.losses(point)
    rounding = math.sqrt(sum(context.target.rounding_at(value) ** 2 for value in at))
    if largest <= rounding:
        raise NoSignal(f"a level moves the loss ({mean(at):.2g}) by {largest:.1g} only, which may be rounding")
    error = min(errors)
    rise = mean([a - b for a, b in zip(context.losses(point + _SMALL * slope.sign().to(point)), at, strict=True)])
    numbers = {"relative_error": error, "directions": context.directions, "rise_along_step": rise}
    if error > _DIFFERS or not rise > 0:
        said = f"The gradient is not the slope of the loss (relative error {error:.2g}): it is masked or cut somewhere."
        return Finding("gradient accuracy", "fail", said, numbers)
    if error > _AGREES:
        said = f"The gradient and finite differences of the loss agree to {error:.2g} only."
        return Finding("gradient accuracy", "warn", said, numbers)
    said = f"Finite differences of the loss agree with it (relative error {error:.2g})."
    return Finding("gradient accuracy", "pass", said, numbers)


def _signs(context: AuditContext, seed: int, stream: int) -> torch.Tensor:
    generator = Generator().manual_seed((seed * 1009 + stream) % 2**31)
    shape = context.target.x.shape[1:]
    return (2.0 * torch.randint(0, 2, shape, generator=generator) - 1).to(context.target.x)
