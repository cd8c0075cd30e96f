"""The last decoder layer where only the answer is read: its MLP and the final norm run at those positions alone.

Attention needs every position up to the last layer; what comes after it there, two thirds of that layer's work, is
read at the answer's positions and thrown away at all others, image tokens most of all.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

PLAIN = frozenset(
    {
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen2VLDecoderLayer",
        "Qwen2_5_VLDecoderLayer",
        "Qwen3DecoderLayer",
        "Qwen3VLTextDecoderLayer",
    }
)
"""Layers that end in x + mlp(post_attention_layernorm(x)), x being what attention leaves; others are run whole."""


@dataclass
class _Wanted:
    after_attention: Tensor | None = None


class _FarEnough(Exception):
    """No error: how the pass ends."""


_wanted: ContextVar[_Wanted | None] = ContextVar("wanted_final_states", default=None)


def prepare(language_model: nn.Module) -> None:
    """Lets `final_states` read `language_model`; before threads share it."""
    layer = _last_layer(language_model)
    if layer is not None and _note not in layer.post_attention_layernorm._forward_pre_hooks.values():
        layer.post_attention_layernorm.register_forward_pre_hook(_note)


def final_states(language_model: nn.Module, index: Tensor, **inputs: Any) -> Tensor:
    """[B, K, D]: the language model's last hidden states, after its final norm, at the positions `index` [B, K].

    language_model: one that `prepare` has seen. inputs: its own keywords.
    """
    model: Any = language_model
    layer = _last_layer(model)
    if layer is None:
        return _picked(model(**inputs).last_hidden_state, index)
    wanted = _Wanted()
    token = _wanted.set(wanted)
    try:
        model(**inputs)
    except _FarEnough:
        pass
    finally:
        _wanted.reset(token)
    assert wanted.after_attention is not None
    states = _picked(wanted.after_attention, index)
    return model.norm(states + layer.mlp(layer.post_attention_layernorm(states)))


def _last_layer(language_model: nn.Module) -> Any:
    """The last layer, if it is one of the plain ones."""
    model: Any = language_model
    layer = model.layers[-1]
    return layer if type(layer).__name__ in PLAIN else None


def _picked(states: Tensor, index: Tensor) -> Tensor:
    return states.gather(1, index.to(states.device).unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def _note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    wanted = _wanted.get()
    if wanted is not None:
        wanted.after_attention = args[0]
        raise _FarEnough
