"""Checkpoints as the original LLaVA code writes them."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import tiny_checkpoints, tiny_random

IMAGE_ID = tiny_random.VOCAB  # the first free row: the original vocabulary does not know <image>


def stock_llava(kind: str = "llava", **vision: Any) -> Any:
    """A stock model with a row for <image> after the original vocabulary: in the head the mean of the others."""
    text = tiny_random.llava().config.text_config
    text.vocab_size = IMAGE_ID + 1
    settings: dict[str, Any] = {
        "vision_config": tiny_random.clip_vision_config(**vision),
        "text_config": text,
        "image_token_index": IMAGE_ID,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    if kind == "llava":
        config = transformers.LlavaConfig(**settings)
        model = transformers.LlavaForConditionalGeneration(config)
    else:
        settings["image_grid_pinpoints"] = [[56, 112], [112, 56], [112, 112]]
        model = transformers.LlavaNextForConditionalGeneration(transformers.LlavaNextConfig(**settings))
    tiny_random.randomise(model, 5)
    for weight in (model.lm_head.weight, model.model.language_model.embed_tokens.weight):
        weight[-1] = weight[:-1].mean(0)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return model


def original_weights(stock: Any, *, tower: bool) -> dict[str, Tensor]:
    """What LLaVA's own code would save of `stock`."""
    weights: dict[str, Tensor] = {}
    for key, value in stock.model.language_model.state_dict().items():
        weights[f"model.{key}"] = value
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:IMAGE_ID]
    weights["lm_head.weight"] = stock.lm_head.weight.data[:IMAGE_ID]
    first, second = stock.model.multi_modal_projector.linear_1, stock.model.multi_modal_projector.linear_2
    for number, layer in ((0, first), (2, second)):
        weights[f"model.mm_projector.{number}.weight"] = layer.weight.data
        weights[f"model.mm_projector.{number}.bias"] = layer.bias.data
    if tower:
        for key, value in stock.model.vision_tower.state_dict().items():
            weights[f"model.vision_tower.vision_tower.vision_model.{key}"] = value
        ids = torch.arange(stock.model.vision_tower.embeddings.num_positions)[None]
        weights["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = ids
    if hasattr(stock.model, "image_newline"):
        weights["model.image_newline"] = stock.model.image_newline.data
    # as the transformers of that time stored it
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    return {key: value.clone().contiguous() for key, value in weights.items()}


def write_shards(folder: Path, weights: dict[str, Tensor], *, safe: bool, shards: int) -> None:
    stem, end = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    names = [f"{stem}-{i + 1:05d}-of-{shards:05d}.{end}" for i in range(shards)] if shards > 1 else [f"{stem}.{end}"]
    places = {key: names[i % shards] for i, key in enumerate(sorted(weights))}
    for file in names:
        part = {key: weights[key] for key, place in places.items() if place == file}
        if safe:
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))


def original_config(stock: Any, tower: Path | str) -> dict[str, Any]:
    text = stock.config.text_config
    return {
        "_name_or_path": "llava-v1.5-7b",
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "intermediate_size": text.intermediate_size,
        "max_length": 4096,
        "max_position_embeddings": 512,
        "mm_hidden_size": text.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(tower),
        "model_type": "llava",
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": IMAGE_ID,
    }


def write_tower(folder: Path, stock: Any, *, whole_clip: bool = False) -> Path:
    """The tower's own checkpoint: a bare one, or a whole CLIP as openai's is."""
    side = stock.config.vision_config.image_size
    if whole_clip:
        clip = tiny_random.clip(seed=9, image_size=side)
        clip.vision_model.load_state_dict(stock.model.vision_tower.state_dict())
        clip.save_pretrained(folder)
    else:
        copy.deepcopy(stock.model.vision_tower).save_pretrained(folder)
    tiny_checkpoints.clip_processor(side).save_pretrained(folder)
    return folder


def write_original(root: Path, stock: Any, *, tower: bool, safe: bool = False, shards: int = 2, **config: Any) -> Path:
    """root/llava in the original layout, its tower in root/clip (with other weights where llava has its own)."""
    folder = root / "llava"
    folder.mkdir(parents=True)
    named = copy.deepcopy(stock)
    if tower:
        tiny_random.randomise(named.model.vision_tower, 77)
    clip = write_tower(root / "clip", named, whole_clip=not tower)
    write_shards(folder, original_weights(stock, tower=tower), safe=safe, shards=shards)
    (folder / "config.json").write_text(json.dumps(original_config(stock, clip) | config))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    tokenizer = tiny_checkpoints.word_tokenizer({}, bos=True, eos="</s>")
    tokenizer.save_pretrained(folder)
    return folder
