"""A vision tower run only as far as the layer that is read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lvlm_radapt.models.speedups import truncated_forward
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.parts import tower_blocks


def prepare(tower: nn.Module) -> None:
    """Lets `read` run `tower`; before threads share it."""
    for number, block in enumerate(_blocks(tower), start=1):
        truncated_forward.watch(block, number)


def read(tower: nn.Module, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """[B, prefix + patches, D] of each of the `layers`, as `output_hidden_states` numbers them: 0 is what the first
    block gets, n what the n-th gives, negative ones count from the end.

    Runs the tower as one call, with the hooks on it, up to the deepest of these layers. `tower`: one that
    `prepare` has seen. IndexError for a layer that it has not.
    """
    count = len(_blocks(tower)) + 1
    numbers = [range(count)[layer] for layer in layers]
    if min(numbers) == 0:
        states = tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        return [states[number] for number in numbers]
    found = truncated_forward.run(lambda: tower(pixels), last=max(numbers))
    return [found[number] for number in numbers]


def _blocks(tower: nn.Module) -> Sequence[nn.Module]:
    return tower_blocks(find_tower(tower))
