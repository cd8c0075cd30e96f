"""Contrastive spectral rectification, CSR (Nie et al., ICML 2026, arXiv 2601.19210)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lvlm_radapt.defences.encoder_steps import Embed, EncoderSteps, check_settings, stepped
from lvlm_radapt.defences.radapt.modules import GaussianFilter


@dataclass(frozen=True)
class CSR(EncoderSteps):
    """An image whose embedding is unlike that of its low-pass moves towards it, and away from its own embedding.

    Of all positions, the one with the best score stays: the cosine to the low-pass's embedding less that to its own.
    Defaults are those of the authors' code, which sets the radius at 224 px.
    """

    name: ClassVar[str] = "csr"

    radius: float = 40.0
    """D0 of the Gaussian low-pass, in cycles per 224 px."""
    threshold: float = 0.85
    """The cosine below which an image counts as attacked."""
    steps: int = 3
    eps: float = 4 / 255
    """Radius of the Linf box around the given image, in units of [0, 1]."""
    step: float = 2 / 255

    def __post_init__(self) -> None:
        number = (int, float)
        check_settings(
            radius=(self.radius, number, 1e-3, 1e6), threshold=(self.threshold, number, -1, 1.1),
            steps=(self.steps, int, 0, 1000), eps=(self.eps, number, 0, 1), step=(self.step, number, 0, 1),
        )  # fmt: skip

    def changed(self, x: Tensor, seeds: Sequence[int], embed: Embed) -> Tensor:
        with torch.no_grad():
            low = GaussianFilter(self.radius, boundary="periodic")(x).clamp(0, 1)
            own, wanted = F.normalize(embed(x), dim=-1), F.normalize(embed(low), dim=-1)
        attacked = (own * wanted).sum(-1) < self.threshold
        if not attacked.any():
            return x
        best, top = torch.zeros_like(x), torch.full((len(x),), -torch.inf, device=x.device)
        delta = torch.zeros_like(x)
        for taken in range(self.steps + 1):
            leaf = delta.detach().requires_grad_()
            score = (F.normalize(embed(x + leaf), dim=-1) * (wanted - own)).sum(-1)
            better = score.detach() > top
            top = torch.where(better, score.detach(), top)
            best = torch.where(better.view(-1, 1, 1, 1), delta, best)
            if taken < self.steps:
                (slope,) = torch.autograd.grad(score.sum(), leaf)
                delta = stepped(x, delta, slope, self.step, self.eps)
        return torch.where(attacked.view(-1, 1, 1, 1), x + best, x)
