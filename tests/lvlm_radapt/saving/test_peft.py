"""peft's LoRA over an export: it trains, the defence stays in, and the adapter opens again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from lvlm_radapt import RAdaptConfig, export_model, load_model, robustify
from tests.helpers.families import FAMILIES

peft = pytest.importorskip("peft", reason="peft is not installed")
LAYERS = r".*language_model.*\.(q_proj|v_proj)"


def _opened(folder: Path) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()


def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


@pytest.mark.usefixtures("folder_code")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("name", ["llava", "qwen2.5"])
def test_lora_is_trained_over_an_export_and_opens_again(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    ours = robustify(load_model(family.save(tmp_path / "base")), RAdaptConfig(cutoff=20.0, alpha=0.7))
    export_model(ours, tmp_path / "export")
    rng = np.random.default_rng(0)
    inputs = family.inputs(ours, Image.fromarray(rng.integers(0, 256, (84, 56, 3), dtype=np.uint8)), "what is this ?")
    base = _opened(tmp_path / "export")
    before, anchor = _logits(base, inputs), base.radapt_mix.anchor.clone()
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=LAYERS, init_lora_weights=False))
    steps = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        steps.step()
        steps.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert {key for key, p in model.named_parameters() if p.requires_grad} == {
        key for key, _ in model.named_parameters() if "lora_" in key
    }
    assert torch.equal(base.radapt_mix.anchor, anchor)
    trained = _logits(model, inputs)
    assert (trained - before).abs().max() > 0.05
    model.save_pretrained(tmp_path / "lora")
    again = peft.PeftModel.from_pretrained(_opened(tmp_path / "export"), tmp_path / "lora").eval()
    assert torch.equal(_logits(again, inputs), trained)
    # the defence is still inside: over the stock weights the same adapter is another model
    bare = getattr(transformers, family.stock).from_pretrained(tmp_path / "base").eval()
    undefended = peft.PeftModel.from_pretrained(bare, tmp_path / "lora").eval()
    assert (_logits(undefended, inputs) - trained).abs().max() > 0.05
    merged = again.merge_and_unload()
    torch.testing.assert_close(_logits(merged, inputs), trained, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(_logits(_opened(tmp_path / "merged"), inputs), trained, rtol=1e-4, atol=1e-4)
