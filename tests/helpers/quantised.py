"""A quantised model with its weights as plain numbers."""

from typing import Any

import pytest
import torch

from lvlm_radapt.models import LVLM


def dequantised(model: LVLM, plain: LVLM) -> LVLM:
    """`plain` with the weights that the quantised layers of `model` stand for, in float32."""
    bitsandbytes: Any = pytest.importorskip("bitsandbytes")  # not before: it brings torch's compiler along
    replaced = 0
    with torch.no_grad():
        for name, layer in model.hf.named_modules():
            if isinstance(layer, bitsandbytes.nn.Linear4bit):
                values = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            elif isinstance(layer, bitsandbytes.nn.Linear8bitLt):
                state = layer.state if layer.state.CB is not None else layer.weight
                values = state.CB.float() * state.SCB.float()[:, None] / 127
            else:
                continue
            weight = plain.hf.get_submodule(name).weight
            assert not torch.equal(weight, values)
            weight.copy_(values)
            replaced += 1
    assert replaced
    return plain
