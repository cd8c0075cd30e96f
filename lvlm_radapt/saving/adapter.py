"""Adapter files: the defence without the model it defends, a few kilobytes to keep or to hand on.

adapter.safetensors   the anchor, float32 `anchor` [T, D] (no tensor where none is needed or it is taken anew)
radapt.json           format and version, settings, what the anchor lies on, the base model, checksums
learned.json          of a learned anchor: how it was learned, its losses and probes; read by nothing

An anchor that the tower answers anew on each image's grid (Qwen3-VL's own white one) is not stored: the normalised
white pixel is, and from it and the tower, whose weights the fingerprint guards, come the same numbers again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, save

from lvlm_radapt.defences.radapt.anchor import Anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import inject, injected_anchor, injected_config, injected_white
from lvlm_radapt.loading.load import embedded_models, load_base
from lvlm_radapt.loading.load_options import Opening
from lvlm_radapt.loading.replace_tower import load_tower
from lvlm_radapt.models.base import LVLM, Geometry, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.conversations import Conversation
from lvlm_radapt.towers.base import Colour
from lvlm_radapt.towers.fingerprint import DTYPES, tower_fingerprints
from lvlm_radapt.utils.atomic_folder import new_folder
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_bytes, read_own

FORMAT: Literal["lvlm-radapt adapter"] = "lvlm-radapt adapter"
VERSION: Literal[1] = 1
SETTINGS = "radapt.json"
TENSORS = "adapter.safetensors"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _AnchorPlace(_Part):
    grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None
    prefix_tokens: int = Field(ge=0)


class _Base(_Part):
    name: str = Field(min_length=1)
    """An embedded name, a hub id, or a folder's full path."""
    revision: str | None
    """The hub's commit, where it is known; told, not asked for again: the fingerprint guards the tower."""
    other_tower: str | None = None
    """The encoder whose tower was put in the place of the base's own."""
    tower: dict[str, str] = Field(min_length=1)
    """dtype the model was opened in -> fingerprint of the tower then."""


class _Conversation(_Part):
    name: str
    system: str | None
    template: str
    follow_up: str | None


class _Settings(_Part):
    format: Literal["lvlm-radapt adapter"]
    version: Literal[1]
    package: str | None
    config: dict[str, Any]
    anchor: _AnchorPlace | None
    white: Colour | None = None
    """In place of `anchor`, where it is taken anew on each grid: a white pixel, normalised."""
    tensors_sha256: str
    base: _Base
    geometry: Geometry
    conversation: _Conversation | None = None
    """In place of the base's chat template."""
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    """Of a canvas, in place of the base's own limit."""


Model = TypeVar("Model", bound=PixelModel)


def save_adapter(model: PixelModel, out: str | os.PathLike[str], *, notes: Mapping[str, str] | None = None) -> None:
    """Write the defence in `model` to the new folder `out`; `load_model` opens it, and `load_encoder` an encoder's.

    A model in half precision gives an adapter that opens in that precision, unless asked otherwise, and in float32.
    One in float32 opens in every precision. A conversation and a limit of pixels are kept too. notes: texts to lay
    beside it, by file name, for people.

    UserError when no defence is in the model, or `out` is not empty or cannot be written.
    """
    config, white = injected_config(model.hf), injected_white(model.hf)
    anchor = injected_anchor(model.hf) if white is None else None
    if config is None:
        raise UserError(f"{model.name} has no R-Adapt in it: call robustify() before saving an adapter")
    own = next((name for name, dtype in DTYPES.items() if dtype == model.dtype), None)
    if own is None:
        raise UserError(f"{model.name} is opened in {model.dtype}: open it in one of {', '.join(DTYPES)}")
    asked = model.text.conversation if isinstance(model, LVLM) else None
    tensors = {} if anchor is None else {"anchor": anchor.values.cpu().contiguous()}
    content = save(tensors)
    settings = _Settings(
        format=FORMAT,
        version=VERSION,
        package=_package_version(),
        config=config.to_dict(),
        anchor=None if anchor is None else _AnchorPlace(grid=anchor.grid, prefix_tokens=anchor.prefix_tokens),
        white=white,
        tensors_sha256=hashlib.sha256(content).hexdigest(),
        base=_Base(
            name=_lasting_name(model.name),
            revision=model.revision,
            other_tower=None if model.tower_name is None else _lasting_name(model.tower_name),
            tower=tower_fingerprints(model.tower, list(DTYPES) if own == "float32" else [own]),
        ),
        geometry=model.geometry,
        conversation=None if asked is None else _Conversation(**asdict(asked)),
        max_pixels=model.max_pixels,
    )
    with new_folder(out) as folder:
        (folder / TENSORS).write_bytes(content)
        (folder / SETTINGS).write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for name, text in (notes or {}).items():
            (folder / name).write_text(text, encoding="utf-8")


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` is one that `save_adapter` wrote (it may still be damaged)."""
    return (Path(folder).expanduser() / SETTINGS).is_file()


def base_name(model: str | os.PathLike[str]) -> str:
    """The model an adapter folder was made for; any other name as it is."""
    return _read(Path(model).expanduser()).base.name if is_adapter(model) else os.fspath(model)


def adapter_dtype(folder: str | os.PathLike[str]) -> torch.dtype:
    """The precision of the model that an adapter was saved from."""
    saved = _read(Path(folder).expanduser()).base.tower
    return torch.float32 if "float32" in saved else DTYPES.get(next(iter(saved)), torch.float32)


def load_adapter(
    folder: str | os.PathLike[str], *, geometry: Geometry | None = None, opening: Opening | None = None
) -> LVLM:
    """The robustified model that `save_adapter` was given: its base model by name, the defence put in.

    geometry: None for the one it was saved with; so are opening's conversation and limit of pixels. The model's name
    is its base's. UserError, one line, when a file is missing or damaged, of an unknown version, the base cannot be
    opened, or its vision tower has other weights than the one the adapter was made for.
    """
    opening = opening or Opening()

    root = Path(folder).expanduser()
    saved = _read(root)
    if opening.conversation is None and saved.conversation is not None:
        opening = replace(opening, conversation=Conversation(**saved.conversation.model_dump()))
    if opening.max_pixels is None:
        opening = replace(opening, max_pixels=saved.max_pixels)

    def base(settings: _Base, geometry: Geometry) -> LVLM:
        model = load_base(settings.name, geometry=geometry, opening=opening)
        return model if settings.other_tower is None else load_tower(model, settings.other_tower, attn=opening.attn)

    return _defended(root, base, geometry)


def load_encoder_adapter(
    folder: str | os.PathLike[str],
    open_base: Callable[[str, Geometry], CLIPEncoder],
    *,
    geometry: Geometry | None = None,
) -> CLIPEncoder:
    """`load_adapter` of an image encoder, which `open_base(name, geometry)` opens undefended."""
    return _defended(Path(folder).expanduser(), lambda base, geometry: open_base(base.name, geometry), geometry)


def _defended(root: Path, open_base: Callable[[_Base, Geometry], Model], geometry: Geometry | None) -> Model:
    settings = _read(root)
    config, anchor = _config(root, settings), _anchor(root, settings)
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


def _check_tower(root: Path, base: _Base, model: PixelModel) -> None:
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


def _read(root: Path) -> _Settings:
    return read_own(_Settings, root / SETTINGS, format=FORMAT, version=VERSION)


def _config(root: Path, settings: _Settings) -> RAdaptConfig:
    try:
        return RAdaptConfig.from_dict(settings.config)
    except UserError as error:
        raise UserError(f"{root / SETTINGS}: {error}") from error


def _anchor(root: Path, settings: _Settings) -> Anchor | None:
    path = root / TENSORS
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != settings.tensors_sha256:
        raise UserError(f"{path} is damaged: its checksum is not the one in {SETTINGS}")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: it is no safetensors file") from error
    if set(tensors) != (set() if settings.anchor is None else {"anchor"}):
        raise UserError(f"{path} is damaged: it holds {sorted(tensors) or 'nothing'}")
    if settings.anchor is None:
        return None
    if tensors["anchor"].dtype != torch.float32 or tensors["anchor"].ndim != 2:
        raise UserError(f"{path} is damaged: the anchor is no table of float32 numbers")
    return Anchor(tensors["anchor"], grid=settings.anchor.grid, prefix_tokens=settings.anchor.prefix_tokens)


def _lasting_name(name: str) -> str:
    """A folder or file by its full path, so that the adapter opens from everywhere; other names as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name not in embedded_models() and path.exists() else name


def _package_version() -> str | None:
    try:
        return metadata.version("lvlm-radapt")
    except metadata.PackageNotFoundError:  # run from a clone
        return None
