"""Models by name: an embedded one, a folder in Hugging Face layout, or a hub id."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from lvlm_radapt.errors import UserError
from lvlm_radapt.models.base import LVLM, Geometry, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.llava import LlavaLVLM
from lvlm_radapt.models.qwen import QwenLVLM

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]

FAMILIES: dict[str, tuple[type[LlavaLVLM] | type[QwenLVLM], str]] = {
    "llava": (LlavaLVLM, "LlavaForConditionalGeneration"),
    "qwen2_vl": (QwenLVLM, "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": (QwenLVLM, "Qwen2_5_VLForConditionalGeneration"),
}
"""model_type of a config.json -> (our class, the transformers class)."""

IMAGE_PROCESSORS: dict[str, str] = {
    "CLIPImageProcessor": "CLIPImageProcessorPil",
    "LlavaImageProcessor": "LlavaImageProcessorPil",
    "Qwen2VLImageProcessor": "Qwen2VLImageProcessorPil",
}
"""image_processor_type of a checkpoint -> the transformers class that needs PIL alone."""

EMBEDDED: dict[str, str] = {
    "tiny-llava": "a small LLaVA trained on procedural scenes",
    "tiny-qwen": "a small Qwen2.5-VL trained on procedural scenes",
    "tiny-clip": "a small CLIP trained on procedural scenes",
}


_BUILDING = threading.Lock()  # transformers swaps global initialisers while it builds a model


def embedded_models() -> dict[str, Path]:
    """Name -> folder of the models that ship inside the package (only those whose weights are there)."""
    root = Path(str(files("lvlm_radapt") / "tiny" / "weights"))
    return {name: root / name for name in EMBEDDED if (root / name / "config.json").is_file()}


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    geometry: Geometry | None = None,
    attn: Attention = "auto",
    conversation: str | None = None,
) -> LVLM:
    """A frozen LVLM in eval mode.

    name_or_path: an embedded name, a folder with a config.json, a robustified folder (the defence is in the
        model then), or a Hugging Face id (owner/name).
    dtype: what the weights are computed in, whatever they are stored in.
    geometry: `stock` as the checkpoint's image processor does; `pad` (LLaVA only) pads to a square first;
        None for what a robustified folder was saved with, and `stock` elsewhere.
    attn: attention implementation; `auto` is sdpa, the faster one in attacks.
    conversation: a named template (`vicuna_v1`, `qwen`) in place of the checkpoint's chat template.

    UserError, one line, when the name is unknown, the folder or its weights are incomplete or hold foreign
    keys, the model_type is unsupported, or the hub cannot be reached.
    """
    from lvlm_radapt.checkpoint import is_adapter, load_adapter

    shared: Any = {"device": device, "dtype": dtype, "attn": attn, "conversation": conversation}
    if os.fspath(name_or_path) not in embedded_models() and is_adapter(name_or_path):
        return load_adapter(name_or_path, geometry=geometry, **shared)
    return load_base(name_or_path, geometry="stock" if geometry is None else geometry, **shared)


def load_base(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    geometry: Geometry,
    attn: Attention,
    conversation: str | None,
) -> LVLM:
    """`load_model` for what is no robustified folder."""
    source, name = _locate(name_or_path)
    model_type = _model_type(source, name)
    if model_type not in FAMILIES:
        hint = "; it is an image encoder, usable as a surrogate or guide" if model_type == "clip" else ""
        raise UserError(f"{name}: model_type {model_type!r} is not supported, only {', '.join(FAMILIES)} are{hint}")
    family, hf_class = FAMILIES[model_type]
    hf = _weights(getattr(transformers, hf_class), source, name, device=device, dtype=dtype, attn=attn)
    tokenizer, image_processor = _tokenizer(source, name), _image_processor(source, name)
    return family(
        hf,
        tokenizer,
        image_processor,
        name=name,
        geometry=geometry,
        chat_template=_chat_template(source, tokenizer),
        conversation_name=conversation,
    )


def load_encoder(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    geometry: Geometry = "stock",
    attn: Attention = "auto",
    feature_layer: int = -2,
) -> CLIPEncoder:
    """A frozen CLIP encoder (a `CLIPModel` checkpoint), eval mode; arguments and errors as for `load_model`.

    feature_layer: the hidden layer that `features` reads.
    """
    source, name = _locate(name_or_path)
    model_type = _model_type(source, name)
    if model_type != "clip":
        raise UserError(f"{name}: model_type {model_type!r} is no image encoder that is supported, only clip is")
    hf = _weights(transformers.CLIPModel, source, name, device=device, dtype=dtype, attn=attn)
    return CLIPEncoder(
        hf,
        _tokenizer(source, name),
        _image_processor(source, name),
        name=name,
        geometry=geometry,
        feature_layer=feature_layer,
    )


def load_surrogate(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PixelModel:
    """A model to craft transfer images on: an LVLM, or a CLIP encoder (for embedding attacks)."""
    source, name = _locate(name_or_path)
    if _model_type(source, name) == "clip":
        return load_encoder(name_or_path, device=device, dtype=dtype)
    return load_model(name_or_path, device=device, dtype=dtype)


def _locate(name_or_path: str | os.PathLike[str]) -> tuple[str, str]:
    """(what from_pretrained takes, the name to show)."""
    text = os.fspath(name_or_path)
    embedded = embedded_models()
    if text in embedded:
        return str(embedded[text]), text
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{text}: the folder has no config.json, so it is no Hugging Face checkpoint")
        return str(path), text
    is_hub_id = text.count("/") == 1 and text[0] not in "./~" and not path.exists() and "\\" not in text
    if is_hub_id:
        return text, text
    if "/" in text or path.exists():
        raise UserError(f"{text}: no such folder (a Hugging Face id looks like owner/name)")
    near = difflib.get_close_matches(text, EMBEDDED, n=1, cutoff=0.0)
    raise UserError(f"model {text!r} is unknown, did you mean {near[0]}? (or give a folder, or owner/name)")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")


def _model_type(source: str, name: str) -> str:
    try:
        config, _ = transformers.PretrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot read its config.json: {_first_line(error)}") from error
    if not config:
        raise UserError(f"{name}: cannot read its config.json: not found there or in the local cache")
    return str(config.get("model_type", "missing"))


def _weights(
    hf_class: Any,
    source: str,
    name: str,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    attn: Attention,
) -> Any:
    implementation = "sdpa" if attn == "auto" else attn
    try:
        with _BUILDING, _no_loading_bar():
            model, info = hf_class.from_pretrained(
                source, dtype=dtype, attn_implementation=implementation, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"{name}: cannot load its weights: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    # constants that old checkpoints stored and newer code computes
    unexpected = sorted(k for k in info["unexpected_keys"] if not k.endswith(("position_ids", "inv_freq")))
    for what, keys in (("misses", missing), ("holds unknown", unexpected)):
        if keys:
            raise UserError(f"{name}: the checkpoint {what} weights {_some(keys)}: it is no plain {hf_class.__name__}")
    return model.to(device)


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    """Without transformers' bar over the weights being loaded; downloads keep theirs, they take minutes."""
    logging = transformers.utils.logging
    shown, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # and the hub's too
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        if not downloads:
            disable_progress_bars()


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _tokenizer(source: str, name: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"{name}: cannot load its tokenizer: {_first_line(error)}") from error


def _image_processor(source: str, name: str) -> Any:
    """The PIL class itself, named outright: torchvision's differs from it in the last bits, and transformers'
    automatic choice asks for torchvision in some versions even where PIL would do."""
    try:
        config, _ = transformers.CLIPImageProcessorPil.get_image_processor_dict(source)
        kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "missing")
        kind = kind.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
        if kind not in IMAGE_PROCESSORS:
            known = ", ".join(IMAGE_PROCESSORS)
            raise UserError(f"{name}: image processor {kind!r} is not supported, only {known} are")
        return getattr(transformers, IMAGE_PROCESSORS[kind]).from_pretrained(source)
    except (OSError, KeyError, ImportError) as error:
        raise UserError(f"{name}: cannot load its image processor: {_first_line(error)}") from error


def _chat_template(source: str, tokenizer: Any) -> Any:
    """The tokenizer's chat template, or else the processor's own file; None where there is neither."""
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    config, _ = transformers.ProcessorMixin.get_processor_dict(source)
    return config.get("chat_template")
