"""The full-size benchmark: its configurations are the published ones, and without a GPU it says so."""

from typing import Any

import pytest
import torch

from lvlm_radapt import RAdaptConfig, robustify
from tests.helpers.scripts import script


@pytest.fixture(scope="module")
def full_size() -> Any:
    return script("benchmarks/full_size.py")


# of the released checkpoints: 7.06 billion, and 8.29 billion
@pytest.mark.parametrize(("name", "count"), [("llava-1.5-7b", 7_063_427_072), ("qwen2.5-vl-7b", 8_292_166_656)])
def test_the_models_have_the_published_size(full_size: Any, name: str, count: int) -> None:
    model = full_size.build_model(name, "meta", torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.hf.parameters()) == count
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.bfloat16}


def test_it_explains_itself_without_a_gpu(
    full_size: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["full_size.py"])
    full_size.main()
    assert "no GPU here" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2.5-vl-7b"])
def test_what_it_times_runs(full_size: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same jobs on the same classes, shrunk to fit a test."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    config = {"llava-1.5-7b": full_size.llava, "qwen2.5-vl-7b": full_size.qwen}[name]

    def shrunk(ids: Any) -> Any:
        whole = config(ids)
        layers = "num_hidden_layers" if name.startswith("llava") else "depth"
        heads = "num_attention_heads" if name.startswith("llava") else "num_heads"
        for key, value in {layers: 2, heads: 2, "hidden_size": 128, "intermediate_size": 64}.items():
            setattr(whole.vision_config, key, value)
        whole.text_config.num_hidden_layers = 1
        whole.text_config.layer_types = None
        whole.text_config.hidden_size, whole.text_config.intermediate_size = 128, 64
        whole.text_config.num_attention_heads = whole.text_config.num_key_value_heads = 1
        if name.startswith("qwen"):
            whole.vision_config.out_hidden_size = 128
            whole.vision_config.fullatt_block_indexes = [1]
            whole.text_config.layer_types = ["full_attention"]
        return whole

    monkeypatch.setattr(full_size, {"llava-1.5-7b": "llava", "qwen2.5-vl-7b": "qwen"}[name], shrunk)
    model = robustify(full_size.build_model(name, "cpu", torch.float32), RAdaptConfig())
    measured = full_size.measure(model, 2, 1)
    assert list(measured) == ["embedding step", "end-to-end step", "answer, 20 tokens"]
    assert all(seconds > 0 and flops > 0 for seconds, flops in measured.values())
    assert measured["end-to-end step"][1] > measured["embedding step"][1]
