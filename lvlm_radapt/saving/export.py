"""A robustified model as a complete model folder that needs transformers alone.

config.json           model_type `radapt_...`, auto_map to modeling_radapt.py, the defence under `radapt`
radapt.safetensors    every weight, `radapt_mix.anchor` too; the patch embedding's weight in another shape
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
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from lvlm_radapt.defences.base import refuse_attached
from lvlm_radapt.defences.radapt.hooks import injected_anchor, injected_config, injected_white
from lvlm_radapt.loading.export import load_export
from lvlm_radapt.loading.export_files import (
    ANCHOR,
    FORMAT,
    INDEX,
    SETTINGS,
    VERSION,
    WEIGHTS,
    AnchorPlace,
    ExportSettings,
    Patches,
    StoredDefence,
    is_export,
)
from lvlm_radapt.loading.load_options import no_loading_bar
from lvlm_radapt.models.base import LVLM
from lvlm_radapt.saving.export_template import marked
from lvlm_radapt.saving.plain_weights import refuse_unwritable, save_companions, weight_bytes
from lvlm_radapt.towers.base import Tower, find_tower
from lvlm_radapt.towers.parts import patch_embedding
from lvlm_radapt.utils.atomic_folder import new_folder
from lvlm_radapt.utils.errors import UserError

__all__ = ["export_model", "is_export", "load_export"]

_TEMPLATE = "lvlm_radapt.saving.export_template"
_MODELING = "modeling_radapt"


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
    refuse_attached(model, "exporting it")
    config, anchor, white = injected_config(model.hf), injected_anchor(model.hf), injected_white(model.hf)
    if config is None:
        raise UserError(f"{model.name} has no R-Adapt in it: call robustify() before exporting it")
    refuse_unwritable(model)
    stored = anchor if white is None and config.alpha != 0 else None
    patches, embedding = _patch_embedding(model)
    place = None
    if stored is not None:
        place = AnchorPlace(rows=len(stored.values), grid=stored.grid, prefix_tokens=stored.prefix_tokens)
    mark = Patches(module=patches, shape=tuple(embedding.weight.shape))
    settings = ExportSettings(
        format=FORMAT, version=VERSION, model_type=model.hf.config.model_type, base=model.name, geometry=model.geometry
    )
    weights = model.hf.state_dict()
    weights[f"{patches}.weight"] = marked(embedding.weight.detach())
    if stored is not None:
        weights[ANCHOR] = stored.values
    with new_folder(out, room=weight_bytes(model)) as folder:
        # in the layout of the running model: transformers converts a checkpoint's own for stock classes only
        with no_loading_bar():
            model.hf.save_pretrained(
                folder, state_dict=weights, max_shard_size=max_shard_size, save_original_format=False
            )
        save_companions(model, folder)
        defence = StoredDefence(
            config=config.to_dict(), anchor=place, white=white, patches=mark, weights=_out_of_sight(folder)
        )
        own = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {
            "model_type": f"radapt_{settings.model_type}",
            "architectures": ["RAdaptForConditionalGeneration"],
            "auto_map": {
                "AutoConfig": f"{_MODELING}.RAdaptModelConfig",
                "AutoModel": f"{_MODELING}.RAdaptModel",  # without a language head: what vLLM and SGLang ask for
                "AutoModelForImageTextToText": f"{_MODELING}.RAdaptForConditionalGeneration",
            },
            "radapt": defence.model_dump(mode="json"),
        }
        (folder / "config.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
        for name, source in _code(model.hf, type(find_tower(model.hf))).items():
            (folder / name).write_text(source, encoding="utf-8")
        (folder / SETTINGS).write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for name, text in (notes or {}).items():
            (folder / name).write_text(text, encoding="utf-8")


def _out_of_sight(folder: Path) -> Literal["radapt.safetensors", "radapt.safetensors.index.json"]:
    """The name that the weights just written, or the index of their shards, have from now on: none that stock classes
    look for."""
    if (folder / "model.safetensors").is_file():
        (folder / "model.safetensors").rename(folder / WEIGHTS)
        return WEIGHTS
    (folder / "model.safetensors.index.json").rename(folder / INDEX)
    return INDEX


def _patch_embedding(model: LVLM) -> tuple[str, Any]:
    """What makes tokens of patches, by its path in the model."""
    embedding = patch_embedding(find_tower(model.hf))
    return next((path, module) for path, module in model.hf.named_modules() if module is embedding)


def _code(stock: Any, tower: type[Tower]) -> dict[str, str]:
    """File name -> source: the template for this stock model and tower, and the modules of this package they need."""
    written = {
        "LlavaForConditionalGeneration": type(stock).__name__,
        "LlavaModel": type(stock.base_model).__name__,
        "LlavaConfig": type(stock).config_class.__name__,
        "lvlm_radapt.towers.clip import CLIPTower": f"{tower.__module__} import {tower.__name__}",
    }
    template = inspect.getsource(import_module(_TEMPLATE))
    for generic, own in written.items():
        template = template.replace(f"{generic} as ", f"{own} as ")
    own_import = re.compile(
        rf"^(\s*from )(lvlm_radapt\.[\w.]+|{re.escape(tower.__module__)})(?= import\b)", re.MULTILINE
    )
    files = {}
    waiting = {_MODELING: template}
    while waiting:
        name, source = waiting.popitem()
        source = _without_type_imports(source)
        files[f"{name}.py"] = own_import.sub(lambda match: f"{match[1]}.{_flat_name(match[2])}", source)
        needed = {_flat_name(match[2]): match[2] for match in own_import.finditer(source)}
        waiting |= {flat: _source(module) for flat, module in needed.items() if f"{flat}.py" not in files}
    return files


def _source(module: str) -> str:
    return inspect.getsource(import_module(module))


def _flat_name(module: str) -> str:
    return "radapt_" + module.removeprefix("lvlm_radapt.").replace(".", "_")


def _without_type_imports(source: str) -> str:
    """`source` less its `if TYPE_CHECKING:` blocks: transformers would look for what they import."""
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            del lines[node.lineno - 1 : node.end_lineno]
    return "".join(lines)
