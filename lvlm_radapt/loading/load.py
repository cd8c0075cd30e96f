"""Models by name: an embedded one, a folder in Hugging Face layout, or a hub id."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from lvlm_radapt.loading.load_options import Attention, DeviceMap, Opening, OpeningError, building, opening_errors
from lvlm_radapt.loading.processor_config import check_processor
from lvlm_radapt.loading.quantised import Quantisation
from lvlm_radapt.loading.weights import check_indices, check_weight_files, checkpoint_file, revision_of
from lvlm_radapt.models.base import LVLM, Geometry, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.conversations import Conversation, conversation_of
from lvlm_radapt.models.llava import LlavaLVLM
from lvlm_radapt.models.llava_next import LlavaNextLVLM
from lvlm_radapt.models.onevision import LlavaOnevisionLVLM
from lvlm_radapt.models.qwen import QwenLVLM, limited
from lvlm_radapt.models.qwen3 import Qwen3LVLM
from lvlm_radapt.models.siglip import SiglipEncoder
from lvlm_radapt.models.text import renders_image
from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from lvlm_radapt.loading.open_clip import Activation
    from lvlm_radapt.saving.export import StockCheckpoint

FAMILIES: dict[str, tuple[type[LlavaLVLM] | type[QwenLVLM], str]] = {
    "llava": (LlavaLVLM, "LlavaForConditionalGeneration"),
    "llava_next": (LlavaNextLVLM, "LlavaNextForConditionalGeneration"),
    "llava_onevision": (LlavaOnevisionLVLM, "LlavaOnevisionForConditionalGeneration"),
    "qwen2_vl": (QwenLVLM, "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": (QwenLVLM, "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": (Qwen3LVLM, "Qwen3VLForConditionalGeneration"),
}
"""model_type of a config.json -> (our class, the transformers class)."""

ENCODERS: dict[str, tuple[type[CLIPEncoder], str]] = {
    "clip": (CLIPEncoder, "CLIPModel"),
    "clip_vision_model": (CLIPEncoder, "CLIPVisionModel"),
    "siglip": (SiglipEncoder, "SiglipModel"),
    "siglip_vision_model": (SiglipEncoder, "SiglipVisionModel"),
}
"""The same for image encoders; a vision model comes without texts, hence without a tokenizer."""

_FIXED_CANVAS = "{name}: max pixels is for Qwen, whose canvas grows with the image; this model's is fixed, leave it out"
_PROJECTED = "CLIPVisionModelWithProjection"

IMAGE_PROCESSORS: dict[str, str] = {
    "CLIPImageProcessor": "CLIPImageProcessorPil",
    "LlavaImageProcessor": "LlavaImageProcessorPil",
    "LlavaNextImageProcessor": "LlavaNextImageProcessorPil",
    "LlavaOnevisionImageProcessor": "LlavaOnevisionImageProcessorPil",
    "Qwen2VLImageProcessor": "Qwen2VLImageProcessorPil",
    "SiglipImageProcessor": "SiglipImageProcessorPil",
}
"""image_processor_type of a checkpoint -> the transformers class that needs PIL alone."""

EMBEDDED: dict[str, str] = {
    "tiny-llava": "a small LLaVA trained on procedural scenes",
    "tiny-qwen": "a small Qwen2.5-VL trained on procedural scenes",
    "tiny-clip": "a small CLIP trained on procedural scenes",
    "tiny-clip-fare": "tiny-clip, adversarially fine-tuned (FARE): a tower for tiny-llava, a guide",
    "tiny-clip-tecoa": "tiny-clip, adversarially fine-tuned (TeCoA): a tower for tiny-llava, a guide",
}


def embedded_models() -> dict[str, Path]:
    """Name -> folder of the models that ship inside the package (only those whose weights are there)."""
    root = Path(str(files("lvlm_radapt") / "tiny" / "weights"))
    return {name: root / name for name in EMBEDDED if (root / name / "config.json").is_file()}


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    geometry: Geometry | None = None,
    attn: Attention = "auto",
    conversation: str | Conversation | None = None,
    tower: str | os.PathLike[str] | None = None,
    quantize: Quantisation | None = None,
    device_map: DeviceMap | None = None,
    offload_folder: str | None = None,
    max_pixels: int | None = None,
) -> LVLM:
    """A frozen LVLM in eval mode.

    name_or_path: an embedded name, a folder with a config.json (in Hugging Face's layout or LLaVA's original
        one), a robustified folder (the defence is in the model then), or a Hugging Face id (owner/name).
    dtype: what the weights are computed in, whatever they are stored in; None for what an adapter folder was saved
        from, and float32 elsewhere.
    geometry: `stock` as the checkpoint's image processor does; `pad` (LLaVA only) pads to a square first;
        None for what a robustified folder was saved with or an original LLaVA's config.json says (`pad` for
        LLaVA-1.5), and `stock` elsewhere. An image processor that pads by itself makes it `pad` in any case.
    attn: attention implementation; `auto` is sdpa, the faster one in attacks.
    conversation: one of `lvlm_radapt.models.conversations` (a name as `vicuna_v1`, `qwen`, `chatml`, or a whole one)
        in place of the checkpoint's chat template.
    tower: another vision tower in its place (LLaVA-1.5 only): what `load_encoder` takes, an open_clip, FARE or
        TeCoA file for one.
    quantize: `4bit` or `8bit`: the language model in so many bits (bitsandbytes), tower and projector in `dtype`.
    device_map: `auto` or a map of accelerate's spreads a model over GPUs, memory and disk, in place of `device`.
    offload_folder: for what the device map puts on the disk.
    max_pixels: of Qwen's canvas, in place of the checkpoint's own limit; a large photo is shrunk to it.

    UserError, one line, when the name is unknown, the folder or its weights are incomplete or hold foreign
    keys, the model_type is unsupported, or the hub cannot be reached.
    """
    from lvlm_radapt.saving.adapter import is_adapter, load_adapter
    from lvlm_radapt.saving.export import load_export

    if isinstance(conversation, str):
        conversation = conversation_of(conversation)
    dtype = stored_dtype(name_or_path) if dtype is None else dtype
    opening = Opening(device, dtype, attn, conversation, quantize, device_map, offload_folder, max_pixels)
    robustified = is_robustified(name_or_path)
    if tower is not None:
        if robustified:
            raise UserError(f"{name_or_path} is robustified for its own tower: give its base model another one")
        from lvlm_radapt.loading.replace_tower import load_tower

        return load_tower(load_base(name_or_path, geometry=geometry, opening=opening), tower, attn=attn)
    if robustified:
        load = load_adapter if is_adapter(name_or_path) else load_export
        return load(name_or_path, geometry=geometry, opening=opening)
    return load_base(name_or_path, geometry=geometry, opening=opening)


def is_robustified(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether `load_model` opens it with a defence inside: the folder of an adapter or of an export."""
    from lvlm_radapt.saving.adapter import is_adapter
    from lvlm_radapt.saving.export import is_export

    embedded = os.fspath(name_or_path) in embedded_models()
    return not embedded and (is_adapter(name_or_path) or is_export(name_or_path))


def load_base(name_or_path: str | os.PathLike[str], *, geometry: Geometry | None, opening: Opening) -> LVLM:
    """`load_model` for what is no robustified folder; of an exported one, the undefended model in it."""
    from lvlm_radapt.loading.llava_original import is_original, load_original
    from lvlm_radapt.saving.export import is_export, stock_checkpoint

    source, name = _locate(name_or_path)
    config = _config(source, name)
    if is_original(config):
        if opening.max_pixels is not None:
            raise UserError(_FIXED_CANVAS.format(name=name))
        model = load_original(source, name, config, geometry=geometry, opening=opening)
        model.revision = revision_of(source)
        return model
    stored = stock_checkpoint(source) if is_export(source) else None
    model_type = str(config.get("model_type", "missing")) if stored is None else stored.model_type
    if model_type not in FAMILIES:
        hint = "; it is an image encoder, usable as a surrogate or guide" if model_type in ENCODERS else ""
        known = ", ".join(FAMILIES)
        hint = hint or "; to add a family see 'Add a family' in the README"
        raise UserError(f"{name}: model_type {model_type!r} is not supported, only {known} are{hint}")
    family, hf_class = FAMILIES[model_type]
    if opening.max_pixels is not None and not issubclass(family, QwenLVLM):
        raise UserError(_FIXED_CANVAS.format(name=name))
    hf = _weights(getattr(transformers, hf_class), source, name, opening, stored=stored)
    tokenizer, image_processor = (
        open_tokenizer(source, name, **({} if stored is None else {"config": hf.config})),
        _image_processor(source, name),
    )
    read_generation_config(hf, source, name)
    _check_image_token(hf, tokenizer, name)
    if issubclass(family, LlavaLVLM):
        check_layers(hf.config, name)
    if issubclass(family, QwenLVLM):
        image_processor = limited(image_processor, opening.max_pixels, name)
    if family is LlavaLVLM and getattr(image_processor, "do_pad", False):
        geometry = "pad"  # such a processor pads by itself, as that of a saved original LLaVA does
    image_token = tokenizer.convert_ids_to_tokens(hf.config.image_token_id)
    tokenizer.chat_template = _chat_template(source, name, tokenizer, image_token)  # which is what will be saved
    model = family(
        hf,
        tokenizer,
        image_processor,
        name=name,
        geometry="stock" if geometry is None else geometry,
        chat_template=tokenizer.chat_template,
        conversation=opening.conversation,
    )
    model.revision, model.max_pixels = revision_of(source), opening.max_pixels
    return model


def read_generation_config(hf: Any, source: str, name: str) -> None:
    """The checkpoint's generation settings, if it has any; UserError where transformers would pass over a damaged
    file, and the answers would end elsewhere."""
    if checkpoint_file(source, "generation_config.json") is None:
        return
    try:
        with opening_errors():
            hf.generation_config = transformers.GenerationConfig.from_pretrained(source)
    except OpeningError as error:
        raise UserError(f"{name}: cannot read its generation_config.json: {error}") from error
    ends = hf.generation_config.eos_token_id
    each = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in each):
        raise UserError(f"{name}: generation_config.json has eos_token_id {str(ends)[:60]}: it must be ids of tokens")


def _check_image_token(hf: Any, tokenizer: Any, name: str) -> None:
    image_id = hf.config.image_token_id
    rows = hf.get_input_embeddings().num_embeddings
    if not 0 <= image_id < rows or tokenizer.convert_ids_to_tokens(image_id) is None:
        raise UserError(f"{name}: config.json names {image_id} as the image token, which is not in the vocabulary")


def check_layers(config: Any, name: str) -> None:
    """UserError where a LLaVA's config has a hidden layer of the tower read that is not there."""
    depth = int(config.vision_config.num_hidden_layers)
    layer = lost_layer(config, depth)
    if layer is not None:
        raise UserError(f"{name}: config.json has layer {layer} of the vision tower read, which has {depth} layers")


def lost_layer(config: Any, depth: int) -> int | None:
    """The first hidden layer that a LLaVA's config has read and a tower of that depth does not have."""
    layers = config.vision_feature_layer
    each = [layers] if isinstance(layers, int) else layers
    return next((layer for layer in each if not -depth - 1 <= layer <= depth), None)


def load_encoder(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    geometry: Geometry | None = None,
    attn: Attention = "auto",
    feature_layer: int = -2,
    activation: Activation | None = None,
) -> CLIPEncoder:
    """A frozen image encoder, eval mode; arguments and errors as for `load_model`.

    A `CLIPModel` or `SiglipModel` checkpoint (a `SiglipEncoder` then), or a bare `CLIPVisionModel` (with its
    projection or not) or `SiglipVisionModel`, which has no texts; a weight file in open_clip's layout (FARE,
    TeCoA), as `lvlm_radapt.loading.open_clip` reads it; or the adapter folder of one of these.

    geometry: None for what an adapter folder was saved with, `stock` elsewhere.
    feature_layer: the hidden layer that `features` reads.
    activation: of an open_clip file that does not tell.
    """
    from lvlm_radapt.loading.open_clip import is_open_clip, load_open_clip
    from lvlm_radapt.saving.adapter import is_adapter, load_encoder_adapter

    embedded = os.fspath(name_or_path) in embedded_models()
    dtype = stored_dtype(name_or_path) if dtype is None else dtype
    shared: Any = {"device": device, "dtype": dtype, "attn": attn}
    if not embedded and is_adapter(name_or_path):

        def base(name: str, geometry: Geometry) -> CLIPEncoder:
            if is_adapter(name):  # what no adapter of ours says of its base
                raise UserError(f"{name} is an adapter folder itself")
            return load_encoder(name, geometry=geometry, feature_layer=feature_layer, activation=activation, **shared)

        return load_encoder_adapter(name_or_path, base, geometry=geometry)
    shared["geometry"] = geometry = geometry or "stock"
    if not embedded and is_open_clip(name_or_path):
        return load_open_clip(name_or_path, activation=activation, feature_layer=feature_layer, **shared)
    if activation is not None:
        raise UserError(f"{os.fspath(name_or_path)}: its config.json tells the activation, leave it out")
    source, name = _locate(name_or_path)
    config = _config(source, name)
    model_type = str(config.get("model_type", "missing"))
    if model_type not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise UserError(f"{name}: model_type {model_type!r} is no image encoder that is supported, only {known} are")
    encoder, _ = ENCODERS[model_type]
    hf = _weights(encoder_class(config), source, name, Opening(device, dtype, attn))
    model = encoder(
        hf,
        None if model_type.endswith("_vision_model") else open_tokenizer(source, name),
        _image_processor(source, name),
        name=name,
        geometry=geometry,
        feature_layer=feature_layer,
    )
    model.revision = revision_of(source)
    return model


def stored_dtype(name_or_path: str | os.PathLike[str]) -> torch.dtype:
    """What a model of that name is opened in where nothing else is asked for: an adapter's own precision, or
    float32."""
    from lvlm_radapt.saving.adapter import adapter_dtype, is_adapter

    embedded = os.fspath(name_or_path) in embedded_models()
    return adapter_dtype(name_or_path) if not embedded and is_adapter(name_or_path) else torch.float32


def encoder_class(config: Mapping[str, Any]) -> Any:
    """The transformers class of an image encoder with that config.json: one model_type stands for two of CLIP's."""
    projected = config["model_type"] == "clip_vision_model" and _PROJECTED in str(config.get("architectures"))
    return getattr(transformers, _PROJECTED if projected else ENCODERS[config["model_type"]][1])


def load_any(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    geometry: Geometry | None = None,
    conversation: str | Conversation | None = None,
    tower: str | os.PathLike[str] | None = None,
    quantize: Quantisation | None = None,
    device_map: DeviceMap | None = None,
    max_pixels: int | None = None,
) -> PixelModel:
    """Whatever that name stands for, with its defence if it has one: `load_encoder` or `load_model`.

    An encoder holds no conversation, whatever its template. UserError for a tower, quantisation, device map or
    limit of pixels in an encoder, and as for the two.
    """
    if not is_encoder(name_or_path):
        return load_model(
            name_or_path, device=device, dtype=dtype, geometry=geometry, conversation=conversation, tower=tower,
            quantize=quantize, device_map=device_map, max_pixels=max_pixels,
        )  # fmt: skip
    for what, given in (
        ("another tower", tower),
        ("quantisation", quantize),
        ("a device map", device_map),
        ("max pixels", max_pixels),
    ):
        if given is not None:
            raise UserError(f"{os.fspath(name_or_path)} is an image encoder, opened whole: leave {what} out")
    return load_encoder(name_or_path, device=device, dtype=dtype, geometry=geometry)


def is_encoder(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether `load_encoder` is who opens it, an adapter folder by its base; UserError where nothing is to open."""
    from lvlm_radapt.loading.open_clip import is_open_clip
    from lvlm_radapt.saving.adapter import base_name, is_adapter

    text = os.fspath(name_or_path)
    embedded = text in embedded_models()
    if not embedded and is_adapter(text):
        base = base_name(text)
        try:
            return not is_adapter(base) and is_encoder(base)
        except UserError as error:
            raise UserError(f"cannot open the base model of the adapter {text}: {error}") from error
    if not embedded and is_open_clip(text):
        return True
    source, name = _locate(text)
    return str(_config(source, name).get("model_type", "missing")) in ENCODERS


def load_surrogate(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PixelModel:
    """A model to craft transfer images on: an LVLM, or an image encoder. UserError for a robustified folder: what
    transfers from an undefended model is asked."""
    if is_robustified(name_or_path):
        raise UserError(f"{os.fspath(name_or_path)} is robustified: a surrogate is an undefended model, name its base")
    return load_any(name_or_path, device=device, dtype=dtype)


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


def _config(source: str, name: str) -> dict[str, Any]:
    try:
        with opening_errors():
            config = dict(transformers.PretrainedConfig.get_config_dict(source)[0])
    except OpeningError as error:
        raise UserError(f"{name}: cannot read its config.json: {error}") from error
    if not config:
        raise UserError(f"{name}: cannot read its config.json: not found there or in the local cache")
    stored = config.get("quantization_config")
    if stored is not None:
        method = stored.get("quant_method", "unknown") if isinstance(stored, Mapping) else "unknown"
        raise UserError(
            f"{name} is quantised already ({str(method)[:40]}), which is not supported: use the checkpoint that it was "
            "made from, with --quantize 4bit or 8bit"
        )
    return config


def _weights(hf_class: Any, source: str, name: str, opening: Opening, *, stored: StockCheckpoint | None = None) -> Any:
    """The model `hf_class` from the checkpoint `source`, or from what `stored` holds of it."""
    check_indices(source)
    shared = opening.arguments() | {"output_loading_info": True}
    try:
        with opening.fitting(name), building():
            if stored is None:
                model, info = hf_class.from_pretrained(source, **shared)
            else:
                config = hf_class.config_class.from_dict(stored.config)
                model, info = hf_class.from_pretrained(None, config=config, state_dict=stored.weights, **shared)
            _check_keys(hf_class, info)
            return opening.place(model)
    except OpeningError as error:
        if stored is None:
            check_weight_files(source, name)
        raise UserError(f"{name}: cannot load its weights: {error}") from error


def _check_keys(hf_class: Any, info: dict[str, Any]) -> None:
    """OpeningError unless the checkpoint gave each weight of the model and no other."""
    missing = sorted(info["missing_keys"])
    # constants that old checkpoints stored and newer code computes
    unexpected = sorted(k for k in info["unexpected_keys"] if not k.endswith(("position_ids", "inv_freq")))
    for what, keys in (("misses", missing), ("holds unknown", unexpected)):
        if keys:
            raise OpeningError(f"the checkpoint {what} weights {_some(keys)}: it is no plain {hf_class.__name__}")


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def open_tokenizer(source: str, name: str, **given: Any) -> Any:
    """The checkpoint's tokenizer; `given` goes to transformers. UserError, one line, which names the extra to install
    where packages for SentencePiece's format are all it lacks."""
    packages = is_sentencepiece_available() and is_protobuf_available()
    lacking = UserError(
        f"{name}: its tokenizer needs two packages, sentencepiece and protobuf: pip install 'lvlm-radapt[original]'"
    )
    slow_only = checkpoint_file(source, "tokenizer.json") is None and any(
        checkpoint_file(source, file) is not None for file in ("tokenizer.model", "spiece.model")
    )
    if slow_only and not packages:
        raise lacking
    try:
        with opening_errors():
            return transformers.AutoTokenizer.from_pretrained(source, **given)
    except OpeningError as error:
        cause = error.__cause__
        if not packages and isinstance(cause, ImportError) and "sentencepiece" in str(cause).lower():
            raise lacking from error
        raise UserError(f"{name}: cannot load its tokenizer: {error}") from error


def _image_processor(source: str, name: str) -> Any:
    """The PIL class itself, named outright: torchvision's resizes otherwise, by up to 17 of 255 levels on a photo for
    Qwen2.5-VL, and transformers' automatic choice asks for torchvision in some versions even where PIL would do."""
    try:
        with opening_errors():
            config, _ = transformers.CLIPImageProcessorPil.get_image_processor_dict(source)
            kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "missing")
            kind = kind.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
            if kind in IMAGE_PROCESSORS:
                check_processor(config)
                return getattr(transformers, IMAGE_PROCESSORS[kind]).from_pretrained(source)
    except OpeningError as error:
        raise UserError(f"{name}: cannot load its image processor: {error}") from error
    raise UserError(f"{name}: image processor {kind!r} is not supported, only {', '.join(IMAGE_PROCESSORS)} are")


def _chat_template(source: str, name: str, tokenizer: Any, image_token: str) -> str | None:
    """The template that transformers' AutoProcessor takes: the processor's own, whichever file holds it. Many released
    tokenizers have a text-only one beside it, so theirs counts only where the processor has none and it renders an
    image. None where there is neither."""
    try:
        with opening_errors():
            config, _ = transformers.ProcessorMixin.get_processor_dict(source)
    except OpeningError as error:
        raise UserError(f"{name}: cannot read its chat template: {error}") from error
    own = _default_template(config.get("chat_template"))
    if own is not None:
        return own
    template = _default_template(tokenizer.chat_template)
    return template if template is not None and renders_image(tokenizer, template, image_token) else None


def _default_template(templates: Any) -> Any:
    """Of several named templates the default one, as transformers takes it."""
    return templates.get("default") if isinstance(templates, Mapping) else templates
