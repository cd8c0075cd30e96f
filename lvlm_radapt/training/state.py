"""What training needs to go on where it was stopped, in one file that is there whole or not at all."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lvlm_radapt.errors import UserError


def save_state(path: Path, settings: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Writes `content`, tensors and plain values, as the state of a training with these settings (JSON values)."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            torch.save({"settings": dict(settings), **content}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


def load_state(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was saved last; None where nothing was.

    UserError when the file is damaged, or of a training with other settings, the first of which it names.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        begun = content["settings"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged: remove it and train anew") from error
    for key, value in settings.items():
        if begun.get(key) != value:
            raise UserError(
                f"{path} was begun with {key} {begun.get(key)!r}, this is {value!r}: give the same settings, or "
                "remove it and train anew"
            )
    return content
