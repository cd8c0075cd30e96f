"""Another vision tower in an LVLM's place: LLaVA over a FARE or TeCoA encoder, say."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from lvlm_radapt.defences.radapt.hooks import is_injected
from lvlm_radapt.loading.adapter_files import is_adapter
from lvlm_radapt.loading.load_options import Attention, LoadOptions
from lvlm_radapt.loading.locate import embedded_models
from lvlm_radapt.loading.stock import load_stock_encoder
from lvlm_radapt.models.base import LVLM
from lvlm_radapt.models.checks import lost_layer
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.llava import LlavaLVLM
from lvlm_radapt.utils.errors import UserError


def replace_tower(model: LVLM, encoder: CLIPEncoder) -> LVLM:
    """The same LLaVA-1.5, changed in place, with a copy of the encoder's tower; projector and language model stay.

    The tower's image size and normalisation come with it: a 224 px tower in a 336 px LLaVA changes the vision
    config, the processor's size and crop, and the number of image tokens. Precision, device and attention
    implementation stay the model's. `model.tower_name` is the encoder's name afterwards.

    UserError unless the model is a LLaVA-1.5 over CLIP, both are undefended, and the encoder is a CLIP of the same
    width and patch size, deep enough for the layer that the model reads.
    """
    if type(model) is not LlavaLVLM or model.hf.config.vision_config.model_type != "clip_vision_model":
        raise UserError(f"{model.name}: only the tower of a LLaVA-1.5 over CLIP can be replaced")
    source: Any = encoder.tower
    if source.config.model_type != "clip_vision_model":
        raise UserError(f"{encoder.name} is a {source.config.model_type}: a LLaVA-1.5 takes a CLIP tower")
    for held in (model, encoder):
        if is_injected(held.hf):
            raise UserError(f"{held.name} has R-Adapt in it: replace the tower first, then robustify")
    config = model.hf.config
    for key, what in (("hidden_size", "wide"), ("patch_size", "px a patch")):
        ours, theirs = getattr(config.vision_config, key), getattr(source.config, key)
        if ours != theirs:
            raise UserError(
                f"{encoder.name} is {theirs} {what}, the tower of {model.name} {ours}: take an encoder like that"
            )
    depth = int(source.config.num_hidden_layers)
    layer = lost_layer(config, depth)
    if layer is not None:
        raise UserError(f"{encoder.name} has {depth} layers, {model.name} reads layer {layer}: take a deeper one")
    tower = copy.deepcopy(source).to(device=model.device, dtype=model.dtype).eval().requires_grad_(False)
    tower.set_attn_implementation(config._attn_implementation)
    model.hf.model.vision_tower = tower
    config.vision_config = tower.config
    side = int(tower.config.image_size)
    cls = config.vision_feature_select_strategy == "full"
    config.image_seq_length = (side // int(tower.config.patch_size)) ** 2 + cls
    model.image_processor = _resized(model.image_processor, side, encoder)
    model.tower_name = encoder.name
    if encoder.tuned_from is not None:
        model.tuned_from = model.name
    return model


def load_tower(model: LVLM, tower: str | os.PathLike[str], *, attn: Attention = "auto") -> LVLM:
    """`replace_tower` with the encoder of that name: an open_clip, FARE or TeCoA file, a folder or a hub id.

    Files and folders are named by their full path then, so that runs and adapters of one tower agree on it.
    """
    path = Path(tower).expanduser()
    if os.fspath(tower) not in embedded_models() and path.exists():
        tower = path.resolve()
        if is_adapter(path):
            raise UserError(f"{tower} has R-Adapt in it: replace the tower first, then robustify")
    options = LoadOptions(model.device, model.dtype, attn)
    return replace_tower(model, load_stock_encoder(tower, geometry="stock", options=options))


def _resized(processor: Any, side: int, encoder: CLIPEncoder) -> Any:
    """The model's own image processor, for images of that side in the encoder's normalisation."""
    size = {key: side for key in ("shortest_edge", "height", "width") if dict(processor.size).get(key)}
    return type(processor).from_dict(
        processor.to_dict()
        | {
            "size": size,
            "crop_size": {"height": side, "width": side},
            "image_mean": list(encoder.image_mean),
            "image_std": list(encoder.image_std),
        }
    )
