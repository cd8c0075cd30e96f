"""A robustified model as a complete model folder that needs transformers alone, and its way back.

config.json           model_type `radapt_...`, auto_map to modeling_radapt.py, the defence under `radapt`
radapt.safetensors    every weight, `radapt_mix.anchor` too; the patch embedding's weight as a matrix
                      (in shards: radapt.safetensors.index.json and the files it names)
modeling_radapt.py    the stock class with the defence in, and beside it radapt_*.py, the code it uses
radapt_export.json    what `load_model` must know besides: format, version, stock model type, geometry, base

With a stock model_type and a stock layout transformers would open the folder with a mere warning and leave the
defence out. So the model_type is a new one, the weights lie where no stock class looks, and, should somebody rename
them, one has a shape at which a stock class stops.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import transformers
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lvlm_radapt.defences.radapt.anchor import Anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import inject, injected_anchor, injected_config, injected_white
from lvlm_radapt.loading.load import embedded_models, load_base
from lvlm_radapt.loading.load_options import Opening, no_loading_bar
from lvlm_radapt.loading.weights import checkpoint_file, read_tensors, weight_files
from lvlm_radapt.models.base import LVLM, Geometry, PixelModel
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.base import Colour
from lvlm_radapt.utils.atomic_folder import new_folder
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json, read_own, validated

FORMAT: Literal["lvlm-radapt export"] = "lvlm-radapt export"
VERSION: Literal[1] = 1
SETTINGS = "radapt_export.json"
ANCHOR = "radapt_mix.anchor"
_WEIGHTS: Literal["radapt.safetensors"] = "radapt.safetensors"
_INDEX: Literal["radapt.safetensors.index.json"] = "radapt.safetensors.index.json"

_TEMPLATE = "lvlm_radapt.saving.export_template"
_MODELING = "modeling_radapt"
_OWN_IMPORT = re.compile(r"^(\s*from )lvlm_radapt\.([\w.]+)(?= import\b)", re.MULTILINE)
# What only the base checkpoint knows; none has both.
_COMPANIONS = ("processor_config.json", "video_preprocessor_config.json")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _AnchorPlace(_Part):
    rows: int = Field(ge=1)
    grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None
    prefix_tokens: int = Field(ge=0)


class _Patches(_Part):
    """The patch embedding's convolution, by its path in the model, and its weight's shape in the stock model."""

    module: str = Field(min_length=1)
    shape: tuple[Annotated[int, Field(ge=1)], ...]


class _Defence(_Part):
    """`radapt` in config.json: all that modeling_radapt.py reads."""

    config: dict[str, Any]
    anchor: _AnchorPlace | None
    white: Colour | None
    """In place of `anchor`, where it is taken anew on each grid: a white pixel, normalised."""
    patches: _Patches
    weights: Literal["radapt.safetensors", "radapt.safetensors.index.json"] | None = None
    """The file that holds the weights, or their index; None: files of the common names."""


class _Config(BaseModel):
    """What is checked of config.json; the rest of it is transformers'."""

    radapt: _Defence


class _Settings(_Part):
    format: Literal["lvlm-radapt export"]
    version: Literal[1]
    model_type: str = Field(min_length=1)
    base: str = Field(min_length=1)
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class StockCheckpoint:
    """A stock model as the library takes it: the content of its config.json, and its state dict."""

    model_type: str
    config: dict[str, Any]
    weights: dict[str, Tensor]


def export_model(
    model: LVLM,
    out: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write `model`, weights and defence, to the new folder `out`.

    `AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True)` opens it without this package,
    and so does `load_model`; stock classes and a load without trust raise. Weights keep the dtype they are computed
    in, the anchor is float32.

    max_shard_size: no weight file is larger, in bytes or as "5GB". notes: texts to lay beside them, by file name.

    UserError when no defence is in the model, its weights are quantised, or `out` is not empty or cannot be
    written.
    """
    config, anchor, white = injected_config(model.hf), injected_anchor(model.hf), injected_white(model.hf)
    if config is None:
        raise UserError(f"{model.name} has no R-Adapt in it: call robustify() before exporting it")
    refuse_unwritable(model)
    stored = anchor if white is None and config.alpha != 0 else None
    patches, convolution = _patch_embedding(model)
    place = None
    if stored is not None:
        place = _AnchorPlace(rows=len(stored.values), grid=stored.grid, prefix_tokens=stored.prefix_tokens)
    mark = _Patches(module=patches, shape=tuple(convolution.weight.shape))
    stock_class = type(model.hf)
    settings = _Settings(
        format=FORMAT,
        version=VERSION,
        model_type=model.hf.config.model_type,
        base=model.name,
        geometry=model.geometry,
    )
    weights = model.hf.state_dict()
    weights[f"{patches}.weight"] = convolution.weight.detach().flatten(1)
    if stored is not None:
        weights[ANCHOR] = stored.values
    with new_folder(out, room=weight_bytes(model)) as folder:
        # in the layout of the running model: transformers converts a checkpoint's own for stock classes only
        with no_loading_bar():
            model.hf.save_pretrained(
                folder, state_dict=weights, max_shard_size=max_shard_size, save_original_format=False
            )
        save_companions(model, folder)
        defence = _Defence(
            config=config.to_dict(), anchor=place, white=white, patches=mark, weights=_out_of_sight(folder)
        )
        own = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {
            "model_type": f"radapt_{settings.model_type}",
            "architectures": ["RAdaptForConditionalGeneration"],
            "auto_map": {
                "AutoConfig": f"{_MODELING}.RAdaptModelConfig",
                "AutoModelForImageTextToText": f"{_MODELING}.RAdaptForConditionalGeneration",
            },
            "radapt": defence.model_dump(mode="json"),
        }
        (folder / "config.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
        for name, source in _code(stock_class).items():
            (folder / name).write_text(source, encoding="utf-8")
        (folder / SETTINGS).write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for name, text in (notes or {}).items():
            (folder / name).write_text(text, encoding="utf-8")


def is_export(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` is one that `export_model` wrote (it may still be damaged)."""
    return (Path(folder).expanduser() / SETTINGS).is_file()


def exported_from(model: str | os.PathLike[str]) -> str:
    """The model an exported folder was made of; any other name as it is."""
    return _settings(Path(model).expanduser()).base if is_export(model) else os.fspath(model)


def load_export(
    folder: str | os.PathLike[str], *, geometry: Geometry | None = None, opening: Opening | None = None
) -> LVLM:
    """The robustified model that `export_model` wrote to `folder`: the stock class with the weights, the defence put
    in by this package. Code that lies in the folder is not run.

    geometry: None for the one it was saved with. The model's name is the folder's. UserError, one line, when a file
    is missing, damaged or of an unknown version.
    """
    root = Path(folder).expanduser()
    settings, (_, defence) = _settings(root), _config(root)
    try:
        config = RAdaptConfig.from_dict(defence.config)
    except UserError as error:
        raise UserError(f"{root / 'config.json'}: {error}") from error
    anchor = _anchor(root, defence)
    if config.alpha != 0 and (anchor is None) == (defence.white is None):
        raise UserError(f"{root / 'config.json'} is damaged: alpha is {config.alpha:g} and there is no one anchor")
    model = load_base(
        folder, geometry=settings.geometry if geometry is None else geometry, opening=opening or Opening()
    )
    inject(model.hf, config, anchor, white=defence.white)
    return model


def stock_checkpoint(folder: str | os.PathLike[str]) -> StockCheckpoint:
    """The undefended model in an exported folder. UserError, one line, when a file is missing or damaged."""
    root = Path(folder).expanduser()
    settings, (config, defence) = _settings(root), _config(root)
    config = {key: value for key, value in config.items() if key not in ("radapt", "auto_map", "architectures")}
    files = _weight_files(root, defence)
    weights = {key: tensor for path in files for key, tensor in read_tensors(path) if key != ANCHOR}
    mark = f"{defence.patches.module}.weight"
    try:
        weights[mark] = weights[mark].reshape(defence.patches.shape)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{root} is damaged: its weights hold no {mark} of the size config.json tells") from error
    return StockCheckpoint(settings.model_type, config | {"model_type": settings.model_type}, weights)


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
        image_token = model.tokenizer.convert_ids_to_tokens(model.text.image_id)
        model.tokenizer.chat_template = model.text.conversation.chat_template(image_token)
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


def _processor_values(model: LVLM) -> dict[str, Any]:
    """What AutoProcessor must know: its class, and what the class takes that the model itself tells."""
    name = transformers.models.auto.processing_auto.PROCESSOR_MAPPING_NAMES[model.hf.config.model_type]
    takes = inspect.signature(getattr(transformers, name).__init__).parameters
    config = model.hf.config
    vision = config.vision_config
    patch_size = getattr(vision, "patch_size", None)
    known = {
        "patch_size": patch_size,
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        "num_additional_image_tokens": find_tower(model.hf).prefix_tokens,
        "num_image_tokens": (vision.image_size // patch_size) ** 2 if hasattr(vision, "image_size") else None,
        "vision_aspect_ratio": getattr(config, "vision_aspect_ratio", None),
    }
    return {"processor_class": name} | {key: value for key, value in known.items() if key in takes}


def _out_of_sight(folder: Path) -> Literal["radapt.safetensors", "radapt.safetensors.index.json"]:
    """The name that the weights just written, or the index of their shards, have from now on: none that stock classes
    look for."""
    if (folder / "model.safetensors").is_file():
        (folder / "model.safetensors").rename(folder / _WEIGHTS)
        return _WEIGHTS
    (folder / "model.safetensors.index.json").rename(folder / _INDEX)
    return _INDEX


def _patch_embedding(model: LVLM) -> tuple[str, Any]:
    """The tower's first convolution, by its path in the model."""
    inside = list(find_tower(model.hf).module.modules())
    for path, module in model.hf.named_modules():
        if type(module) in (nn.Conv2d, nn.Conv3d) and any(module is part for part in inside):
            return path, module
    raise UserError(f"{model.name}: its vision tower has no patch convolution to mark: keep an adapter instead")


def _code(stock_class: type) -> dict[str, str]:
    """File name -> source: the template for this stock class, and the modules of this package it needs."""
    files = {}
    waiting = [_TEMPLATE]
    while waiting:
        module = waiting.pop()
        name = _MODELING if module == _TEMPLATE else _flat_name(module.removeprefix("lvlm_radapt."))
        source = _without_type_imports(inspect.getsource(import_module(module)))
        needed = {f"lvlm_radapt.{match[2]}" for match in _OWN_IMPORT.finditer(source)}
        files[f"{name}.py"] = _OWN_IMPORT.sub(lambda match: f"{match[1]}.{_flat_name(match[2])}", source)
        waiting += [other for other in needed if f"{_flat_name(other.removeprefix('lvlm_radapt.'))}.py" not in files]
    model_name = stock_class.__name__
    config_name = stock_class.config_class.__name__  # type: ignore[attr-defined]
    template = files[f"{_MODELING}.py"]
    template = template.replace("LlavaForConditionalGeneration as StockModel", f"{model_name} as StockModel")
    files[f"{_MODELING}.py"] = template.replace("LlavaConfig as StockConfig", f"{config_name} as StockConfig")
    return files


def _flat_name(module: str) -> str:
    return "radapt_" + module.replace(".", "_")


def _without_type_imports(source: str) -> str:
    """`source` less its `if TYPE_CHECKING:` blocks: transformers would look for what they import."""
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            del lines[node.lineno - 1 : node.end_lineno]
    return "".join(lines)


def _settings(root: Path) -> _Settings:
    return read_own(_Settings, root / SETTINGS, format=FORMAT, version=VERSION)


def _config(root: Path) -> tuple[dict[str, Any], _Defence]:
    path = root / "config.json"
    content = read_json(path)
    return content, validated(_Config, content, path).radapt


def _weight_files(root: Path, defence: _Defence) -> list[Path]:
    if defence.weights is None:
        return weight_files(str(root), str(root))
    return weight_files(str(root), str(root), names=(defence.weights,))


def _anchor(root: Path, defence: _Defence) -> Anchor | None:
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
