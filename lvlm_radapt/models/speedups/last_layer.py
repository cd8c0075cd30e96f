"""The last decoder layer where only the answer is read: its MLP and the final norm run at those positions alone.

Attention needs every position up to the last layer; what comes after it there, two thirds of a LLaMA layer's weights,
is read at the answer's positions and thrown away at all others, image tokens most of all.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lvlm_radapt.models.speedups import truncated_forward as partial_pass

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

_ATTENDED = "after the last attention"


def prepare(language_model: nn.Module) -> None:
    """Lets `final_states` read `language_model`; before threads share it."""
    layer = _last_layer(language_model)
    if layer is not None:
        partial_pass.watch(layer.post_attention_layernorm, _ATTENDED, before=True)


def final_states(language_model: nn.Module, index: Tensor, **inputs: Any) -> Tensor:
    """[B, K, D]: the language model's last hidden states, after its final norm, at the positions `index` [B, K].

    language_model: one that `prepare` has seen. inputs: its own keywords.
    """
    model: Any = language_model
    layer = _last_layer(model)
    if layer is None:
        return _picked(model(**inputs).last_hidden_state, index)
    states = _picked(partial_pass.run(lambda: model(**inputs), last=_ATTENDED)[_ATTENDED], index)
    return model.norm(states + layer.mlp(layer.post_attention_layernorm(states)))


def _last_layer(language_model: nn.Module) -> Any:
    """The last layer, if it is one of the plain ones."""
    model: Any = language_model
    layer = model.layers[-1]
    return layer if type(layer).__name__ in PLAIN else None


def _picked(states: Tensor, index: Tensor) -> Tensor:
    return states.gather(1, index.to(states.device).unsqueeze(-1).expand(-1, -1, states.shape[-1]))
