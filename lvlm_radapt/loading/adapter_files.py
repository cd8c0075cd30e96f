"""The files of an adapter, read: what `lvlm_radapt.saving.adapter` writes.

adapter.safetensors   the anchor, float32 `anchor` [T, D] (no tensor where none is needed or it is taken anew)
radapt.json           format and version, settings, what the anchor lies on, the base model, checksums
learned.json          of a learned anchor: how it was learned, its losses and probes; read by nothing

An anchor that the tower answers anew on each image's grid (Qwen3-VL's own white one) is not stored: the normalised
white pixel is, and from it and the tower, whose weights the fingerprint guards, come the same numbers again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load

from lvlm_radapt.defences.radapt.anchor import Anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.models.base import Geometry
from lvlm_radapt.towers.base import Colour
from lvlm_radapt.towers.fingerprint import DTYPES
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_bytes, read_own

FORMAT: Literal["lvlm-radapt adapter"] = "lvlm-radapt adapter"
VERSION: Literal[1] = 1
SETTINGS = "radapt.json"
TENSORS = "adapter.safetensors"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AnchorPlace(_Part):
    grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None
    prefix_tokens: int = Field(ge=0)


class BaseRecord(_Part):
    name: str = Field(min_length=1)
    """An embedded name, a hub id, or a folder's full path."""
    revision: str | None
    """The hub's commit, where it is known; told, not asked for again: the fingerprint guards the tower."""
    other_tower: str | None = None
    """The encoder whose tower was put in the place of the base's own."""
    tower: dict[str, str] = Field(min_length=1)
    """dtype the model was opened in -> fingerprint of the tower then."""


class ConversationRecord(_Part):
    name: str
    system: str | None
    template: str
    follow_up: str | None


class AdapterSettings(_Part):
    format: Literal["lvlm-radapt adapter"]
    version: Literal[1]
    package: str | None
    config: dict[str, Any]
    anchor: AnchorPlace | None
    white: Colour | None = None
    """In place of `anchor`, where it is taken anew on each grid: a white pixel, normalised."""
    tensors_sha256: str
    base: BaseRecord
    geometry: Geometry
    conversation: ConversationRecord | None = None
    """In place of the base's chat template."""
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    """Of a canvas, in place of the base's own limit."""


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` is one that `save_adapter` wrote (it may still be damaged)."""
    return (Path(folder).expanduser() / SETTINGS).is_file()


def base_name(model: str | os.PathLike[str]) -> str:
    """The model an adapter folder was made for; any other name as it is."""
    return read_settings(Path(model).expanduser()).base.name if is_adapter(model) else os.fspath(model)


def adapter_dtype(folder: str | os.PathLike[str]) -> torch.dtype:
    """The precision of the model that an adapter was saved from."""
    saved = read_settings(Path(folder).expanduser()).base.tower
    return torch.float32 if "float32" in saved else DTYPES.get(next(iter(saved)), torch.float32)


def read_settings(root: Path) -> AdapterSettings:
    """radapt.json of the folder `root`; UserError for none, a damaged one or another version."""
    return read_own(AdapterSettings, root / SETTINGS, format=FORMAT, version=VERSION)


def stored_config(root: Path, settings: AdapterSettings) -> RAdaptConfig:
    """The settings of the defence; UserError for one that is unknown or out of range."""
    try:
        return RAdaptConfig.from_dict(settings.config)
    except UserError as error:
        raise UserError(f"{root / SETTINGS}: {error}") from error


def stored_anchor(root: Path, settings: AdapterSettings) -> Anchor | None:
    """The anchor in adapter.safetensors, if one is stored; UserError for a damaged file."""
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
