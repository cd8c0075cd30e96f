"""The files of an exported model, read: what `lvlm_radapt.saving.export` writes. Code in the folder is not run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lvlm_radapt.defences.radapt.anchor import Anchor
from lvlm_radapt.loading.weights import read_tensors, weight_files
from lvlm_radapt.models.base import Geometry
from lvlm_radapt.towers.base import Colour
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json, read_own, validated

FORMAT: Literal["lvlm-radapt export"] = "lvlm-radapt export"
VERSION: Literal[1] = 1
SETTINGS = "radapt_export.json"
ANCHOR = "radapt_mix.anchor"
WEIGHTS: Literal["radapt.safetensors"] = "radapt.safetensors"
INDEX: Literal["radapt.safetensors.index.json"] = "radapt.safetensors.index.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AnchorPlace(_Part):
    rows: int = Field(ge=1)
    grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None
    prefix_tokens: int = Field(ge=0)


class Patches(_Part):
    """The patch embedding's convolution, by its path in the model, and its weight's shape in the stock model."""

    module: str = Field(min_length=1)
    shape: tuple[Annotated[int, Field(ge=1)], ...]


class StoredDefence(_Part):
    """`radapt` in config.json: all that modeling_radapt.py reads."""

    config: dict[str, Any]
    anchor: AnchorPlace | None
    white: Colour | None
    """In place of `anchor`, where it is taken anew on each grid: a white pixel, normalised."""
    patches: Patches
    weights: Literal["radapt.safetensors", "radapt.safetensors.index.json"] | None = None
    """The file that holds the weights, or their index; None: files of the common names."""


class _Config(BaseModel):
    """What is checked of config.json; the rest of it is transformers'."""

    radapt: StoredDefence


class ExportSettings(_Part):
    format: Literal["lvlm-radapt export"]
    version: Literal[1]
    model_type: str = Field(min_length=1)
    base: str = Field(min_length=1)
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class StockCheckpoint:
    """A stock model as the library takes it: the content of its config.json, and its state dict."""

    config: dict[str, Any]
    weights: dict[str, Tensor]


def is_export(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` is one that `export_model` wrote (it may still be damaged)."""
    return (Path(folder).expanduser() / SETTINGS).is_file()


def exported_from(model: str | os.PathLike[str]) -> str:
    """The model an exported folder was made of; any other name as it is."""
    return export_settings(Path(model).expanduser()).base if is_export(model) else os.fspath(model)


def stock_checkpoint(folder: str | os.PathLike[str]) -> StockCheckpoint:
    """The undefended model in an exported folder. UserError, one line, when a file is missing or damaged."""
    root = Path(folder).expanduser()
    settings, (config, defence) = export_settings(root), stored_defence(root)
    config = {key: value for key, value in config.items() if key not in ("radapt", "auto_map", "architectures")}
    files = _weight_files(root, defence)
    weights = {key: tensor for path in files for key, tensor in read_tensors(path) if key != ANCHOR}
    mark = f"{defence.patches.module}.weight"
    try:
        weights[mark] = weights[mark].reshape(defence.patches.shape)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{root} is damaged: its weights hold no {mark} of the size config.json tells") from error
    return StockCheckpoint(config | {"model_type": settings.model_type}, weights)


def export_settings(root: Path) -> ExportSettings:
    """radapt_export.json of the folder `root`; UserError for none, a damaged one or another version."""
    return read_own(ExportSettings, root / SETTINGS, format=FORMAT, version=VERSION)


def stored_defence(root: Path) -> tuple[dict[str, Any], StoredDefence]:
    """The content of config.json, and the defence in it; UserError for a damaged file."""
    path = root / "config.json"
    content = read_json(path)
    return content, validated(_Config, content, path).radapt


def _weight_files(root: Path, defence: StoredDefence) -> list[Path]:
    if defence.weights is None:
        return weight_files(str(root), str(root))
    return weight_files(str(root), str(root), names=(defence.weights,))


def stored_anchor(root: Path, defence: StoredDefence) -> Anchor | None:
    """The anchor among the weights, if one is stored; UserError for a damaged file."""
    if defence.anchor is None:
        return None
    for path in _weight_files(root, defence):
        try:
            with safe_open(path, framework="pt") as file:
                if ANCHOR in file.keys():  # noqa: SIM118  (no mapping)
                    place = defence.anchor
                    return Anchor(file.get_tensor(ANCHOR), grid=place.grid, prefix_tokens=place.prefix_tokens)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is cut short or damaged: copy the folder again") from error
    raise UserError(f"{root} is damaged: its weights hold no {ANCHOR}")
