"""What an audit looks at: images, a loss to raise, answers and their scores. No model is named here, so that
flaws can be planted on analytic ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from attacks.classification import LogitsFn
from attacks.losses import LossFn
from attacks.norms import Norm

Score = Callable[[Sequence[str], list[int]], list[float]]
"""`score(answers, index)`: a score for each answer to the samples `index`; higher is better for the defender."""


@dataclass(frozen=True)
class AuditTarget:
    """One model under one attack on B images of one canvas.

    x: [B, 3, H, W] in [0, 1], clean, on 8-bit levels.
    loss: what the attack raises, through the model as it is scored. undefended: the same loss through the undefended
        model. targeted: by name, other losses whose success would lower the score too. half: the loss computed in half
        precision.
    gradient: "bpda" where the attack passes a defence straight through on its way back, so that its gradient is not the
        slope of the loss.
    draws: over how many draws of a random defence `loss` is the mean, always the same ones; None without such a
        defence. drawn: `drawn(times)` is the loss that an evaluation raises, whose draws are new at every point, over
        so many times as many of them.
    answers: `answers(x, index) -> list[str]`, what is scored; score: the score of such answers.
    logits, labels: of a classifier, for attacks that need them: `logits(x, index) -> [len(index), K]`, whatever the
        index, and the true classes, int64 [B].
    craft: `craft(eps, steps) -> uint8 [B, 3, H, W]`, the evaluation's own way to its images, rounding included.
    spares: whether craft leaves images alone whose score is low already.
    nearest: whether craft's images may use as little of the budget as they can.
    made: uint8 [B, 3, H, W], images the evaluation has made already under `eps` and `steps`.
    prompts: (texts the loss has put to the model, texts the answers come from), after one call of each.
    rounding: relative error of a loss that is surely rounding alone, from the precision of the model.
    images: the image of each sample, as in `bootstrap_ci`; none: every sample has its own.
    seeds: one a sample. batch_size: images at a time.
    """

    x: Tensor
    loss: LossFn
    eps: float
    steps: int
    norm: Norm = "Linf"
    undefended: LossFn | None = None
    gradient: Literal["exact", "bpda"] = "exact"
    draws: int | None = None
    drawn: Callable[[int], LossFn] | None = None
    targeted: Mapping[str, LossFn] = field(default_factory=dict)
    half: LossFn | None = None
    answers: Callable[[Tensor, list[int]], list[str]] | None = None
    score: Score | None = None
    logits: LogitsFn | None = None
    labels: Tensor | None = None
    craft: Callable[[float, int], Tensor] | None = None
    spares: bool = False
    nearest: bool = False
    made: Tensor | None = None
    prompts: Callable[[], tuple[list[str], list[str]]] | None = None
    rounding: float = 1e-4
    random_start: bool = True
    step_scale: float = 2.0
    restarts: int = 1
    images: Sequence[str] = ()
    seeds: Sequence[int] = ()
    batch_size: int = 16

    def __len__(self) -> int:
        return len(self.x)

    def rounding_at(self, loss: float) -> float:
        """How far the loss of one image, of that size, may change from one rounding to another. `rounding` bounds it
        with room; this is about what happens: 1e-6 in float32, as what rounds in a small loss are logits."""
        return 0.01 * self.rounding * max(1.0, abs(loss))
