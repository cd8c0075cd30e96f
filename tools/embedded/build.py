"""The embedded models' shapes, tokenizers and chat templates, in Hugging Face's own classes and files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from lvlm_radapt.embedded import scenes
from lvlm_radapt.utils.atomic_folder import open_to_umask

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PATCH = 14
WIDTH = 128

_LLAVA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %} ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _word_level(special: list[str], words: Iterable[str]) -> Tokenizer:
    words = [w for w in words if w not in special]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    return tokenizer


def llava_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, `<s>`/`</s>` around a turn as LLaVA-1.5's Llama tokenizer has them."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    core = _word_level(special, ["user", "assistant", ":", *scenes.vocabulary()])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"], padding_side="left", model_max_length=512,
    )  # fmt: skip
    tokenizer.chat_template = _LLAVA_TEMPLATE
    return tokenizer


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, with Qwen's chat and vision tokens."""
    special = [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
        "<|image_pad|>", "<|video_pad|>", "<unk>",
    ]  # fmt: skip
    core = _word_level(special, ["user", "assistant", "system", *scenes.vocabulary()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token="<unk>",
        additional_special_tokens=special[1:7], padding_side="left", model_max_length=512,
    )  # fmt: skip
    tokenizer.chat_template = _QWEN_TEMPLATE
    return tokenizer


def clip_tokenizer(words: Iterable[str] = (), length: int = 40) -> PreTrainedTokenizerFast:
    """Word-level over `words`, else the scenes'; the end token is the highest id, as CLIP's pooling by argmax expects.

    length: how many tokens a text may have.
    """
    core = _word_level(["<pad>", "<s>", "<unk>"], [*(words or scenes.vocabulary()), "</s>"])
    end = core.token_to_id("</s>")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=length,
    )  # fmt: skip


def vision_config() -> dict[str, Any]:
    """The CLIP tower that tiny-llava and tiny-clip share."""
    return {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 6, "num_attention_heads": 4,
        "image_size": scenes.SQUARE[0], "patch_size": PATCH, "projection_dim": 128, "hidden_act": "quick_gelu",
    }  # fmt: skip


def _text_config(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": WIDTH, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }  # fmt: skip


def llava() -> LlavaForConditionalGeneration:
    """tiny-llava with random weights: CLIP tower of 6 layers, read at layer -2; Llama of 4 layers."""
    tokenizer = llava_tokenizer()
    text = LlamaConfig(
        **_text_config(len(tokenizer)), pad_token_id=0, bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-6
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision_config()),
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(scenes.SQUARE[0] // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def clip() -> CLIPModel:
    """tiny-clip with random weights."""
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 40, "projection_dim": 128,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": len(tokenizer) - 1,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision_config(), projection_dim=128))


def qwen() -> Qwen2_5_VLForConditionalGeneration:
    """tiny-qwen with random weights: 5 vision blocks, windows of 56 px in all but blocks 2 and 4."""
    tokenizer = qwen_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    text = _text_config(len(tokenizer)) | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": ids("<|im_end|>"),
    }  # fmt: skip
    vision = {
        "depth": 5, "hidden_size": WIDTH, "intermediate_size": 384, "num_heads": 4, "out_hidden_size": WIDTH,
        "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
        "fullatt_block_indexes": [2, 4], "in_channels": 3,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


_PIXELS = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), "rescale_factor": 1 / 255, "resample": 3}


def clip_processor(side: int) -> dict[str, Any]:
    """The preprocessor_config.json of a CLIP of `side` px."""
    return _PIXELS | {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": side},
        "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_normalize": True,
        "do_rescale": True, "do_convert_rgb": True,
    }  # fmt: skip


BUILDERS = {
    "tiny-llava": (llava, llava_tokenizer),
    "tiny-clip": (clip, clip_tokenizer),
    "tiny-qwen": (qwen, qwen_tokenizer),
}


def save(name: str, model: torch.nn.Module, folder: Path) -> None:
    """Write `model` to `folder` as fp16 safetensors with tokenizer and image processor files."""
    folder.mkdir(parents=True, exist_ok=True)
    half: Any = model.to(torch.float16)
    generation = half.generation_config if hasattr(half, "generation_config") else None
    tokenizer = BUILDERS[name][1]()
    if generation is not None:
        generation.eos_token_id = tokenizer.eos_token_id
        generation.pad_token_id = tokenizer.pad_token_id
        generation.bos_token_id = tokenizer.bos_token_id
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    open_to_umask(folder)
    if name == "tiny-qwen":
        processor = _PIXELS | {
            "image_processor_type": "Qwen2VLImageProcessor", "patch_size": PATCH, "merge_size": 2,
            "temporal_patch_size": 2, "min_pixels": 56 * 56, "max_pixels": 224 * 224,
        }  # fmt: skip
    else:
        processor = clip_processor(scenes.SQUARE[0])
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
