"""A pass through a network that ends as soon as what is wanted of it is known: the rest would be work for nothing.

Watched modules carry a hook that does nothing, except during a call of `run`: it then takes the module's tensor and, at
the last one wanted, ends the pass. What is wanted is known to the calling thread alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn


@dataclass
class _Wanted:
    last: Hashable
    found: dict[Hashable, Tensor] = field(default_factory=dict)


class _FarEnough(Exception):
    """No error: how the pass ends."""


_wanted: ContextVar[_Wanted | None] = ContextVar("wanted_of_this_pass", default=None)


def watch(module: nn.Module, name: Hashable, *, before: bool = False) -> None:
    """Lets `run` take what `module` gives, or with `before` what it gets first, under `name`. To be called before
    threads share the module; calling it again changes nothing."""
    if not watched(module, before=before):
        register = module.register_forward_pre_hook if before else module.register_forward_hook
        register(partial(_note, name))


def watched(module: nn.Module, *, before: bool = False) -> bool:
    """Whether `watch` has seen the module."""
    hooks = module._forward_pre_hooks if before else module._forward_hooks
    return any(isinstance(hook, partial) and hook.func is _note for hook in hooks.values())


def run(call: Callable[[], object], last: Hashable) -> dict[Hashable, Tensor]:
    """The tensors of the watched modules that `call` goes through, by name, up to the one named `last`."""
    wanted = _Wanted(last)
    token = _wanted.set(wanted)
    try:
        call()
    except _FarEnough:
        pass
    finally:
        _wanted.reset(token)
    return wanted.found


def _note(name: Hashable, module: nn.Module, args: tuple[Any, ...], *output: Any) -> None:
    wanted = _wanted.get()
    if wanted is None:
        return
    value = output[0] if output else args
    wanted.found[name] = value[0] if isinstance(value, tuple) else value
    if name == wanted.last:
        raise _FarEnough
