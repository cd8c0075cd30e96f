"""Seeded noise a sample: the random start of APGD, and the random control every attack has to beat."""

import hashlib
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from attacks.norms import Norm, check_ball, check_images, unit


def sample_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed a sample: a sequence of `count` ints as it is; an int s stands for s, s + 1, s + 2, ...

    Raises ValueError when the sequence has another length or holds something that is no integer.
    """
    try:
        if isinstance(seed, Sequence):
            seeds = [operator.index(one) for one in seed]
        else:
            seeds = [operator.index(seed) + i for i in range(count)]
    except TypeError:
        raise ValueError(f"seed must be an int or a sequence of ints, got {seed!r}") from None
    if len(seeds) != count:
        raise ValueError(f"seed must be an int or one int per sample: got {len(seeds)} for {count} samples")
    return seeds


def random_start(x: Tensor, *, eps: float, norm: Norm = "Linf", seeds: Sequence[int], restart: int = 0) -> Tensor:
    """APGD's random start: a point on the eps sphere around each sample of `x`, clamped to [0, 1].

    Linf: uniform noise in [-1, 1] scaled so that its largest entry is +-eps; L2: a uniform direction of
    length eps (both as in AutoAttack). A sample's noise is a function of its seed, `restart` and its shape.
    """

    def draw(generator: Generator) -> Tensor:
        if norm == "Linf":
            return 2 * torch.rand(x.shape[1:], generator=generator) - 1
        return torch.randn(x.shape[1:], generator=generator)

    return (x + eps * unit(_draw_each(x, draw, seeds, f"apgd {restart}"), norm)).clamp(0.0, 1.0)


def random_noise(x: Tensor, *, eps: float, norm: Norm = "Linf", seed: int | Sequence[int] = 0) -> Tensor:
    """Images with random noise of full strength: the control that shows what eps does without an attacker.

    `x`: [B, C, H, W] in [0, 1], float32 or float64. Linf: +-eps with a random sign at every value; L2: a
    uniform direction of length eps. The result is clamped to [0, 1]. `seed` is an int or one per sample
    (`sample_seeds`); a sample's noise depends on its own seed and shape only, and is not the one that
    `random_start` draws from that seed.

    Raises ValueError for images outside [0, 1], eps <= 0, an unknown norm or a wrong number of seeds.
    """
    check_images(x)
    check_ball(eps, norm)

    def draw(generator: Generator) -> Tensor:
        if norm == "Linf":
            return 2 * torch.randint(0, 2, x.shape[1:], generator=generator, dtype=torch.float32) - 1
        return torch.randn(x.shape[1:], generator=generator)

    noise = _draw_each(x, draw, sample_seeds(seed, len(x)), "noise")
    return (x + eps * (noise if norm == "Linf" else unit(noise, norm))).clamp(0.0, 1.0)


def _draw_each(x: Tensor, draw: Callable[[Generator], Tensor], seeds: Sequence[int], stream: str) -> Tensor:
    """Stack of one float32 draw a sample, in the dtype and on the device of `x`.

    Drawn on the CPU from a generator of its own, so that neither its neighbours nor the device change it. The
    seed and the stream's name are hashed together because torch's CPU generator looks at 32 bits of its seed
    only: nearby seeds, restarts and purposes stay unrelated.
    """
    noise = []
    for seed in seeds:
        digest = hashlib.blake2b(f"{stream} {seed}".encode(), digest_size=4).digest()
        noise.append(draw(Generator().manual_seed(int.from_bytes(digest, "big"))))
    return torch.stack(noise).to(device=x.device, dtype=x.dtype)
