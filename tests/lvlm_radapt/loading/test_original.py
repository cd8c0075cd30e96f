"""Checkpoints as people hold them: LLaVA's own layout, and Hugging Face's of transformers 4 and 5, in shards.

The files are written here by hand from a stock model, so that the two key maps have different authors.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lvlm_radapt import load_model, robustify
from lvlm_radapt.models import LVLM
from lvlm_radapt.models.llava_next import LlavaNextLVLM
from lvlm_radapt.saving.adapter import save_adapter
from tests.helpers import tiny_checkpoints, tiny_random
from tests.helpers.failures import one_line
from tests.helpers.original_llava import IMAGE_ID, original_weights, stock_llava, write_original, write_shards

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: <image>\n{} ASSISTANT:"
)
PROMPTS, TARGETS = ["What is this?", "how many red circle"], ["a pig", "two"]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same_weights(model: LVLM, stock: Any) -> bool:
    ours, theirs = model.hf.state_dict(), stock.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.fixture(scope="module")
def stock() -> Any:
    return stock_llava()


@pytest.mark.parametrize(
    ("tower", "safe", "shards"), [(True, False, 3), (False, False, 1), (True, True, 1), (False, True, 2)]
)
def test_an_original_checkpoint_is_the_stock_model_it_came_from(
    stock: Any, tmp_path: Path, tower: bool, safe: bool, shards: int
) -> None:
    model = load_model(write_original(tmp_path, stock, tower=tower, safe=safe, shards=shards))
    assert same_weights(model, stock)
    assert type(model.hf) is transformers.LlavaForConditionalGeneration
    assert model.hf.config.to_diff_dict().keys() >= {"vision_config", "text_config"}
    assert (model.geometry, model.image_backend, model.text.image_id) == ("pad", "pil", IMAGE_ID)
    assert model.hf.config._attn_implementation == "sdpa"
    assert not any(p.requires_grad for p in model.hf.parameters())
    assert model.hf.config.image_seq_length == 16
    # a square image, which padding leaves alone, so that the stock processor is the reference
    image = noise(84, 84)
    processor = transformers.LlavaProcessor(
        tiny_checkpoints.clip_processor(56),
        model.tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    inputs = processor(images=[image], text=[VICUNA.format(PROMPTS[0])], return_tensors="pt")
    batch = model.pixels([image])
    out = stock.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = model.tokenizer.decode(out, skip_special_tokens=True).strip()
    assert model.generate(batch, PROMPTS[:1], 8) == [answer]
    target = model.tokenizer("a pig</s>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([inputs["input_ids"], target], 1)
    labels = ids.clone()
    labels[:, : -target.shape[1]] = -100
    expected = stock(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=inputs["pixel_values"], labels=labels
    ).loss
    torch.testing.assert_close(model.loss(batch, PROMPTS[:1], ["a pig"])[0], expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_it_answers_as_the_original_code_does(stock: Any, tmp_path: Path) -> None:
    """The original road, retold: padding, texts around the image encoded apart, no row for the image token."""
    folder = write_original(tmp_path, stock, tower=True)
    model = load_model(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, config=stock.config.text_config)
    image = noise(90, 50)
    mean = tuple(int(255 * m) for m in model.image_mean)
    square = Image.new("RGB", (90, 90), mean)
    square.paste(image, (0, 20))
    pixels = tiny_checkpoints.clip_processor(56)(images=[square], return_tensors="pt")["pixel_values"]
    assert torch.equal(model.pixel_values(model.pixels([image])), pixels)
    states = stock.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    projector = stock.model.multi_modal_projector
    hidden = functional.gelu(states @ projector.linear_1.weight.T + projector.linear_1.bias)
    visual = hidden @ projector.linear_2.weight.T + projector.linear_2.bias
    config = copy.deepcopy(stock.config.text_config)
    config.vocab_size = IMAGE_ID
    llama = transformers.LlamaForCausalLM(config).eval()
    weights = original_weights(stock, tower=False)
    llama.load_state_dict({k: v for k, v in weights.items() if "mm_projector" not in k and "inv_freq" not in k})
    before, after = VICUNA.format(PROMPTS[0]).split("<image>")
    ids = [tokenizer(before)["input_ids"], tokenizer(after, add_special_tokens=False)["input_ids"]]
    answer = tokenizer("a pig", add_special_tokens=False)["input_ids"] + [2]
    embed = llama.get_input_embeddings()
    embeds = torch.cat([embed(torch.tensor([ids[0]])), visual, embed(torch.tensor([ids[1] + answer]))], 1)
    logits = llama(inputs_embeds=embeds).logits[0, -len(answer) - 1 : -1]
    expected = float(functional.cross_entropy(logits, torch.tensor(answer)))
    batch = model.pixels([image])
    loss = float(model.loss(batch, PROMPTS[:1], ["a pig"])[0])
    assert expected - 1e-5 <= loss <= expected + math.log1p(1 / IMAGE_ID) + 1e-5
    out = llama.generate(inputs_embeds=embeds[:, : -len(answer)], max_new_tokens=8, do_sample=False)[0]
    assert model.generate(batch, PROMPTS[:1], 8) == [tokenizer.decode(out, skip_special_tokens=True).strip()]


def test_texts_around_the_image_are_encoded_apart(stock: Any, tmp_path: Path) -> None:
    """With a real Llama tokenizer each part gets SentencePiece's leading space, as in the original code."""
    folder = write_original(tmp_path, stock, tower=True)
    for file in folder.glob("token*"):
        file.unlink()
    letters = [chr(c) for c in range(32, 127) if chr(c) not in " "]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "<0x0A>": 4}
    vocab |= {letter: i + 5 for i, letter in enumerate(letters[: tiny_random.VOCAB - 6])}
    vocab["▁W"] = len(vocab)
    alone = transformers.LlamaTokenizer(vocab=vocab, merges=[("▁", "W")], legacy=False)
    assert len(alone) <= tiny_random.VOCAB
    alone.save_pretrained(folder)
    model = load_model(folder)
    before, after = VICUNA.format("What?").split("<image>")
    expected = [*alone(before)["input_ids"], model.text.image_id, *alone(after, add_special_tokens=False)["input_ids"]]
    assert alone.convert_ids_to_tokens(expected[expected.index(model.text.image_id) + 1 :])[:3] == ["▁", "<0x0A>", "W"]
    assert model.text.prompt("What?", 1) == expected


def test_an_original_of_the_next_generation(tmp_path: Path) -> None:
    next_stock = stock_llava("next")
    folder = write_original(
        tmp_path,
        next_stock,
        tower=True,
        image_aspect_ratio="anyres",
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
        mm_patch_merge_type="spatial_unpad",
    )
    model = load_model(folder)
    assert isinstance(model, LlavaNextLVLM)
    assert same_weights(model, next_stock)
    image = noise(90, 50)
    processor = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
    )
    vision = processor(images=[image], return_tensors="pt")
    batch = model.pixels([image])
    ids = torch.tensor([model.text.prompt("what", model.image_tokens(batch)[0])])
    out = next_stock.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **vision, max_new_tokens=8, do_sample=False
    )
    answer = model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert model.generate(batch, ["what"], 8) == [answer]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_files_come_in_the_dtype_asked_for(stock: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    half = copy.deepcopy(stock).half()
    for weight in (half.lm_head.weight, half.model.language_model.embed_tokens.weight):
        weight.data[-1] = weight.data[:-1].float().mean(0).half()
    model = load_model(write_original(tmp_path, half, tower=True), dtype=dtype)
    assert model.dtype == dtype
    assert {p.dtype for p in model.hf.parameters()} == {dtype}
    assert same_weights(model, half.to(dtype))
    assert model.hf.model.language_model.rotary_emb.inv_freq.dtype == torch.float32


def test_square_original_checkpoints_do_not_pad(stock: Any, tmp_path: Path) -> None:
    folder = write_original(tmp_path, stock, tower=True, image_aspect_ratio=None, mm_vision_select_feature="cls_patch")
    model = load_model(folder)
    assert model.geometry == "stock"
    assert model.hf.config.vision_feature_select_strategy == "full"
    assert model.hf.config.image_seq_length == 17
    assert load_model(folder, geometry="pad").geometry == "pad"


def test_the_conversation_follows_the_language_model(stock: Any, tmp_path: Path) -> None:
    mistral = write_original(
        tmp_path / "m", stock, tower=True, architectures=["LlavaMistralForCausalLM"], sliding_window=None
    )
    model = load_model(mistral)
    assert model.hf.config.text_config.model_type == "mistral"
    assert model.hf.config.text_config.sliding_window is None
    assert model.text.prompt("What?", 1) == model.tokenizer("[INST] <image>\nWhat? [/INST]")["input_ids"]
    folder = write_original(tmp_path / "c", stock, tower=True)
    chatml = tiny_checkpoints.word_tokenizer({94: "<|im_start|>", 95: "<|im_end|>"}, bos=False, eos="<|im_end|>")
    chatml.save_pretrained(folder)
    model = load_model(folder)
    asked = (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhat?<|im_end|>"
        "<|im_start|>assistant\n"
    )
    assert model.text.prompt("What?", 1) == model.tokenizer(asked)["input_ids"]
    named = load_model(folder, conversation="vicuna_v1")
    assert named.text.prompt("What?", 1) == model.tokenizer(VICUNA.format("What?"))["input_ids"]


def test_embeddings_with_room_for_the_image_token_stay_as_they_are(stock: Any, tmp_path: Path) -> None:
    folder = write_original(tmp_path, stock, tower=True, shards=1)
    weights = original_weights(stock, tower=True)
    for key in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[key] = torch.cat([weights[key], torch.randn(4, weights[key].shape[1])])
    write_shards(folder, weights, safe=False, shards=1)
    edit(folder, vocab_size=IMAGE_ID + 4)
    model = load_model(folder)
    assert torch.equal(model.hf.lm_head.weight, weights["lm_head.weight"])
    assert model.text.image_id == IMAGE_ID


def test_a_robustified_original_opens_again(stock: Any, tmp_path: Path) -> None:
    model = robustify(load_model(write_original(tmp_path, stock, tower=False)))
    save_adapter(model, tmp_path / "adapter")
    again = load_model(tmp_path / "adapter")
    assert again.geometry == "pad"
    batch = model.pixels([noise(60, 80)])
    assert torch.equal(again.loss(batch, PROMPTS[:1], TARGETS[:1]), model.loss(batch, PROMPTS[:1], TARGETS[:1]))


@pytest.mark.parametrize("kind", ["LlavaLlamaForCausalLM", "LlavaMistralForCausalLM"])
def test_what_it_saves_is_a_stock_checkpoint_that_asks_alike(stock: Any, tmp_path: Path, kind: str) -> None:
    folder = write_original(tmp_path, stock, tower=True, architectures=[kind], sliding_window=None)
    tokenizer = tiny_checkpoints.word_tokenizer({}, bos=True, eos="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    model = load_model(folder)
    for part in (model.hf, model.tokenizer, model.image_processor):
        part.save_pretrained(tmp_path / "saved")
    again = load_model(tmp_path / "saved", geometry="pad")
    assert again.text.prompt('a "red" {pig}\\n', 1) == model.text.prompt('a "red" {pig}\\n', 1)
    batch = model.pixels([noise(60, 80)])
    assert torch.equal(again.loss(batch, PROMPTS[:1], TARGETS[:1]), model.loss(batch, PROMPTS[:1], TARGETS[:1]))


def test_a_tower_from_the_local_hub_cache(stock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_original(tmp_path, stock, tower=False, mm_vision_tower="openai/clip-vit")
    _fail(folder, r"openai/clip-vit is neither a folder nor in the local Hugging Face cache: download it \(hf download")
    cache = tmp_path / "cache" / "models--openai--clip-vit"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a" * 40)
    (tmp_path / "clip").rename(cache / "snapshots_of")
    (cache / "snapshots").mkdir()
    (cache / "snapshots_of").rename(cache / "snapshots" / ("a" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert same_weights(load_model(folder), stock)


def _fail(folder: Path, match: str) -> None:
    with one_line(match):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": ["LlavaQwenForCausalLM"]}, "architectures 'LlavaQwenForCausalLM' is not read"),
        ({"architectures": None}, "architectures 'missing' is not read"),
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear' is not read, only mlp2x_gelu"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature 'cls'"),
        ({"mm_vision_select_layer": "last"}, r"does not fit LlavaForConditionalGeneration"),
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio 'anyres_max_9' is not read.*converted"),
        ({"image_aspect_ratio": "anyres"}, "mm_patch_merge_type 'flat'"),
        ({"s2": True}, "s2 True"),
        ({"mm_vision_tower": None}, "mm_vision_tower in config.json is None"),
        ({"mm_vision_tower": "openai/none"}, r"openai/none is neither .* download it \(hf download openai/none\)"),
        ({"mm_vision_tower": "/none/clip-vit"}, "/none/clip-vit is neither a folder"),
        ({"vocab_size": None}, "config.json lacks vocab_size"),
        ({"hidden_size": "wide"}, "config.json is no LlamaConfig"),
        ({"hidden_size": 64}, r"has shape .* and the config asks for"),
        ({"vocab_size": 90}, r"embed_tokens.weight has shape \(96, 32\) and the config asks for \(90, 32\)"),
        ({"intermediate_size": 48}, r"has shape"),
        ({"num_key_value_heads": 2}, r"has shape"),
        ({"num_hidden_layers": 3}, r"misses weights model.language_model.layers.2"),
        ({"num_hidden_layers": 1}, r"holds unknown weights model.language_model.layers.1"),
        ({"num_attention_heads": 0}, "LlamaConfig|describes no model"),
    ],
)
def test_a_config_that_lies_or_is_not_supported(
    stock: Any, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    folder = write_original(tmp_path, stock, tower=True)
    edit(folder, **changes)
    _fail(folder, match)


def test_missing_and_foreign_weights(stock: Any, tmp_path: Path) -> None:
    folder = write_original(tmp_path, stock, tower=True, shards=1)
    weights = original_weights(stock, tower=True)
    for lost in ("model.mm_projector.2.bias", "model.norm.weight", "lm_head.weight"):
        torch.save({k: v for k, v in weights.items() if k != lost}, folder / "pytorch_model.bin")
        _fail(folder, "misses weights")
    some = {k: v for k, v in weights.items() if "vision_model.encoder.layers.1" not in k}
    torch.save(some, folder / "pytorch_model.bin")
    _fail(folder, r"misses weights model\.vision_tower\.encoder\.layers\.1")
    torch.save({**weights, "radapt.anchor": torch.zeros(3)}, folder / "pytorch_model.bin")
    _fail(folder, r"holds unknown weights radapt\.anchor")
    torch.save({**weights, "model.mm_projector.4.bias": torch.zeros(3)}, folder / "pytorch_model.bin")
    _fail(folder, r"holds unknown weights model\.mm_projector\.4")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "generation_config.json").write_text("{")
    _fail(folder, "cannot read its generation_config.json")
    (folder / "generation_config.json").unlink()
    (folder / "pytorch_model.bin").unlink()
    _fail(folder, "no weights there")


@pytest.mark.parametrize("safe", [True, False])
def test_damaged_shards(stock: Any, tmp_path: Path, safe: bool) -> None:
    folder = write_original(tmp_path, stock, tower=True, safe=safe)
    end = "safetensors" if safe else "bin"
    shard = next(folder.glob(f"*-00002-of-00002.{end}"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    _fail(folder, rf"{shard.name} is cut short or damaged: download it again")
    shard.write_bytes(b"")
    _fail(folder, rf"{shard.name} is cut short or damaged")
    shard.unlink()
    _fail(folder, rf"the shard {shard.name} that .*index\.json names is not there")
    index = next(folder.glob("*.index.json"))
    index.write_text(json.dumps({"weight_map": {"a": "../outside.bin"}}))
    _fail(folder, "must name shards that lie beside it")
    index.write_text("{")
    _fail(folder, "is no index of weight shards")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_pickles_are_never_run(stock: Any, tmp_path: Path) -> None:
    folder = write_original(tmp_path, stock, tower=True, shards=1)
    torch.save({"model.norm.weight": _Evil()}, folder / "pytorch_model.bin")
    _fail(folder, "holds more than tensors, which is never opened")  # and nothing printed
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    _fail(folder, "holds no state dict")


def test_files_of_before_torch_1_6_open_too(stock: Any, tmp_path: Path) -> None:
    folder = write_original(tmp_path, stock, tower=True, shards=1)
    weights = original_weights(stock, tower=True)
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same_weights(load_model(folder), stock)


def test_a_damaged_tower(stock: Any, tmp_path: Path) -> None:
    folder = write_original(tmp_path, stock, tower=False)
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    _fail(folder, "vision tower .*: cannot load its image processor")
    (tmp_path / "clip" / "model.safetensors").unlink()
    _fail(folder, "vision tower .*: cannot load its weights")
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    _fail(folder, "vision tower .*: model_type 'siglip' is no CLIP")
    (tmp_path / "clip" / "config.json").write_text("{")
    _fail(folder, "vision tower .*: cannot read its config.json")


def test_a_tokenizer_in_sentencepiece_s_format_names_what_it_needs(
    stock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_original(tmp_path, stock, tower=True)
    (folder / "tokenizer.json").unlink()
    _fail(folder, "cannot load its tokenizer")
    (folder / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr("lvlm_radapt.loading.tokenizer.is_sentencepiece_available", lambda: False)
    _fail(folder, r"sentencepiece and protobuf: pip install 'lvlm-radapt\[original\]'")


# Hugging Face's own layouts


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("safe", [True, False])
def test_layouts_of_both_transformers_generations_open_equal(tmp_path: Path, safe: bool, shards: int) -> None:
    folders = [tiny_checkpoints.save_llava(tmp_path / name) for name in ("old", "new")]
    stock = tiny_random.llava()
    new = {key: value.clone() for key, value in stock.state_dict().items()}
    old: dict[str, Tensor] = {"language_model.lm_head.weight": stock.lm_head.weight.data}
    for key, value in stock.model.vision_tower.state_dict().items():
        old[f"vision_tower.vision_model.{key}"] = value
    for key, value in stock.model.language_model.state_dict().items():
        old[f"language_model.model.{key}"] = value
    for key, value in stock.model.multi_modal_projector.state_dict().items():
        old[f"multi_modal_projector.{key}"] = value
    for folder, weights in zip(folders, (old, new), strict=True):
        (folder / "model.safetensors").unlink()
        weights = {key: value.clone().contiguous() for key, value in weights.items()}
        write_shards(folder, weights, safe=safe, shards=shards)
    first, second = (load_model(folder) for folder in folders)
    assert same_weights(first, stock)
    assert same_weights(second, stock)
    batch = first.pixels([noise(60, 80)])
    assert torch.equal(first.loss(batch, PROMPTS[:1], TARGETS[:1]), second.loss(batch, PROMPTS[:1], TARGETS[:1]))
    assert first.generate(batch, PROMPTS[:1], 6) == second.generate(batch, PROMPTS[:1], 6)
