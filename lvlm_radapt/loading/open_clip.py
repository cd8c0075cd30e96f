"""Image encoders in open_clip's layout: FARE, TeCoA and TGA towers, and what open_clip itself saves.

Only the vision side is read, without open_clip: the state dict's names and shapes tell everything except the
activation. The wrong one goes unnoticed (features merely become poor), so it must be known: from the caller, from
`quick_gelu` in an open_clip_config.json beside the weights, or from the name. `quickgelu` in the name of the file or
of its folder says so, and so do `fare`, `tecoa` and `tga`, whose towers all come from OpenAI's CLIP.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from pydantic import BaseModel, ConfigDict, PositiveFloat, StrictBool
from torch import Tensor

from lvlm_radapt.loading.from_state_dict import from_state_dict
from lvlm_radapt.loading.hf import first_keys
from lvlm_radapt.loading.load_options import Attention, LoadOptions
from lvlm_radapt.loading.weights import checkpoint_file, read_pickle, read_tensors
from lvlm_radapt.models.base import Geometry
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json, validated

Activation = Literal["quick_gelu", "gelu"]

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".safetensors"})

_WRAPPERS = ("vision_encoder_state_dict", "state_dict")
_PREFIXES = ("module.", "visual.")
_FROM_OPENAI = re.compile(r"quick[-_]?gelu|(?<![a-z])(fare|tecoa|tga)(?![a-z])", re.IGNORECASE)
_ONCE = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# settings of open_clip's towers that change nothing here, or that the weights show
_HARMLESS = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout", "output_tokens"}
_USUAL = {"pool_type": "tok", "pos_embed_type": "learnable"}


class _Part(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, protected_namespaces=())


class _ModelConfig(_Part):
    quick_gelu: StrictBool | None = None
    vision_cfg: dict[str, Any] = {}


class _PreprocessConfig(_Part):
    mean: tuple[float, float, float] | None = None
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    resize_mode: Literal["shortest"] | None = None
    interpolation: Literal["bicubic"] | None = None


class _Config(_Part):
    """What is read of an open_clip_config.json."""

    model_cfg: _ModelConfig = _ModelConfig()
    preprocess_cfg: _PreprocessConfig = _PreprocessConfig()


def is_open_clip(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether it is a weight file, or a folder or hub repository with an open_clip_config.json and no config.json."""
    text = os.fspath(name_or_path)
    path = Path(text).expanduser()
    if path.is_dir():
        return (path / CONFIG).is_file() and not (path / "config.json").is_file()
    if path.suffix.lower() in SUFFIXES:
        return True
    is_hub_id = text.count("/") == 1 and text[0] not in "./~" and not path.exists()
    return is_hub_id and checkpoint_file(text, "config.json") is None and checkpoint_file(text, CONFIG) is not None


def load_open_clip(
    name_or_path: str | os.PathLike[str],
    *,
    activation: Activation | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    geometry: Geometry = "stock",
    attn: Attention = "auto",
    feature_layer: int = -2,
) -> CLIPEncoder:
    """A frozen CLIP image encoder from open_clip's state dict; it has no texts.

    name_or_path: a .pt, .pth, .bin, .ckpt or .safetensors file, or a folder or hub id with an open_clip_config.json.
        The state dict is a whole CLIP's (`visual.*` is taken) or the vision side's, bare or under
        `vision_encoder_state_dict` or `state_dict`, with or without `module.` before its names.
    activation: None for what an open_clip_config.json beside the weights or the name says (see above).

    Width, patch size, depth, image size and the projection's width come from the tensors' shapes, the number of
    heads from `head_width` in open_clip_config.json, or 64 (all towers up to width 1024). Pixels are normalised as
    that file says, or as OpenAI's CLIP does. UserError, one line, where something is missing, unknown or unsure.
    """
    name = os.fspath(name_or_path)
    file, config = _files(name)
    activation = activation or _activation(file, config, name)
    if activation not in ("quick_gelu", "gelu"):
        raise UserError(f"{name}: activation {activation!r} is unknown, choose quick_gelu or gelu")
    state = _visual(file)
    settings = _settings(state, config.model_cfg.vision_cfg, name)
    tensors = _renamed(state, name)
    hf_class: Any = transformers.CLIPVisionModel
    if "proj" in state:
        hf_class = transformers.CLIPVisionModelWithProjection
        tensors = {f"vision_model.{key}": value for key, value in tensors.items()}
        tensors["visual_projection.weight"] = state["proj"].T.contiguous()
    full = transformers.CLIPVisionConfig(hidden_act=activation, layer_norm_eps=1e-5, **settings)
    hf = from_state_dict(hf_class, full, tensors, name, LoadOptions(device, dtype, attn))
    return CLIPEncoder(
        hf,
        None,
        _image_processor(settings["image_size"], config.preprocess_cfg),
        name=name,
        geometry=geometry,
        feature_layer=feature_layer,
    )


def _files(name: str) -> tuple[Path, _Config]:
    """(the weights, what an open_clip_config.json says, if anything)."""
    path = Path(name).expanduser()
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        if not path.is_file():
            raise UserError(f"{name}: no such file")
        beside = path.parent / CONFIG
        return path, _read_config(beside) if beside.is_file() else _Config()
    source = str(path) if path.is_dir() else name
    found = next(filter(None, (checkpoint_file(source, file) for file in WEIGHTS)), None)
    config = checkpoint_file(source, CONFIG)
    if found is None or config is None:
        raise UserError(f"{name}: there is no {' or '.join(WEIGHTS)} beside its {CONFIG}: download one")
    return found, _read_config(config)


def _read_config(path: Path) -> _Config:
    return validated(_Config, read_json(path), path)


def _activation(file: Path, config: _Config, name: str) -> Activation:
    told = config.model_cfg.quick_gelu
    if told is not None:
        return "quick_gelu" if told else "gelu"
    is_local = Path(name).expanduser().exists()  # or else a hub id, and the file lies in the cache
    if any(_FROM_OPENAI.search(part) for part in ((file.name, file.parent.name) if is_local else (file.name, name))):
        return "quick_gelu"
    raise UserError(
        f"{name}: its activation is not among the weights: pass activation='quick_gelu' (OpenAI's CLIP and what was "
        f'tuned from it) or \'gelu\', or say so in a {CONFIG} beside it ({{"model_cfg": {{"quick_gelu": true}}}})'
    )


def _visual(file: Path) -> dict[str, Tensor]:
    """The vision side's state dict under open_clip's names, every wrapping taken off."""
    content: Any = dict(read_tensors(file)) if file.suffix.lower() == ".safetensors" else read_pickle(file)
    while isinstance(content, Mapping) and (inner := next(filter(content.__contains__, _WRAPPERS), None)):
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{file} holds no state dict of a vision encoder: save the model's state_dict()")
    state = {str(key): value for key, value in content.items()}
    for prefix in _PREFIXES:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = inside or state
    if any(key.startswith("trunk.stages.") for key in state):
        raise UserError(
            f"{file} is a ConvNeXt: it has no attention to mix an anchor into and no patch tokens, so it is not read; "
            "give the ViT of the same release"
        )
    if not all(isinstance(value, Tensor) for value in state.values()) or "conv1.weight" not in state:
        raise UserError(
            f"{file} holds no vision transformer in open_clip's layout (no visual.conv1.weight among its tensors): "
            "give a FARE, TeCoA or open_clip ViT checkpoint"
        )
    return state


def _settings(state: Mapping[str, Tensor], vision_cfg: Mapping[str, Any], name: str) -> dict[str, int]:
    """CLIPVisionConfig's sizes, from the shapes."""
    if "ln_pre.weight" not in state and "transformer.resblocks.0.ln_1.weight" in state:
        raise UserError(
            f"{name}: its vision side has no norm before its blocks (ln_pre), as Delta-CLIP's and CLIPA's have none; "
            "transformers' CLIP always has one, so it is not read"
        )
    odd = sorted(k for k, v in vision_cfg.items() if k not in _HARMLESS and v and v != _USUAL.get(k))
    if odd:
        raise UserError(f"{name}: {CONFIG} has {odd[0]} in vision_cfg, which is not read: take a plain ViT")
    conv, positions = state["conv1.weight"], state.get("positional_embedding")
    hidden = state.get("transformer.resblocks.0.mlp.c_fc.weight")
    if conv.ndim != 4 or positions is None or positions.ndim != 2 or hidden is None or hidden.ndim != 2:
        raise UserError(f"{name}: its vision side is no plain ViT of open_clip's: take one with CLS and positions")
    width, patch = int(conv.shape[0]), int(conv.shape[-1])
    grid = math.isqrt(max(len(positions) - 1, 0))
    if grid < 1 or grid * grid != len(positions) - 1:
        raise UserError(f"{name}: {len(positions)} positions are no CLS token and a square of patches")
    head = vision_cfg.get("head_width", 64 if width <= 1024 else None)
    if not isinstance(head, int) or head < 1 or width % head:
        raise UserError(
            f"{name}: the number of heads of a tower of width {width} is not among the weights: put head_width into "
            f"vision_cfg of a {CONFIG} beside it"
        )
    blocks = [int(found[1]) for key in state if (found := _BLOCK.fullmatch(key))]
    return {
        "hidden_size": width,
        "intermediate_size": int(hidden.shape[0]),
        "num_hidden_layers": 1 + max(blocks),
        "num_attention_heads": width // head,
        "patch_size": patch,
        "image_size": grid * patch,
        "projection_dim": int(state["proj"].shape[-1]) if "proj" in state else width,
    }


def _renamed(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Everything but `proj` under CLIPVisionModel's names; the joint projection of q, k and v in three."""
    tensors: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        block = _BLOCK.fullmatch(key)
        joint = re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", key)
        if key in _ONCE:
            tensors[_ONCE[key]] = tensor
        elif block and block[2] in _PARTS:
            tensors[f"encoder.layers.{block[1]}.{_PARTS[block[2]]}.{block[3]}"] = tensor
        elif joint and len(tensor) % 3 == 0:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                tensors[f"encoder.layers.{joint[1]}.self_attn.{part}_proj.{joint[2]}"] = piece.contiguous()
        elif key != "proj":
            unknown.append(key)
    if unknown:
        raise UserError(f"{name}: unknown weights {first_keys(sorted(unknown))}: its vision side is no plain CLIP ViT")
    return tensors


def _image_processor(side: int, preprocess: _PreprocessConfig) -> Any:
    told = {f"image_{key}": list(value) for key in ("mean", "std") if (value := getattr(preprocess, key)) is not None}
    crop = {"height": side, "width": side}
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop, **told)
