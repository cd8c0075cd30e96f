"""The last decoder layer where only the answer is read: its MLP and the final norm run at those positions alone.

Attention needs every position up to the last layer; what comes after it there, two thirds of a LLaMA layer's weights,
is read at the answer's positions and thrown away at all others, image tokens most of all.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from lvlm_radapt.models.speedups import truncated_forward

_ATTENDED = "after the last attention"


def prepare(language_model: nn.Module, plain: Collection[str]) -> None:
    """Lets `final_states` run the last layer in part, if its class is one of the `plain` ones; before threads share
    the model. A plain layer ends in x + mlp(post_attention_layernorm(x)), x being what attention leaves."""
    model: Any = language_model
    layer = model.layers[-1]
    if type(layer).__name__ in plain:
        truncated_forward.watch(layer.post_attention_layernorm, _ATTENDED, before=True)


def final_states(language_model: nn.Module, index: Tensor, **inputs: Any) -> Tensor:
    """[B, K, D]: the language model's last hidden states, after its final norm, at the positions `index` [B, K].

    inputs: the language model's own keywords. The whole last layer is run where `prepare` has not seen a plain one.
    """
    model: Any = language_model
    layer = model.layers[-1]
    norm = getattr(layer, "post_attention_layernorm", None)
    if norm is None or not truncated_forward.watched(norm, before=True):
        return _picked(model(**inputs).last_hidden_state, index)
    states = _picked(truncated_forward.run(lambda: model(**inputs), last=_ATTENDED)[_ATTENDED], index)
    return model.norm(states + layer.mlp(norm(states)))


def _picked(states: Tensor, index: Tensor) -> Tensor:
    return states.gather(1, index.to(states.device).unsqueeze(-1).expand(-1, -1, states.shape[-1]))
