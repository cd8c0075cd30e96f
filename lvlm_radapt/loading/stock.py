"""Undefended models: Hugging Face checkpoints, original LLaVAs, open_clip towers, and the model in an export."""

from __future__ import annotations

import os
from typing import Any

from lvlm_radapt.loading.export_files import is_export, stock_checkpoint
from lvlm_radapt.loading.hf import load_weights, read_generation_config
from lvlm_radapt.loading.image_processor import open_image_processor
from lvlm_radapt.loading.llava_original import is_original, load_original
from lvlm_radapt.loading.load_options import LoadOptions
from lvlm_radapt.loading.locate import embedded_models, locate, read_config, tuned_from
from lvlm_radapt.loading.open_clip import Activation, is_open_clip, load_open_clip
from lvlm_radapt.loading.tokenizer import chat_template_of, open_tokenizer
from lvlm_radapt.loading.weights import revision_of
from lvlm_radapt.models.base import LVLM, Geometry
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.families import encoder_families, lvlm_families
from lvlm_radapt.utils.errors import UserError

_FIXED_CANVAS = (
    "{name}: max pixels is for Qwen and GLM, whose canvas grows with the image; this model's is fixed, leave it out"
)


def load_stock(name_or_path: str | os.PathLike[str], *, geometry: Geometry | None, options: LoadOptions) -> LVLM:
    """`load_model` for what is no robustified folder; of an exported one, the undefended model in it."""
    source, name = locate(name_or_path)
    config = read_config(source, name)
    if is_original(config):
        if options.max_pixels is not None:
            raise UserError(_FIXED_CANVAS.format(name=name))
        model = load_original(source, name, config, geometry=geometry, options=options)
        model.revision = revision_of(source)
        return model
    stored = stock_checkpoint(source) if is_export(source) else None
    if stored is not None:
        config = stored.config
    model_type = str(config.get("model_type", "missing"))
    family = lvlm_families().get(model_type)
    ours = None if family is None else family.lvlm_of(config)
    if family is None or ours is None:
        encoder = model_type in encoder_families()
        hint = "it is an image encoder, usable as a surrogate or guide" if encoder else "to add one see docs/extend.md"
        known = ", ".join(lvlm_families())
        raise UserError(f"{name}: model_type {model_type!r} is not supported, only {known} are; {hint}")
    if options.max_pixels is not None and not ours.grows:
        raise UserError(_FIXED_CANVAS.format(name=name))
    hf = load_weights(family.hf_class(config), source, name, options, stored=stored, kept=family.unquantised)
    tokenizer = open_tokenizer(source, name, **({} if stored is None else {"config": hf.config}))
    image_processor = open_image_processor(source, name)
    read_generation_config(hf, source, name)
    _check_image_token(hf, tokenizer, name)
    ours.check_config(hf.config, name)
    image_processor = ours.limited(image_processor, options.max_pixels, name)
    if ours.unpadded is None and getattr(image_processor, "do_pad", False):
        geometry = "pad"  # such a processor pads by itself, as that of a saved original LLaVA does
    mark = ours.image_mark(hf.config, tokenizer)
    tokenizer.chat_template = chat_template_of(source, name, tokenizer, mark)  # which is what will be saved
    model = family.build(
        hf,
        tokenizer,
        image_processor,
        name=name,
        geometry=geometry or "stock",
        chat_template=tokenizer.chat_template,
        conversation=options.conversation,
    )
    model.revision, model.max_pixels = revision_of(source), options.max_pixels
    model.tuned_from = tuned_from(source)
    return model


def load_stock_encoder(
    name_or_path: str | os.PathLike[str],
    *,
    geometry: Geometry,
    options: LoadOptions,
    feature_layer: int = -2,
    activation: Activation | None = None,
) -> CLIPEncoder:
    """`load_encoder` for what is no adapter folder."""
    layer: dict[str, Any] = {"feature_layer": feature_layer}
    if os.fspath(name_or_path) not in embedded_models() and is_open_clip(name_or_path):
        place: Any = {"device": options.device, "dtype": options.dtype, "attn": options.attn}
        return load_open_clip(name_or_path, activation=activation, geometry=geometry, **place, **layer)
    if activation is not None:
        raise UserError(f"{os.fspath(name_or_path)}: its config.json tells the activation, leave it out")
    source, name = locate(name_or_path)
    config = read_config(source, name)
    model_type = str(config.get("model_type", "missing"))
    family = encoder_families().get(model_type)
    if family is None:
        known = ", ".join(encoder_families())
        raise UserError(f"{name}: model_type {model_type!r} is no image encoder that is supported, only {known} are")
    hf = load_weights(family.hf_class(config), source, name, options)
    has_texts = hasattr(hf, "get_text_features")
    tokenizer = open_tokenizer(source, name) if has_texts else None
    image_processor = open_image_processor(source, name)
    model: CLIPEncoder = family.build(hf, tokenizer, image_processor, name=name, geometry=geometry, **layer)
    model.revision, model.tuned_from = revision_of(source), tuned_from(source)
    return model


def is_stock_encoder(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether `load_stock_encoder` is who opens it; UserError where nothing is to open."""
    if os.fspath(name_or_path) not in embedded_models() and is_open_clip(name_or_path):
        return True
    source, name = locate(name_or_path)
    return str(read_config(source, name).get("model_type", "missing")) in encoder_families()


def _check_image_token(hf: Any, tokenizer: Any, name: str) -> None:
    image_id = hf.config.image_token_id
    rows = hf.get_input_embeddings().num_embeddings
    if not 0 <= image_id < rows or tokenizer.convert_ids_to_tokens(image_id) is None:
        raise UserError(f"{name}: config.json names {image_id} as the image token, which is not in the vocabulary")
