"""Where the files of `configs/` are."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

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
