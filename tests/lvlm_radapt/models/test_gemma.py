"""What Gemma's families have of their own: masks, PaliGemma without a chat template, PaliGemma 2."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lvlm_radapt import load_model
from tests.helpers import tiny_checkpoints
from tests.helpers.families import FAMILIES, Case, open_case, paligemma_inputs
from tests.helpers.inputs import PROMPTS, TARGETS, noise

WIDE = Image.effect_noise((400, 100), 90).convert("RGB")


def test_released_paligemmas_have_no_template_and_get_the_processors_tokens(tmp_path: Path) -> None:
    model = load_model(tiny_checkpoints.save_paligemma(tmp_path, chat_template=None))
    inputs = paligemma_inputs(model, WIDE, "What is this?")
    assert model.text.conversation is not None
    assert model.prompt_ids(model.pixels([WIDE]), ["What is this?"]) == inputs["input_ids"].tolist()


def test_paligemma_2_bounds_its_logits_and_windows_its_attention(tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_paligemma(tmp_path, version=2)
    row = FAMILIES["paligemma"]
    case = Case(row, load_model(folder), row.open_stock(folder), folder)
    if "final_logit_softcapping" not in inspect.getsource(type(case.stock).forward):
        pytest.skip("this transformers does not bound the logits of PaliGemma 2, as its training did")
    assert case.ours.language_model.config._attn_implementation == "eager"  # the only one with these bounds
    assert case.ours.tower.config._attn_implementation == "sdpa"
    images = [noise(84, 56, i) for i in range(3)]
    batch = case.ours.pixels(images)
    losses, answers = case.ours.loss(batch, PROMPTS, TARGETS), case.ours.generate(batch, PROMPTS, 8)
    for i, image in enumerate(images):
        torch.testing.assert_close(losses[i], case.stock_loss(image, PROMPTS[i], TARGETS[i]), rtol=1e-5, atol=1e-5)
        assert answers[i] == case.stock_answer(image, PROMPTS[i], 8)


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_a_causal_mask_would_be_another_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = open_case(name, tmp_path)
    batch = case.ours.pixels([noise(56, 56)])
    loss = case.ours.loss(batch, PROMPTS[:1], TARGETS[:1])
    make: Any = case.ours.hf.create_masks_for_generate
    ones = {"token_type_ids": torch.ones(1, 1)} if name == "paligemma" else {}  # all of it an answer
    monkeypatch.setattr(case.ours.hf, "create_masks_for_generate", lambda *args, **types: make(*args, **ones))
    assert not torch.allclose(case.ours.loss(batch, PROMPTS[:1], TARGETS[:1]), loss, rtol=1e-3)


def test_a_long_image_is_one_view_whatever_the_file_says(tmp_path: Path) -> None:
    """Pan and scan is for who asks the stock processor for it in a call."""
    processor = load_model(tiny_checkpoints.save_gemma3(tmp_path)).image_processor
    processor.do_pan_and_scan, processor.pan_and_scan_min_crop_size = True, 10
    processor.pan_and_scan_max_num_crops, processor.pan_and_scan_min_ratio_to_activate = 4, 1.2
    processor.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    asked = model.image_processor(images=[WIDE], do_convert_rgb=True, return_tensors="pt")["pixel_values"]
    assert len(asked) == 5
    assert torch.equal(model.pixel_values(model.pixels([WIDE])), asked[:1])
