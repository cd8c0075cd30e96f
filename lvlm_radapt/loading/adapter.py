"""Adapters opened: the base model by its name, and the defence put into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from lvlm_radapt.defences.radapt.hooks import inject
from lvlm_radapt.loading.adapter_files import (
    SETTINGS,
    BaseRecord,
    is_adapter,
    read_settings,
    stored_anchor,
    stored_config,
)
from lvlm_radapt.loading.load_options import LoadOptions
from lvlm_radapt.loading.open_clip import Activation
from lvlm_radapt.loading.replace_tower import load_tower
from lvlm_radapt.loading.stock import load_stock, load_stock_encoder
from lvlm_radapt.models.base import LVLM, Geometry, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.conversations import Conversation
from lvlm_radapt.towers.fingerprint import DTYPES, tower_fingerprints
from lvlm_radapt.utils.errors import UserError

Model = TypeVar("Model", bound=PixelModel)


def load_adapter(
    folder: str | os.PathLike[str], *, geometry: Geometry | None = None, options: LoadOptions | None = None
) -> LVLM:
    """The robustified model that `save_adapter` was given: its base model by name, the defence put in.

    geometry: None for the one it was saved with; so are the options' conversation and limit of pixels. The model's
    name is its base's. UserError, one line, when a file is missing or damaged, of an unknown version, the base cannot
    be opened, or its vision tower has other weights than the one the adapter was made for.
    """
    options = options or LoadOptions()
    root = Path(folder).expanduser()
    saved = read_settings(root)
    if options.conversation is None and saved.conversation is not None:
        options = replace(options, conversation=Conversation(**saved.conversation.model_dump()))
    if options.max_pixels is None:
        options = replace(options, max_pixels=saved.max_pixels)

    def base(record: BaseRecord, geometry: Geometry) -> LVLM:
        model = load_stock(record.name, geometry=geometry, options=options)
        return model if record.other_tower is None else load_tower(model, record.other_tower, attn=options.attn)

    return _defended(root, base, geometry)


def load_encoder_adapter(
    folder: str | os.PathLike[str],
    *,
    geometry: Geometry | None = None,
    options: LoadOptions | None = None,
    feature_layer: int = -2,
    activation: Activation | None = None,
) -> CLIPEncoder:
    """`load_adapter` of an image encoder; arguments as for `load_encoder`."""

    def base(record: BaseRecord, geometry: Geometry) -> CLIPEncoder:
        if is_adapter(record.name):  # what no adapter of ours says of its base
            raise UserError(f"{record.name} is an adapter folder itself")
        return load_stock_encoder(
            record.name,
            geometry=geometry,
            options=options or LoadOptions(),
            feature_layer=feature_layer,
            activation=activation,
        )

    return _defended(Path(folder).expanduser(), base, geometry)


def _defended(root: Path, open_base: Callable[[BaseRecord, Geometry], Model], geometry: Geometry | None) -> Model:
    settings = read_settings(root)
    config, anchor = stored_config(root, settings), stored_anchor(root, settings)
    if config.alpha != 0 and (anchor is None) == (settings.white is None):
        there = "no anchor" if anchor is None else "an anchor and a white pixel to take one from"
        raise UserError(f"{root / SETTINGS} is damaged: alpha is {config.alpha:g} and there is {there}")
    try:
        model = open_base(settings.base, settings.geometry if geometry is None else geometry)
    except UserError as error:
        raise UserError(f"cannot open the base model of the adapter {root}: {error}") from error
    _check_tower(root, settings.base, model)
    inject(model.hf, config, anchor, white=settings.white)
    return model


def _check_tower(root: Path, base: BaseRecord, model: PixelModel) -> None:
    own = next((name for name, dtype in DTYPES.items() if dtype == model.dtype), "")
    # a float32 tower can be rounded to what was saved; a rounded one cannot be widened
    compared = own if own in base.tower else next(iter(base.tower)) if own == "float32" else None
    if compared not in DTYPES:
        saved = ", ".join(base.tower)
        raise UserError(f"{root} was saved from a model in {saved}: open it in that dtype or float32, or save it anew")
    if tower_fingerprints(model.tower, [compared])[compared] != base.tower[compared]:
        raise UserError(
            f"the vision tower of {base.name} has other weights than the one that the adapter {root} "
            "was made for: robustify it anew"
        )
