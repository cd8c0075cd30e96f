"""What makes a checkpoint useless although it loads: numbers that are none, layers that are not there."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from lvlm_radapt.utils.errors import UserError


def check_finite(hf: nn.Module, name: str) -> None:
    """UserError naming the first weight that holds NaN or an infinite number: every answer would be noise."""
    for key, weight in hf.named_parameters():
        if weight.is_meta or not weight.is_floating_point():  # on disk until it is used, or quantised
            continue
        # a sum is infinite or NaN where one number is, and needs no copy of the weight
        if not bool(weight.detach().sum(dtype=torch.float32).isfinite()) and not bool(weight.isfinite().all()):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise UserError(
                f"{name}: the weight {key} holds NaN or infinite numbers in {dtype}: the checkpoint is damaged, was "
                "trained until it diverged, or needs --dtype float32"
            )


def check_normalisation(processor: Any, name: str) -> None:
    """UserError unless an image processor that normalises has three finite means, and deviations above 0."""
    if not processor.do_normalize:
        return
    for field, low in (("image_mean", -math.inf), ("image_std", 0.0)):
        values = getattr(processor, field, None)
        sound = isinstance(values, list | tuple) and len(values) == 3
        if not sound or not all(isinstance(v, int | float) and math.isfinite(v) and v > low for v in values or ()):
            raise UserError(
                f"{name}: preprocessor_config.json: {field} must be three finite numbers"
                f"{' above 0' if low == 0 else ''}, got {values!r:.80}"
            )


def lost_layer(config: Any, depth: int) -> int | None:
    """The first hidden layer that config.json has read and a tower of that depth does not have."""
    layers = config.vision_feature_layer
    each = [layers] if isinstance(layers, int) else layers
    return next((layer for layer in each if not -depth - 1 <= layer <= depth), None)
