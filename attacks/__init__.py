"""Adversarial attacks on images in [0, 1]: they need torch and a loss function, and know no model."""

from attacks.apgd import APGDResult, apgd
from attacks.ensemble import EnsembleResult, Stage, ensemble
from attacks.losses import contrastive_loss, embedding_loss
from attacks.noise import random_noise
from attacks.pgd import pgd
from attacks.threads import cpu_workers

__all__ = [
    "APGDResult",
    "EnsembleResult",
    "Stage",
    "apgd",
    "contrastive_loss",
    "cpu_workers",
    "embedding_loss",
    "ensemble",
    "pgd",
    "random_noise",
]
