"""The FLOP counter: a step of every family costs what its parts do, and work that is not needed shows."""

from __future__ import annotations

from typing import Any

import pytest

from lvlm_radapt.models.families import lvlm_families
from tests.helpers.paths import ROOT
from tests.helpers.scripts import script

KINDS = [*lvlm_families(), "llava over pixtral"]


def test_every_model_of_the_benchmark_is_counted(flops: Any) -> None:
    assert list(flops.kinds()) == KINDS


@pytest.fixture
def flops(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return script("benchmarks/flops.py")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_costs_what_its_parts_do(flops: Any, kind: str) -> None:
    family = flops.kinds()[kind]
    model, _ = flops.build(kind, family)
    assert abs(flops.parts(model, family).off) < 0.03


def test_work_that_is_not_needed_shows(flops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model with experts and recurrent layers, cut to four layers: the last MLP at all positions."""
    whole = flops.RELEASED["qwen3_5_moe"]
    small = whole._replace(text={**whole.text, "num_hidden_layers": 4}, vision={**whole.vision, "depth": 2})
    monkeypatch.setitem(flops.RELEASED, "qwen3_5_moe", small)
    family = lvlm_families()["qwen3_5_moe"]
    model, called = flops.build("qwen3_5_moe", family)
    assert called == "Qwen3.5-35B-A3B"
    assert {type(layer).__name__ for layer in model.language_model.layers} == {"Qwen3_5MoeDecoderLayer"}
    assert sum(hasattr(layer, "linear_attn") for layer in model.language_model.layers) == 3
    assert abs(flops.parts(model, family).off) < 0.01
    model.language_model.layers[-1].post_attention_layernorm._forward_pre_hooks.clear()
    assert flops.parts(model, family).off > 0.03
