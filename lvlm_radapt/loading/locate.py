"""What a model's name stands for: an embedded model, a folder in Hugging Face layout, or a hub id."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import transformers

from lvlm_radapt.loading.load_options import OpeningError, opening_errors
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json

TRAINING_LOG = "training.json"
"""In a folder that `finetune` wrote: every step, and under `base` the model that it began with."""
EMBEDDED: dict[str, str] = {
    "tiny-llava": "a small LLaVA trained on procedural scenes",
    "tiny-qwen": "a small Qwen2.5-VL trained on procedural scenes",
    "tiny-clip": "a small CLIP trained on procedural scenes",
    "tiny-clip-fare": "tiny-clip, adversarially fine-tuned (FARE): a tower for tiny-llava, a guide",
    "tiny-clip-tecoa": "tiny-clip, adversarially fine-tuned (TeCoA): a tower for tiny-llava, a guide",
}


def embedded_models() -> dict[str, Path]:
    """Name -> folder of the models that ship inside the package (only those whose weights are there)."""
    root = Path(str(files("lvlm_radapt") / "embedded" / "weights"))
    return {name: root / name for name in EMBEDDED if (root / name / "config.json").is_file()}


def lasting_name(name: str) -> str:
    """A folder or file by its full path, so that what names it opens from everywhere; other names as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name not in embedded_models() and path.exists() else name


def tuned_from(source: str) -> str | None:
    """The model that the weights in the folder `source` were fine-tuned from, where `finetune` wrote it there."""
    try:
        base = read_json(Path(source) / TRAINING_LOG).get("base")
    except UserError:  # there is none, or another program's
        return None
    return base if isinstance(base, str) and base else None


def locate(name_or_path: str | os.PathLike[str]) -> tuple[str, str]:
    """(what from_pretrained takes, the name to show). UserError for a name that stands for nothing here."""
    text = os.fspath(name_or_path)
    embedded = embedded_models()
    if text.startswith("openai:"):
        raise UserError(f"{text} is behind an API and gives answers alone: `lvlm-radapt eval` is what asks it")
    if text in embedded:
        return str(embedded[text]), text
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{text}: the folder has no config.json, so it is no Hugging Face checkpoint")
        return str(path), text
    is_hub_id = text.count("/") == 1 and text[0] not in "./~" and not path.exists() and "\\" not in text
    if is_hub_id:
        return text, text
    if "/" in text or path.exists():
        raise UserError(f"{text}: no such folder (a Hugging Face id looks like owner/name)")
    near = difflib.get_close_matches(text, EMBEDDED, n=1, cutoff=0.0)
    raise UserError(f"model {text!r} is unknown, did you mean {near[0]}? (or give a folder, or owner/name)")


def read_config(source: str, name: str) -> dict[str, Any]:
    """The content of the checkpoint's config.json; UserError for none, or for weights that are quantised already."""
    try:
        with opening_errors():
            config = dict(transformers.PretrainedConfig.get_config_dict(source)[0])
    except OpeningError as error:
        raise UserError(f"{name}: cannot read its config.json: {error}") from error
    if not config:
        raise UserError(f"{name}: cannot read its config.json: not found there or in the local cache")
    stored = config.get("quantization_config")
    if stored is not None:
        method = stored.get("quant_method", "unknown") if isinstance(stored, Mapping) else "unknown"
        raise UserError(
            f"{name} is quantised already ({str(method)[:40]}), which is not supported: use the checkpoint that it was "
            "made from, with --quantize 4bit or 8bit"
        )
    return config
