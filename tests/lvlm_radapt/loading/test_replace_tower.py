"""Another tower in LLaVA's place, against a stock LLaVA built with that tower from scratch."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from eval_tasks.run.records import read_run
from lvlm_radapt import RAdaptConfig, load_encoder, load_model, robustify
from lvlm_radapt.loading.replace_tower import replace_tower
from lvlm_radapt.models import LVLM
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints, tiny_random
from tests.helpers.openclip_vit import VisionTransformer

PROMPTS, TARGETS = ["what is this", "how many red circle"], ["a pig", "two"]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def wide_llava(folder: Path, *, strategy: str = "default", layer: int | list[int] = -2) -> Path:
    """A LLaVA with a tower of width 64 (one head) at 84 px, as open_clip's heads of 64 need."""
    stock = tiny_random.llava()
    config = copy.deepcopy(stock.config)
    config.vision_config = vision_config(side=84)
    config.vision_feature_layer, config.vision_feature_select_strategy = layer, strategy
    config.image_seq_length = 36 + (strategy == "full")
    model = tiny_random.randomise(transformers.LlavaForConditionalGeneration(config), 4)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer = tiny_checkpoints.word_tokenizer({tiny_random.IMAGE_TOKEN: "<image>"}, bos=True, eos="</s>")
    tokenizer.chat_template = tiny_checkpoints.LLAVA_TEMPLATE
    tokenizer.save_pretrained(folder)
    tiny_checkpoints.clip_processor(84).save_pretrained(folder)
    return folder


def vision_config(*, side: int, width: int = 64, patch: int = 14, layers: int = 3) -> Any:
    return transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        image_size=side,
        patch_size=patch,
        projection_dim=24,
    )


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def fare(tmp_path: Path) -> Path:
    """A FARE-like file for 56 px, where the LLaVA has 84."""
    torch.save({"vision_encoder_state_dict": VisionTransformer(seed=8).state_dict()}, tmp_path / "fare_eps_4.pt")
    return tmp_path / "fare_eps_4.pt"


def from_scratch(llava: Path, reference: VisionTransformer, side: int) -> Any:
    """The stock class with the 56 px tower from its own constructor, weights put in one by one."""
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(llava, attn_implementation="eager")
    config = copy.deepcopy(theirs.config)
    config.vision_config = vision_config(side=side)
    config.image_seq_length = (side // 14) ** 2
    stock = transformers.LlavaForConditionalGeneration(config).eval()
    weights = {key: value for key, value in theirs.state_dict().items() if "vision_tower" not in key}
    lost = stock.load_state_dict(weights, strict=False)
    assert all(key.startswith("model.vision_tower.") for key in lost.missing_keys)
    assert not lost.unexpected_keys
    tower = stock.model.vision_tower
    with torch.no_grad():
        tower.embeddings.class_embedding.copy_(reference.class_embedding)
        tower.embeddings.patch_embedding.weight.copy_(reference.conv1.weight)
        tower.embeddings.position_embedding.weight.copy_(reference.positional_embedding)
    tower.pre_layrnorm.load_state_dict(reference.ln_pre.state_dict())
    tower.post_layernorm.load_state_dict(reference.ln_post.state_dict())
    for ours, block in zip(tower.encoder.layers, reference.transformer.resblocks, strict=True):
        ours.layer_norm1.load_state_dict(block.ln_1.state_dict())
        ours.layer_norm2.load_state_dict(block.ln_2.state_dict())
        ours.mlp.fc1.load_state_dict(block.mlp.c_fc.state_dict())
        ours.mlp.fc2.load_state_dict(block.mlp.c_proj.state_dict())
        ours.self_attn.out_proj.load_state_dict(block.attn.out_proj.state_dict())
        for i, name in enumerate("qkv"):
            rows = slice(64 * i, 64 * i + 64)
            part = {"weight": block.attn.in_proj_weight[rows], "bias": block.attn.in_proj_bias[rows]}
            getattr(ours.self_attn, f"{name}_proj").load_state_dict(part)
    stock.generation_config = theirs.generation_config
    return stock


def stock_inputs(model: LVLM, image: Image.Image, prompt: str, side: int) -> Any:
    processor = transformers.LlavaProcessor(
        tiny_checkpoints.clip_processor(side),
        model.tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return processor(images=[image], text=[f"USER: <image>\n{prompt} ASSISTANT:"], return_tensors="pt")


@torch.no_grad()
def test_equal_to_a_stock_llava_built_with_that_tower(llava: Path, fare: Path) -> None:
    model = load_model(llava, tower=fare)
    stock = from_scratch(llava, VisionTransformer(seed=8), 56)
    config = model.hf.config
    assert (config.vision_config.image_size, config.image_seq_length) == (56, 16)
    assert dict(model.image_processor.size) == {"shortest_edge": 56}
    assert dict(model.image_processor.crop_size) == {"height": 56, "width": 56}
    assert (model.tower_name, model.name) == (str(fare), str(llava))
    assert model.label == f"{llava} with tower {fare}"
    assert not any(p.requires_grad for p in model.hf.parameters())
    assert model.hf.state_dict().keys() == stock.state_dict().keys()
    assert all(torch.equal(value, stock.state_dict()[key]) for key, value in model.hf.state_dict().items())
    images = [noise(70, 90, 1), noise(60, 50, 2)]
    batch = model.pixels(images)
    assert batch.x.shape == (2, 3, 56, 56)
    assert model.text.prompt(PROMPTS[0], model.image_tokens(batch)[0]).count(tiny_random.IMAGE_TOKEN) == 16
    losses, answers = model.loss(batch, PROMPTS, TARGETS), model.generate(batch, PROMPTS, 8)
    for i, image in enumerate(images):
        inputs = stock_inputs(model, image, PROMPTS[i], 56)
        assert torch.equal(model.pixel_values(batch)[i : i + 1], inputs["pixel_values"])
        out = stock.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answers[i] == model.tokenizer.decode(out, skip_special_tokens=True).strip()
        target = model.tokenizer(TARGETS[i] + "</s>", add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([inputs["input_ids"], target], 1)
        labels = ids.clone()
        labels[:, : -target.shape[1]] = -100
        mask = torch.ones_like(ids)
        expected = stock(input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"], labels=labels).loss
        torch.testing.assert_close(losses[i], expected, rtol=1e-5, atol=1e-5)


def test_a_swapped_model_saves_as_a_stock_one(llava: Path, fare: Path, tmp_path: Path) -> None:
    """Its config tells the truth: transformers alone opens what it saves, and so do we."""
    model = load_model(llava, tower=fare)
    out = tmp_path / "saved"
    model.hf.save_pretrained(out)
    model.tokenizer.save_pretrained(out)
    model.image_processor.save_pretrained(out)
    again = load_model(out)
    images = [noise(60, 60)]
    assert torch.equal(
        again.loss(again.pixels(images), PROMPTS[:1], TARGETS[:1]),
        model.loss(model.pixels(images), PROMPTS[:1], TARGETS[:1]),
    )


def test_towers_from_hugging_face_folders(llava: Path, tmp_path: Path) -> None:
    vision = tiny_random.randomise(transformers.CLIPVisionModel(vision_config(side=84)), 6)
    vision.save_pretrained(tmp_path / "bare")
    processor = tiny_checkpoints.clip_processor(84, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.5, 0.7])
    processor.save_pretrained(tmp_path / "bare")
    model = load_model(llava, tower=tmp_path / "bare")
    assert model.image_mean == (0.5, 0.4, 0.3)
    assert model.image_std == (0.2, 0.5, 0.7)
    batch = model.pixels([noise(84, 84)])
    states = vision(model.pixel_values(batch), output_hidden_states=True).hidden_states
    torch.testing.assert_close(model.features(batch), states[-2][:, 1:], rtol=1e-5, atol=1e-5)


def test_the_encoder_stays_apart(llava: Path, fare: Path) -> None:
    encoder = load_encoder(fare)
    model = load_model(llava)
    assert replace_tower(model, encoder) is model
    batch = encoder.pixels([noise(56, 56)])
    before = encoder.features(batch)
    torch.testing.assert_close(model.features(model.pixels([noise(56, 56)])), before)
    robustify(model, RAdaptConfig())
    assert encoder.radapt is None
    assert torch.equal(encoder.features(batch), before)


def test_precision_and_attention_stay_the_model_s(llava: Path, fare: Path) -> None:
    model = load_model(llava, dtype=torch.bfloat16, attn="eager")
    replace_tower(model, load_encoder(fare))
    assert {p.dtype for p in model.hf.parameters()} == {torch.bfloat16}
    assert model.tower.config._attn_implementation == "eager"


def test_all_tokens_and_pad_geometry(tmp_path: Path, fare: Path) -> None:
    model = load_model(wide_llava(tmp_path / "full", strategy="full"), tower=fare, geometry="pad")
    assert model.hf.config.image_seq_length == 17
    assert model.geometry == "pad"
    batch = model.pixels([noise(90, 30)])
    assert model.image_tokens(batch) == [17]
    assert model.loss(batch, PROMPTS[:1], TARGETS[:1]).isfinite().all()


def test_towers_that_do_not_fit(llava: Path, tmp_path: Path) -> None:
    def tower(**config: Any) -> Path:
        folder = tmp_path / "-".join(f"{k}{v}" for k, v in config.items())
        transformers.CLIPVisionModel(vision_config(**config)).save_pretrained(folder)
        tiny_checkpoints.clip_processor(config["side"]).save_pretrained(folder)
        return folder

    for config, match in (
        ({"side": 84, "width": 128}, "is 128 wide, the tower of .* 64: take an encoder like that"),
        ({"side": 84, "patch": 12}, "is 12 px a patch, the tower of .* 14"),
    ):
        with pytest.raises(UserError, match=match) as error:
            load_model(llava, tower=tower(**config))
        assert "\n" not in str(error.value)
    deep = wide_llava(tmp_path / "deep", layer=[-1, 3])
    with pytest.raises(UserError, match=r"has 2 layers, .* reads layer 3: take a deeper one"):
        load_model(deep, tower=tower(side=84, layers=2))


def test_models_that_take_no_other_tower(llava: Path, fare: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only the tower of a LLaVA-1\.5 over CLIP"):
        load_model(tiny_checkpoints.save_qwen(tmp_path / "qwen"), tower=fare)
    encoder = load_encoder(fare)
    protected = robustify(load_model(llava))
    with pytest.raises(UserError, match="has R-Adapt in it: replace the tower first"):
        replace_tower(protected, encoder)
    save_adapter(protected, tmp_path / "adapter")
    with pytest.raises(UserError, match="is robustified for its own tower"):
        load_model(tmp_path / "adapter", tower=fare)
    with pytest.raises(UserError, match="has R-Adapt in it"):
        replace_tower(load_model(llava), robustify(encoder))
    siglip = tiny_random.clip_vision()
    siglip.config.model_type = "siglip_vision_model"
    odd = type(encoder)(siglip, None, tiny_checkpoints.clip_processor(56), name="odd")
    with pytest.raises(UserError, match=r"odd is a siglip_vision_model: a LLaVA-1\.5 takes a CLIP tower"):
        replace_tower(load_model(llava), odd)
    with pytest.raises(UserError, match="no such file"):
        load_model(llava, tower=tmp_path / "lost.pt")


def test_an_adapter_remembers_the_tower(
    llava: Path, fare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fare.parent)
    model = robustify(load_model(llava, tower=fare.name))
    assert model.tower_name == str(fare.resolve())
    save_adapter(model, tmp_path / "adapter")
    monkeypatch.chdir("/")
    again = load_model(tmp_path / "adapter")
    assert again.tower_name == str(fare.resolve())
    batch = model.pixels([noise(80, 60)])
    assert torch.equal(again.loss(batch, PROMPTS[:1], TARGETS[:1]), model.loss(batch, PROMPTS[:1], TARGETS[:1]))
    torch.save(VisionTransformer(seed=9).state_dict(), fare)
    with pytest.raises(UserError, match="has other weights than the one"):
        load_model(tmp_path / "adapter")
    fare.unlink()
    with pytest.raises(UserError, match=r"cannot open the base model of the adapter .*: .*no such file"):
        load_model(tmp_path / "adapter")


def test_the_command_line_takes_a_tower(llava: Path, fare: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from lvlm_radapt.cli import app

    def call(*words: Any) -> None:
        result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    call("data", "scenes", "--out", tmp_path / "data", "--count", 2)
    shared = ("--task", "vqav2", "--data", tmp_path / "data", "--samples", 2, "--device", "cpu")
    call("eval", llava, *shared, "--tower", fare, "--out", tmp_path / "run")
    settings = read_run(tmp_path / "run").settings["model"]
    assert settings["tower"] == str(fare)
    assert settings["name"] == f"{llava} with tower {fare}"
    call("robustify", llava, "--tower", fare, "--device", "cpu", "--out", tmp_path / "adapter")
    base = json.loads((tmp_path / "adapter" / "radapt.json").read_text())["base"]
    assert (base["name"], base["other_tower"]) == (str(llava.resolve()), str(fare.resolve()))
    call("eval", tmp_path / "adapter", *shared, "--out", tmp_path / "run2")
    settings = read_run(tmp_path / "run2").settings["model"]
    assert settings["name"] == f"{llava.resolve()} with tower {fare.resolve()}"
    assert settings["radapt"] is not None
