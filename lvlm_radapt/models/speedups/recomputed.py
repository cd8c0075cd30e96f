"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): a layer keeps its input alone for the backward pass.

transformers' own switch is for training: it asks for layers in training mode, and some versions then take the key-value
cache from layers that only answer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def switch_on(hf: nn.Module) -> bool:
    """Compute the activations of every layer anew in the backward pass. False where that is so already, or the model
    has no layers that transformers would checkpoint."""
    layers = [one for one in hf.modules() if isinstance(one, GradientCheckpointingLayer)]
    if not layers or hasattr(layers[0].forward, "recomputed"):
        return False
    for layer in layers:
        layer.forward = _recomputed(layer.forward)
    return True


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def lean(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    lean.recomputed = True  # type: ignore[attr-defined]
    return lean
