"""Models by name: whatever it stands for, opened."""

from __future__ import annotations

import os
from typing import Any

import torch

from lvlm_radapt.loading.adapter import load_adapter, load_encoder_adapter
from lvlm_radapt.loading.adapter_files import adapter_dtype, base_name, is_adapter
from lvlm_radapt.loading.export import load_export
from lvlm_radapt.loading.export_files import is_export
from lvlm_radapt.loading.first_input import tried
from lvlm_radapt.loading.load_options import Attention, DeviceMap, LoadOptions
from lvlm_radapt.loading.locate import embedded_models
from lvlm_radapt.loading.open_clip import Activation
from lvlm_radapt.loading.quantised import Quantisation
from lvlm_radapt.loading.replace_tower import load_tower
from lvlm_radapt.loading.stock import is_stock_encoder, load_stock, load_stock_encoder
from lvlm_radapt.loading.weights import checkpoint_dtype
from lvlm_radapt.models.base import LVLM, Geometry, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.conversations import Conversation, conversation_of
from lvlm_radapt.models.several import SeveralModels
from lvlm_radapt.utils.errors import UserError

__all__ = [
    "embedded_models",
    "is_encoder",
    "is_robustified",
    "load_any",
    "load_encoder",
    "load_model",
    "load_surrogate",
    "stored_dtype",
]


@tried
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
    if isinstance(conversation, str):
        conversation = conversation_of(conversation)
    dtype = stored_dtype(name_or_path, device) if dtype is None else dtype
    options = LoadOptions(device, dtype, attn, conversation, quantize, device_map, offload_folder, max_pixels)
    robustified = is_robustified(name_or_path)
    if tower is not None:
        if robustified:
            raise UserError(f"{name_or_path} is robustified for its own tower: give its base model another one")
        return load_tower(load_stock(name_or_path, geometry=geometry, options=options), tower, attn=attn)
    if robustified:
        load = load_adapter if is_adapter(name_or_path) else load_export
        return load(name_or_path, geometry=geometry, options=options)
    return load_stock(name_or_path, geometry=geometry, options=options)


def is_robustified(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether `load_model` opens it with a defence inside: the folder of an adapter or of an export."""
    embedded = os.fspath(name_or_path) in embedded_models()
    return not embedded and (is_adapter(name_or_path) or is_export(name_or_path))


@tried
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
    options = LoadOptions(device, stored_dtype(name_or_path, device) if dtype is None else dtype, attn)
    more: Any = {"options": options, "feature_layer": feature_layer, "activation": activation}
    if os.fspath(name_or_path) not in embedded_models() and is_adapter(name_or_path):
        return load_encoder_adapter(name_or_path, geometry=geometry, **more)
    return load_stock_encoder(name_or_path, geometry=geometry or "stock", **more)


def stored_dtype(name_or_path: str | os.PathLike[str], device: str | torch.device = "cpu") -> torch.dtype:
    """What a model of that name is opened in where nothing else is asked for: an adapter's own precision; else on a GPU
    that of the checkpoint, and on a CPU float32. The embedded models are always in float32."""
    if os.fspath(name_or_path) in embedded_models():
        return torch.float32
    if is_adapter(name_or_path):
        return adapter_dtype(name_or_path)
    on_cpu = torch.device(device).type == "cpu"
    return torch.float32 if on_cpu else checkpoint_dtype(os.fspath(name_or_path))


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
    text = os.fspath(name_or_path)
    if text in embedded_models() or not is_adapter(text):
        return is_stock_encoder(text)
    base = base_name(text)
    try:
        return not is_adapter(base) and is_stock_encoder(base)
    except UserError as error:
        raise UserError(f"cannot open the base model of the adapter {text}: {error}") from error


def load_surrogate(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    geometry: Geometry | None = None,
    conversation: Conversation | None = None,
) -> PixelModel:
    """A model to craft transfer images on: an LVLM, or an image encoder; several by names with commas between them.
    UserError for a robustified folder: what transfers from an undefended model is asked."""
    if "," in os.fspath(name_or_path):
        names = [name.strip() for name in os.fspath(name_or_path).split(",")]
        if not all(names):
            raise UserError(f"--surrogate {os.fspath(name_or_path)!r} must have names between commas")
        how: Any = {"device": device, "dtype": dtype, "geometry": geometry, "conversation": conversation}
        return SeveralModels([load_surrogate(name, **how) for name in names])
    if is_robustified(name_or_path):
        raise UserError(f"{os.fspath(name_or_path)} is robustified: a surrogate is an undefended model, name its base")
    return load_any(name_or_path, device=device, dtype=dtype, geometry=geometry, conversation=conversation)
