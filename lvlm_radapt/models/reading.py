"""A vision tower run only as far as the layer that is read: the blocks above it would be work for nothing.

Each block carries a hook that does nothing, except during a call of `hidden_states`: it then takes the block's
output and, in the deepest block wanted, ends the pass. What is wanted is known to the calling thread alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn


@dataclass
class _Wanted:
    deepest: int
    states: dict[int, Tensor] = field(default_factory=dict)


class _DeepEnough(Exception):
    """No error: how the pass ends."""


_wanted: ContextVar[_Wanted | None] = ContextVar("wanted_hidden_states", default=None)


def prepare(tower: nn.Module) -> None:
    """Lets `hidden_states` read `tower`; before threads share it."""
    for number, block in enumerate(_blocks(tower), start=1):
        if not any(isinstance(hook, partial) and hook.func is _note for hook in block._forward_hooks.values()):
            block.register_forward_hook(partial(_note, number))


def hidden_states(tower: nn.Module, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
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
    wanted = _Wanted(max(numbers))
    token = _wanted.set(wanted)
    try:
        tower(pixels)
    except _DeepEnough:
        pass
    finally:
        _wanted.reset(token)
    return [wanted.states[number] for number in numbers]


def _blocks(tower: nn.Module) -> Sequence[nn.Module]:
    module: Any = tower
    return module.encoder.layers


def _note(number: int, block: nn.Module, args: Any, output: Any) -> None:
    wanted = _wanted.get()
    if wanted is None:
        return
    wanted.states[number] = output[0] if isinstance(output, tuple) else output
    if number == wanted.deepest:
        raise _DeepEnough
