"""A model as transformers keeps its stock class, with all that turns texts and images into its inputs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import transformers

from lvlm_radapt.loading.load_options import no_loading_bar
from lvlm_radapt.loading.locate import embedded_models
from lvlm_radapt.loading.weights import checkpoint_file
from lvlm_radapt.models.base import LVLM, PixelModel
from lvlm_radapt.utils.errors import UserError

# What only the base checkpoint knows; none has both.
_COMPANIONS = ("processor_config.json", "video_preprocessor_config.json")


def refuse_unwritable(model: PixelModel) -> None:
    """UserError for a model whose weights are quantised or lie elsewhere than in memory."""
    if getattr(model.hf, "quantization_method", None) is not None:
        raise UserError(
            f"{model.name} is opened with quantised weights: open it unquantised "
            "(the written folder can be opened with a quantization_config)"
        )
    if any(parameter.is_meta for parameter in model.hf.parameters()):
        raise UserError(f"{model.name} is offloaded in part: open it without a device map to write it")


def weight_bytes(model: PixelModel) -> int:
    """How much room the model's weights take in a file, at least."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.hf.parameters())


def save_stock(model: PixelModel, folder: Path) -> None:
    """Writes `model` as transformers keeps its stock class: weights as they are, config, tokenizer, image processor."""
    with no_loading_bar():
        model.hf.save_pretrained(folder)
    if isinstance(model, LVLM):
        save_companions(model, folder)
    else:
        model.image_processor.save_pretrained(folder)
        if model.tokenizer is not None:
            _save_tokenizer(model.tokenizer, folder)


def save_companions(model: LVLM, folder: Path) -> None:
    """Writes what turns texts and images into the model's inputs, so that transformers alone makes the same of them.

    The tokenizer and its chat template, and the image processor, are written as they are in use here. The base
    checkpoint's other processor files are copied. processor_config.json names the processor's class, which transformers
    would else tell from a model_type it knows.
    """
    if model.text.conversation is not None:
        model.tokenizer.chat_template = model.text.conversation.chat_template(model.text.mark)
    _save_tokenizer(model.tokenizer, folder)
    _padding(model).save_pretrained(folder)
    source = str(embedded_models().get(model.name, Path(model.name).expanduser()))
    for name in _COMPANIONS:
        path = checkpoint_file(source, name)
        if path is not None:
            (folder / name).write_bytes(path.read_bytes())
    target = folder / "processor_config.json"
    processor = json.loads(target.read_bytes()) if target.is_file() else {}
    for key in ("image_processor", "chat_template"):
        processor.pop(key, None)  # it would win over what was just written
    target.write_text(json.dumps(processor | _processor_values(model), indent=2) + "\n", encoding="utf-8")


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Without the padding and truncation of its last call. With `legacy`, whether a piece of text behind a special
    token begins with a space: transformers 5 reads that from tokenizer_config.json and does not write it."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
    if hasattr(tokenizer, "legacy"):
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_bytes()) | {"legacy": bool(tokenizer.legacy)}
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _padding(model: PixelModel) -> Any:
    """The model's image processor; where the model pads images to a square first, one that does so itself."""
    if model.geometry != "pad":
        return model.image_processor
    settings = model.image_processor.to_dict() | {"do_pad": True}
    settings.pop("image_processor_type", None)
    return transformers.LlavaImageProcessorPil(**settings)


def torchvision_user(model: LVLM) -> str | None:
    """The processor's class, if it takes videos too or asks for it itself: AutoProcessor then needs torchvision. None
    for the others."""
    name, takes = _processor_class(model)
    return name if takes is None or "video_processor" in takes else None


def _processor_class(model: LVLM) -> tuple[str, Collection[str] | None]:
    """The name of the class that AutoProcessor opens, and what it is made of; None where what it needs is not
    installed."""
    by_type = transformers.models.auto.processing_auto.PROCESSOR_MAPPING_NAMES
    name = model.processor_class or by_type[model.hf.config.model_type]
    try:
        kind: Any = getattr(transformers, name)
    except ImportError:
        return name, None
    return name, None if getattr(kind, "is_dummy", False) else inspect.signature(kind.__init__).parameters


def _processor_values(model: LVLM) -> dict[str, Any]:
    """What AutoProcessor must know: its class, and what the class takes that the model itself tells."""
    name, takes = _processor_class(model)
    values = model.processor_values()
    return {"processor_class": name} | {key: each for key, each in values.items() if takes is None or key in takes}
