"""The audit's workbench: attacks and answers on a target, each made once and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attacks import apgd
from attacks.auto_batch import AutoBatch
from attacks.eight_bit import from_8bit, to_8bit
from attacks.losses import LossFn
from attacks.noise import random_start
from eval_tasks.audit.rules import Difference, difference
from eval_tasks.audit.target import AuditTarget

FORWARD = 0.5
"""Cost of a loss without its gradient, in gradient evaluations: with frozen weights, backward costs as much again."""
ANSWER = 1.0
"""Cost of an answer: the prompt's pass and some short ones."""


@dataclass(frozen=True)
class AttackedBatch:
    """Attacked images, real-valued [B, 3, H, W], and the target's loss at them [B], as numbers."""

    x: Tensor
    loss: list[float]


class AuditContext:
    """Attacks on one target with `steps` gradient steps; black-box ones with `queries` losses a sample.

    cost: what was spent so far, in gradient evaluations of one image.
    """

    def __init__(self, target: AuditTarget, *, steps: int, queries: int, directions: int = 4) -> None:
        self.target = target
        self.steps = steps
        self.queries = queries
        self.directions = directions
        self.cost = 0.0
        self._attacks: dict[tuple[float, int, int], AttackedBatch] = {}
        self._memory = AutoBatch(target.batch_size)

    @property
    def everyone(self) -> list[int]:
        return list(range(len(self.target)))

    @property
    def seeds(self) -> list[int]:
        return list(self.target.seeds) or self.everyone

    def difference(self, first: Sequence[float], second: Sequence[float]) -> Difference:
        """Mean of first - second over the target's samples, with its interval over images."""
        return difference(first, second, self.target.images or None)

    def pieces(self) -> Iterator[list[int]]:
        """The samples, as many at a time as fit."""
        size = self._memory.size or len(self.target)
        for first in range(0, len(self.target), size):
            yield self.everyone[first : first + size]

    @torch.no_grad()
    def losses(self, x: Tensor, *, one_by_one: bool = False) -> list[float]:
        """The target's loss at x [B, 3, H, W]."""
        self.cost += FORWARD * len(x)
        memory = AutoBatch(1) if one_by_one else self._memory

        def some(rows: slice) -> list[float]:
            return self.target.loss(x[rows], self.everyone[rows]).double().tolist()

        return [value for part in memory.run(some, len(x)) for value in part]

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient of the loss at x; zeros where there is no path from x to it."""
        self.cost += len(x)

        def some(rows: slice) -> Tensor:
            with torch.enable_grad():
                point = x[rows].detach().requires_grad_()
                value = self.target.loss(point, self.everyone[rows])
            found = None
            if value.requires_grad:
                (found,) = torch.autograd.grad(value.sum(), point, allow_unused=True)
            return torch.zeros_like(point) if found is None else found

        return torch.cat(self._memory.run(some, len(x))).detach()

    @cached_property
    def start(self) -> Tensor:
        """A random point of the ball: at the clean image some losses have their minimum, and no gradient."""
        s = self.target
        return random_start(s.x, eps=s.eps, norm=s.norm, seeds=self.seeds)

    @cached_property
    def clean_loss(self) -> list[float]:
        return self.losses(self.target.x)

    def attack(
        self, loss: LossFn | None = None, *, eps: float | None = None, steps: int | None = None, restarts: int = 0
    ) -> AttackedBatch:
        """APGD with the target's settings; another loss may guide it, the target's own is what is returned. A random
        defence is attacked as in the evaluation, with new draws at every point."""
        s = self.target
        eps, steps = eps or s.eps, steps or self.steps
        restarts = restarts or s.restarts
        key = (eps, steps, restarts)
        if loss is None and key in self._attacks:
            return self._attacks[key]
        own = s.loss if s.drawn is None else s.drawn(1)
        found = apgd(
            loss or own,
            s.x,
            eps=eps,
            steps=steps,
            norm=s.norm,
            random_start=s.random_start or restarts > 1,
            step_scale=s.step_scale,
            restarts=restarts,
            seed=self.seeds,
            batch_size=s.batch_size,
        )
        broken = [reason for reason in found.failed if reason is not None]
        if broken:
            raise FloatingPointError(broken[0])
        self.cost += len(s) * steps * restarts
        made = AttackedBatch(found.x_adv, self.losses(found.x_adv))
        if loss is None:
            self._attacks[key] = made
        return made

    @cached_property
    def adaptive(self) -> AttackedBatch:
        """The attack that everything is held against: the evaluation's own images where it has made them."""
        if self.target.made is None:
            return self.attack()
        x = from_8bit(self.target.made).to(self.target.x)
        return AttackedBatch(x, self.losses(x))

    @cached_property
    def gain(self) -> float:
        """What the adaptive attack adds to the clean loss, on average and at least 0."""
        adaptive = self.adaptive.loss
        return max(0.0, sum(adaptive) / len(adaptive) - sum(self.clean_loss) / len(self.clean_loss))

    @cached_property
    def rounding(self) -> float:
        """A change of the mean loss that rounding alone may make."""
        return self.target.rounding_at(mean([abs(value) for value in self.clean_loss]))

    @property
    def has_scores(self) -> bool:
        return self.target.answers is not None and self.target.score is not None

    def answers(self, x: Tensor, *, batch_size: int | None = None) -> list[str]:
        """The model's answers to x, a batch at a time."""
        assert self.target.answers is not None
        self.cost += ANSWER * len(x)
        size = batch_size or self.target.batch_size
        texts: list[str] = []
        for first in range(0, len(x), size):
            rows = self.everyone[first : first + size]
            texts += self.target.answers(x[rows], rows)
        return texts

    @cached_property
    def clean_answers(self) -> list[str]:
        return self.answers(self.target.x)

    @cached_property
    def clean_scores(self) -> list[float]:
        return self.grade(self.clean_answers)

    def grade(self, answers: list[str]) -> list[float]:
        assert self.target.score is not None
        return self.target.score(answers, self.everyone)

    def scores(self, made: AttackedBatch, *, eps: float | None = None) -> list[float]:
        """Scores of attacked images after the 8-bit round trip, as the evaluation takes them."""
        s = self.target
        return self.grade(self.answers(from_8bit(to_8bit(made.x, s.x, eps=eps or s.eps, norm=s.norm)).to(s.x)))

    @cached_property
    def adaptive_scores(self) -> list[float]:
        return self.scores(self.adaptive)


def shifted(loss: LossFn, first: int) -> LossFn:
    """The loss for a piece of the samples that begins at place `first`."""
    return lambda x, index: loss(x, [first + i for i in index])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
