"""Where the files of `configs/` are."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml

from lvlm_radapt.utils.errors import UserError


def shipped_configs() -> Traversable:
    """`configs/` inside the installed package, or beside the packages in a clone."""
    installed = resources.files("lvlm_radapt") / "configs"
    if installed.is_dir():
        return installed
    clone = Path(__file__).resolve().parents[2] / "configs"
    if not clone.is_dir():
        raise UserError(f"the shipped presets are neither in {installed} nor in {clone}: install lvlm-radapt again")
    return clone


def known_as(kind: str, name: str) -> list[str]:
    """The shipped presets of a kind that other programs call `name`, sorted."""
    entries = sorted((shipped_configs() / kind).iterdir(), key=lambda entry: entry.name)
    read = {entry.name.removesuffix(".yaml"): yaml.safe_load(entry.read_bytes()) for entry in entries}
    return [own for own, fields in read.items() if name.lower() in fields.get("known_as", ())]
