"""Checkpoints in the layout of LLaVA's own code (liuhaotian/llava-v1.5-7b and what is trained with that code).

There one config.json describes the language model and names the vision tower, whose weights may be among the
checkpoint's or not, and the image placeholder is no token of the vocabulary. Here they become transformers' own
model in memory: keys renamed, `<image>` added to the tokenizer, a row for it to the embeddings and to the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken
from torch import Tensor

from lvlm_radapt.loading.from_state_dict import check_shape, from_state_dict
from lvlm_radapt.loading.hf import first_keys, load_weights, read_generation_config
from lvlm_radapt.loading.image_processor import open_image_processor
from lvlm_radapt.loading.load_options import LoadOptions, OpeningError, opening_errors
from lvlm_radapt.loading.tokenizer import open_tokenizer
from lvlm_radapt.loading.weights import checkpoint_file, read_tensors, weight_files
from lvlm_radapt.models import clip, llava, llava_next
from lvlm_radapt.models.base import LVLM, Geometry
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.utils.errors import UserError

IMAGE_TOKEN = "<image>"

_LANGUAGE_MODELS = {"LlavaLlamaForCausalLM": "LlamaConfig", "LlavaMistralForCausalLM": "MistralConfig"}
_LANGUAGE_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "hidden_act", "rms_norm_eps", "max_position_embeddings"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"),
    *("rope_theta", "rope_scaling", "rope_parameters", "sliding_window"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)

_TOWER = "model.vision_tower."
_EMBEDDINGS, _HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
_RENAMED = {
    "model.vision_tower.vision_tower.vision_model.": _TOWER,
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.image_newline": "model.image_newline",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
    "lm_head.": "lm_head.",
}
# constants that old checkpoints stored and newer code computes
_COMPUTED = (".rotary_emb.inv_freq", ".embeddings.position_ids")


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether this content of a config.json is that of LLaVA's own code."""
    return "mm_vision_tower" in config and "vision_config" not in config


def load_original(
    source: str, name: str, config: Mapping[str, Any], *, geometry: Geometry | None, options: LoadOptions
) -> LVLM:
    """The LVLM of an original LLaVA-1.5 or LLaVA-1.6 checkpoint; arguments and errors as for `load_model`.

    config: the content of its config.json. geometry: None for what config.json says (`image_aspect_ratio`).
    the options' conversation: None for the one that the original code asks in: vicuna_v1, mistral_instruct over a
    Mistral, chatml_direct over a model that knows ChatML's tokens.

    The answers' likelihoods are over the original vocabulary and `<image>`, whose row of the head is the mean
    of all others: it is never the likeliest token, and moves no likelihood by more than log(1 + 1/V) nats.
    """
    views = _check_supported(config, name)
    tower, tower_name = _tower_source(config, source, name)
    language = _language_config(config, name)
    tokenizer = _read_tokenizer(source, language, name)
    image_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    rows = int(language.vocab_size)
    language.vocab_size = max(rows, image_id + 1)
    family, model_type = (llava_next.FAMILY, "llava_next") if views else (llava.FAMILY, "llava")
    hf_class = family.hf_class({"model_type": model_type})
    full = _full_config(config, hf_class, _tower_config(tower, tower_name), language, image_id, name)
    tensors = _renamed_tensors(source, name)
    tensors = _with_tower(tensors, tower, tower_name, dtype=options.dtype)
    for key in filter(tensors.__contains__, (_EMBEDDINGS, _HEAD)):
        check_shape(key, tensors[key], (rows, language.hidden_size), name)
        tensors[key] = _grown(tensors[key], language.vocab_size)
    hf = from_state_dict(hf_class, full, tensors, name, options, kept=family.unquantised)
    hf.config._name_or_path = source
    read_generation_config(hf, source, name)
    llava.LlavaLVLM.check_config(full, name)
    image_processor = open_image_processor(tower, tower_name)
    if views:
        image_processor = _in_views(image_processor, full.image_grid_pinpoints)
    if geometry is None:
        geometry = "pad" if config.get("image_aspect_ratio") == "pad" else "stock"
    # the tokenizer's own template, if any, knows no images; with this one the model can be saved and exported
    tokenizer.chat_template = _usual_conversation(language, tokenizer).chat_template(IMAGE_TOKEN)
    model: LVLM = family.build(
        hf,
        tokenizer,
        image_processor,
        name=name,
        geometry=geometry,
        chat_template=tokenizer.chat_template,
        conversation=options.conversation,
    )
    return model


def _check_supported(config: Mapping[str, Any], name: str) -> bool:
    """Whether it is a LLaVA-1.6, which cuts images into views; UserError for what transformers' classes lack."""
    kind = (config.get("architectures") or ["missing"])[0]
    aspect = config.get("image_aspect_ratio") or "square"
    needed: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "architectures": (kind, tuple(_LANGUAGE_MODELS)),
        "mm_projector_type": (config.get("mm_projector_type", "linear"), ("mlp2x_gelu",)),
        "mm_use_im_start_end": (config.get("mm_use_im_start_end", False), (False,)),
        "mm_vision_select_feature": (config.get("mm_vision_select_feature", "patch"), ("patch", "cls_patch")),
        "image_aspect_ratio": (aspect, ("pad", "square", "anyres")),
        "s2": (config.get("s2", False), (False,)),
    }
    if aspect == "anyres":
        needed["mm_patch_merge_type"] = (config.get("mm_patch_merge_type", "flat"), ("spatial_unpad",))
    for key, (value, known) in needed.items():
        if value not in known:
            only = ", ".join(map(str, known))
            raise UserError(
                f"{name}: an original LLaVA checkpoint with {key} {value!r} is not read, only {only}: "
                "take one converted to transformers' layout (llava-hf)"
            )
    return aspect == "anyres"


def _tower_source(config: Mapping[str, Any], source: str, name: str) -> tuple[str, str]:
    """(folder or hub id of the named vision tower, how to call it in messages)."""
    tower = config["mm_vision_tower"]
    if not isinstance(tower, str) or not tower:
        raise UserError(f"{name}: mm_vision_tower in config.json is {tower!r}: name a CLIP folder or hub id there")
    for folder in (Path(source) / tower, Path(tower).expanduser()):
        if (folder / "config.json").is_file():
            return str(folder), f"{name}: vision tower {tower}"
    if tower.count("/") != 1 or tower[0] in "./~" or checkpoint_file(tower, "config.json") is None:
        raise UserError(
            f"{name}: its vision tower {tower} is neither a folder nor in the local Hugging Face cache: download it "
            f"(hf download {tower if tower.count('/') == 1 else 'openai/clip-vit-large-patch14-336'}), or name "
            "another place of it as mm_vision_tower in config.json"
        )
    return tower, f"{name}: vision tower {tower}"


def _tower_config(tower: str, tower_name: str) -> Any:
    try:
        with opening_errors():
            kind = transformers.PretrainedConfig.get_config_dict(tower)[0].get("model_type", "missing")
            if kind in ("clip", "clip_vision_model"):
                return transformers.CLIPVisionConfig.from_pretrained(tower)
    except OpeningError as error:
        raise UserError(f"{tower_name}: cannot read its config.json: {error}") from error
    raise UserError(f"{tower_name}: model_type {kind!r} is no CLIP: only LLaVA over CLIP is read")


def _language_config(config: Mapping[str, Any], name: str) -> Any:
    chosen = {key: config[key] for key in _LANGUAGE_KEYS if config.get(key) is not None}
    config_class = getattr(transformers, _LANGUAGE_MODELS[config["architectures"][0]])
    if "sliding_window" in config and config_class is transformers.MistralConfig:
        chosen["sliding_window"] = config["sliding_window"]  # None says that there is none, and is no default
    missing = [key for key in ("vocab_size", "hidden_size", "num_hidden_layers") if key not in chosen]
    if missing:
        raise UserError(f"{name}: config.json lacks {', '.join(missing)}: download it again")
    try:
        with opening_errors():
            return config_class(**chosen)
    except OpeningError as error:
        raise UserError(f"{name}: config.json is no {config_class.__name__}: {error}") from error


def _read_tokenizer(source: str, language: Any, name: str) -> Any:
    """The checkpoint's tokenizer with `<image>`. The original code encodes the texts before and after the image
    apart, each with SentencePiece's leading space: `legacy` does so around a special token."""
    tokenizer = open_tokenizer(source, name, config=language, legacy=True)
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens(AddedToken(IMAGE_TOKEN, special=True, normalized=False), special_tokens=True)
    return tokenizer


def _full_config(
    config: Mapping[str, Any], hf_class: Any, tower_config: Any, language: Any, image_id: int, name: str
) -> Any:
    cls = config.get("mm_vision_select_feature", "patch") == "cls_patch"
    extra = {"image_grid_pinpoints": config["image_grid_pinpoints"]} if "image_grid_pinpoints" in config else {}
    try:
        with opening_errors():
            return hf_class.config_class(
                vision_config=tower_config,
                text_config=language,
                image_token_index=image_id,
                image_seq_length=(tower_config.image_size // tower_config.patch_size) ** 2 + cls,
                vision_feature_layer=config.get("mm_vision_select_layer", -2),
                vision_feature_select_strategy="full" if cls else "default",
                projector_hidden_act="gelu",
                tie_word_embeddings=False,
                **extra,
            )
    except OpeningError as error:
        raise UserError(f"{name}: config.json does not fit {hf_class.__name__}: {error}") from error


def _renamed_tensors(source: str, name: str) -> dict[str, Tensor]:
    """Everything in the weight files under transformers' names, still lying in the files."""
    tensors: dict[str, Tensor] = {}
    unknown: list[str] = []
    for path in weight_files(source, name):
        for key, tensor in read_tensors(path):
            if key.endswith(_COMPUTED):
                continue
            old = next((prefix for prefix in _RENAMED if key.startswith(prefix)), None)
            if old is None:
                unknown.append(key)
            else:
                tensors[_RENAMED[old] + key.removeprefix(old)] = tensor
    if unknown:
        raise UserError(
            f"{name}: the checkpoint holds unknown weights {first_keys(sorted(unknown))}: it is no plain LLaVA"
        )
    return tensors


def _with_tower(tensors: dict[str, Tensor], tower: str, tower_name: str, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """`tensors`, with the named tower's weights where the checkpoint brings none of its own."""
    if any(key.startswith(_TOWER) for key in tensors):
        return tensors
    hf_class = clip.FAMILY.hf_class(transformers.PretrainedConfig.get_config_dict(tower)[0])
    encoder = load_weights(hf_class, tower, tower_name, LoadOptions(dtype=dtype))
    vision = getattr(encoder, "vision_model", encoder)
    return tensors | {_TOWER + key: value for key, value in vision.state_dict().items()}


def _grown(weight: Tensor, rows: int) -> Tensor:
    """`weight` [V, D] with rows up to `rows`: the mean of the others, by which no logit can be the largest."""
    if len(weight) == rows:
        return weight
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def _in_views(processor: Any, pinpoints: Any) -> Any:
    return transformers.LlavaNextImageProcessorPil(
        size=dict(processor.size),
        crop_size=dict(processor.crop_size),
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        image_grid_pinpoints=pinpoints,
    )


def _usual_conversation(language: Any, tokenizer: Any) -> Conversation:
    if "<|im_start|>" in tokenizer.get_vocab():
        return CONVERSATIONS["chatml_direct"]
    return CONVERSATIONS["mistral_instruct" if language.model_type == "mistral" else "vicuna_v1"]
