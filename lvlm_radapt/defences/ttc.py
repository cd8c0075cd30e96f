"""Test-time counterattack, TTC (Xing et al., CVPR 2025, arXiv 2503.03613)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lvlm_radapt.defences.encoder_steps import Embed, EncoderSteps, check_settings, stepped


@dataclass(frozen=True)
class TTC(EncoderSteps):
    """The image moves away from its own embedding, if noise hardly moves it: attacked images sit "falsely stable".

    Steps start at uniform noise. The result is the mean of all positions, weighted by exp(beta * number of
    steps). An image that noise moves by `tau` or more keeps the noise alone. Defaults are those of the authors' code.
    """

    name: ClassVar[str] = "ttc"
    random: ClassVar[bool] = True

    eps: float = 4 / 255
    """Radius of the Linf box around the given image, and of the noise; in units of [0, 1]."""
    step: float = 1 / 255
    steps: int = 2
    tau: float = 0.2
    """The least relative change of the embedding by noise at which an image counts as clean."""
    beta: float = 2.0

    def __post_init__(self) -> None:
        number = (int, float)
        check_settings(
            eps=(self.eps, number, 0, 1), step=(self.step, number, 0, 1), steps=(self.steps, int, 0, 1000),
            tau=(self.tau, number, 0, 1e6), beta=(self.beta, number, 0, 100),
        )  # fmt: skip

    def changed(self, x: Tensor, seeds: Sequence[int], embed: Embed) -> Tensor:
        noise = torch.stack(
            [torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        ).to(x)
        delta = (x + self.eps * (2 * noise - 1)).clamp(0, 1) - x
        with torch.no_grad():
            own = embed(x)
            drift = (embed(x + delta) - own).norm(dim=-1) / own.norm(dim=-1)
        positions = [delta]
        for _ in range(self.steps):
            leaf = delta.detach().requires_grad_()
            (slope,) = torch.autograd.grad((embed(x + leaf) - own).square().sum(), leaf)
            delta = stepped(x, delta, slope, self.step, self.eps)
            positions.append(delta)
        weights = torch.softmax(self.beta * torch.arange(len(positions), dtype=x.dtype, device=x.device), 0)
        moved = torch.einsum("s,sbchw->bchw", weights, torch.stack(positions))
        return x + torch.where((drift < self.tau).view(-1, 1, 1, 1), moved, positions[0])
