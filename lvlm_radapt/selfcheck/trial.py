"""What the checks have in common: the model, an image of a photo's kind, a question and a wrong answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from attacks import embedding_loss
from attacks.losses import LossFn
from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel

QUESTION = "What color is the largest object in the image?"
WRONG = "red"
MOST_TOKENS = 8


@dataclass(frozen=True)
class Trial:
    """source: what transformers opens in the model's place, a folder or a hub id; None where it opens none, and
    `no_source` says why."""

    model: PixelModel
    image: Image.Image
    source: str | None
    no_source: str = ""

    @cached_property
    def batch(self) -> PixelBatch:
        """The image alone."""
        return self.model.pixels([self.image])

    @cached_property
    def three(self) -> PixelBatch:
        """The image, its mirror image, and upside down: one canvas, three pictures."""
        return self.model.pixels([self.image, ImageOps.mirror(self.image), ImageOps.flip(self.image)])

    def loss(self, batch: PixelBatch) -> LossFn:
        """What an attack raises on the batch: of a language model the NLL of a wrong answer, of an encoder the distance
        of its features from the clean ones."""
        model = self.model
        if isinstance(model, LVLM):

            def nll(x: Tensor, index: list[int]) -> Tensor:
                part = batch[index].replace(x)
                return model.loss(part, [QUESTION] * len(part), [WRONG] * len(part))

            return nll
        with torch.no_grad():
            clean = model.features(batch)
        return embedding_loss(lambda x, index: model.features(batch[index].replace(x)), clean, distance="l2")


@contextmanager
def inputs_of(module: torch.nn.Module) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Inside, what the module is called with, after all hooks that were there before."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def look(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def outputs_of(module: torch.nn.Module, *, first: bool) -> Iterator[list[Tensor]]:
    """Inside, what the module answers: before all hooks that were there already (`first`), or after them."""
    seen: list[Tensor] = []

    def look(_: torch.nn.Module, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).detach())

    handle = module.register_forward_hook(look, prepend=first)
    try:
        yield seen
    finally:
        handle.remove()


def photo_like() -> Image.Image:
    """An image of 640x480 with what photos have: slow shades, edges, fine grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:480, 0:640] / 64
    shade = sum(np.sin(a * x + b * y + c) for a, b, c in rng.normal(0, 0.6, (6, 3)))
    colours = np.stack([110 + 22 * shade + 30 * np.sin(x + k) for k in range(3)], -1)
    for left, top, wide, high, *colour in rng.integers(0, 255, (12, 7)):
        colours[top : top + high // 2, 2 * left : 2 * left + wide // 2] = colour
    grain = rng.normal(0, 6, (480, 640, 1))
    return Image.fromarray(np.clip(colours + grain, 0, 255).astype(np.uint8))
