"""The images that an attack made, with what is known of each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Crafted:
    """Images to be scored, uint8 [B,3,H,W], and by sample:

    loss: the attack's, None where it has none (noise, the clean image). steps: gradient steps spent on it, those of a
        library not counted; None where there are none. zero_grad: the gradient was zero throughout.
    failed: why the attack was not run to its end; the image is the best one found before.
    stage, broken: of an ensemble or a line of attacks on a classifier, what made the image, and whether it is under
        the threshold, or the classifier wrong about it.
    rounded_back: the classifier was wrong about the image before it was rounded to 8 bits, and no longer is.
    remarks: signs that the whole evaluation is broken, from a library that watches for them.
    """

    pixels: Tensor
    loss: list[float | None]
    steps: list[int | None]
    zero_grad: list[bool]
    failed: list[str | None]
    stage: list[str | None]
    broken: list[bool | None]
    rounded_back: list[bool]
    remarks: list[str]

    @classmethod
    def plain(
        cls,
        pixels: Tensor,
        loss: Sequence[float | None] | None = None,
        steps: Sequence[int | None] | None = None,
        zero_grad: Sequence[bool] | None = None,
        failed: Sequence[str | None] | None = None,
    ) -> Crafted:
        """Of an attack without stages; what is left out is None or false for all. A loss of NaN becomes None."""
        none, no = [None] * len(pixels), [False] * len(pixels)
        finite = [None if value is None or math.isnan(value) else value for value in loss or none]
        return cls(
            pixels,
            finite,
            list(steps or none),
            list(zero_grad or no),
            list(failed or none),
            [*none],
            [*none],
            [*no],
            [],
        )

    @classmethod
    def joined(cls, parts: Sequence[Crafted]) -> Crafted:
        """The samples of several, one after the other."""
        lists = {
            name: [value for part in parts for value in getattr(part, name)]
            for name in ("loss", "steps", "zero_grad", "failed", "stage", "broken", "rounded_back")
        }
        remarks = [*dict.fromkeys(said for part in parts for said in part.remarks)]
        return cls(torch.cat([part.pixels for part in parts]), **lists, remarks=remarks)


def sample_seed(seed: int, sample_id: str) -> int:
    """One seed a sample, so that a resumed or resharded sample draws the same noise."""
    digest = hashlib.sha256(f"{seed}/{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
