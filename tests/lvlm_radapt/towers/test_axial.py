"""Towers of images of several sizes in one padded call, with positions by row and column: Pixtral's and Gemma 4's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lvlm_radapt.defences.radapt.anchor import CLIP_MEAN, CLIP_STD, Anchor, white_anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import disabled, inject, injected_white
from lvlm_radapt.defences.radapt.modules import GaussianFilter
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.parts import tower_blocks
from tests.helpers import axial, tiny_random


@dataclass(frozen=True)
class Kind:
    """make: the whole model; white: its normalised white pixel."""

    make: Callable[[], Any]
    first_attention: Callable[[dict[str, Tensor], Tensor, int, int], Tensor]
    call: Callable[[Sequence[Tensor], int], dict[str, Any]]
    patch: int
    white: tuple[float, ...]


WHITE = tuple((1 - mean) / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True))
GRIDS = [(4, 6), (2, 8), (6, 2)]
KINDS = {
    "mistral3": Kind(tiny_random.mistral3, axial.pixtral_first_attention, axial.pixtral_call, 14, WHITE),
    "gemma4": Kind(tiny_random.gemma4, axial.gemma4_first_attention, axial.gemma4_call, 4, (1.0, 1.0, 1.0)),
    "gemma4, large": Kind(
        functools.partial(tiny_random.gemma4, large=True),
        axial.gemma4_first_attention,
        axial.gemma4_call,
        4,
        (1.0, 1.0, 1.0),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def images_of(kind: Kind, grids: Sequence[tuple[int, int]] = GRIDS, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(3, high * kind.patch, wide * kind.patch, generator=draw) for high, wide in grids]


def white_image(kind: Kind, grid: tuple[int, int]) -> Tensor:
    return torch.tensor(kind.white).view(3, 1, 1).expand(3, grid[0] * kind.patch, grid[1] * kind.patch)


def attended(model: Any, kind: Kind, images: Sequence[Tensor]) -> list[Tensor]:
    """What leaves the first attention, hooks and all, image by image, without padding."""
    tower, seen = find_tower(model), []
    handle = tower.first_attention.register_forward_hook(lambda *call: seen.append(call[2][0]))
    try:
        tower.module(**kind.call(images, kind.patch))
    finally:
        handle.remove()
    counts = [image[0].numel() // kind.patch**2 for image in images]
    rows = seen[-1]  # the passes of own anchors come first
    if len(rows) == 1 and len(images) > 1:
        return list(rows[0].split(counts))
    return [row[:count] for row, count in zip(rows, counts, strict=True)]


def test_the_first_attention_by_hand_in_one_call_and_alone(kind: Kind) -> None:
    model, images = kind.make(), images_of(kind)
    weights = find_tower(model).module.state_dict()
    expected = [kind.first_attention(weights, image, kind.patch, 4) for image in images]
    for rows, row, image in zip(attended(model, kind, images), expected, images, strict=True):
        torch.testing.assert_close(rows, row.float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(attended(model, kind, [image])[0], row.float(), rtol=1e-4, atol=1e-5)
        assert row.std(0).max() > 0.01  # rows differ: another order would be seen


@pytest.mark.parametrize("grid", [None, (2, 2), (4, 10)])
def test_the_white_anchor_by_hand(kind: Kind, grid: tuple[int, int] | None) -> None:
    model = kind.make()
    weights = find_tower(model).module.state_dict()
    anchor = white_anchor(model, grid=grid)
    here = grid or anchor.grid or (2, 2)
    expected = kind.first_attention(weights, white_image(kind, here), kind.patch, 4)
    rows = anchor.values if anchor.grid else anchor.values.expand(len(expected), -1)
    assert (rows - expected).abs().max() < 1e-5
    # positions that only rotate leave all tokens of a white image alike
    assert (anchor.grid is None) == (kind.white == WHITE)


def test_images_of_several_sizes_are_filtered_each_alone(kind: Kind) -> None:
    model, images = kind.make(), images_of(kind)
    tower = find_tower(model).module
    outside = tower(**kind.call([GaussianFilter(25)(image) for image in images], kind.patch)).last_hidden_state
    stock = tower(**kind.call(images, kind.patch)).last_hidden_state
    inject(model, RAdaptConfig(cutoff=25, alpha=0))
    inside = tower(**kind.call(images, kind.patch)).last_hidden_state
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-4)
    assert (inside - stock).abs().max() > 0.1
    with disabled(model):
        assert torch.equal(tower(**kind.call(images, kind.patch)).last_hidden_state, stock)


@pytest.mark.parametrize("mix", ["interpolate", "add"])
def test_a_given_anchor_reaches_its_patches_in_every_image(kind: Kind, mix: Any) -> None:
    model, images = kind.make(), images_of(kind)
    stock = attended(model, kind, images)
    anchor = Anchor(torch.randn(24, 32, generator=torch.Generator().manual_seed(1)), (4, 6))
    inject(model, RAdaptConfig(cutoff=None, alpha=0.25, mix=mix), anchor)
    for rows, before, grid in zip(attended(model, kind, images), stock, GRIDS, strict=True):
        kept = before if mix == "add" else 0.75 * before
        torch.testing.assert_close(rows, kept + 0.25 * anchor.resized(grid).values, rtol=1e-5, atol=1e-5)


def test_the_own_anchor_is_that_of_every_images_grid(kind: Kind) -> None:
    model, images = kind.make(), images_of(kind)
    weights = find_tower(model).module.state_dict()
    inject(model, RAdaptConfig(cutoff=None, alpha=1))
    for rows, grid in zip(attended(model, kind, images), GRIDS, strict=True):
        expected = kind.first_attention(weights, white_image(kind, grid), kind.patch, 4)
        assert (rows - expected).abs().max() < 1e-5
    assert (injected_white(model) is None) == (kind.white == WHITE)


def test_gradient_checkpointing_with_two_calls_before_the_backward(kind: Kind) -> None:
    """The second call must not lend its grids to the first."""

    def gradients(checkpointed: bool) -> list[Tensor]:
        model = inject(kind.make(), RAdaptConfig(cutoff=20, alpha=0.6), Anchor(torch.ones(24, 32).cumsum(0), (4, 6)))
        tower = find_tower(model)
        for layer in tower_blocks(tower) if checkpointed else []:
            block: Any = layer.train()
            block.gradient_checkpointing = True
            block._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
        pixels, total = [], torch.zeros(())
        for grids in (GRIDS, GRIDS[::-1]):
            call = kind.call(images_of(kind, grids), kind.patch)
            call["pixel_values"].requires_grad_()
            pixels.append(call["pixel_values"])
            total = total + tower.module(**call).last_hidden_state.square().sum()
        total.backward()
        return [x.grad for x in pixels if x.grad is not None]

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-4)


def test_positional_and_keyword_arguments_are_the_same(kind: Kind) -> None:
    model = inject(kind.make(), RAdaptConfig(cutoff=20, alpha=0.5))
    tower: Any = find_tower(model).module
    call = kind.call(images_of(kind), kind.patch)
    assert torch.equal(tower(*call.values()).last_hidden_state, tower(**call).last_hidden_state)
