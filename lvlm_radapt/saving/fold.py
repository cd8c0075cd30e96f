"""A robustified model as plain weights: an anchor is folded into the first attention's output projection.

(1 - alpha) (W h + b) + alpha A is W' h + b' with W' = (1 - alpha) W and b' = (1 - alpha) b + alpha A, and
W h + b + alpha A has b' = b + alpha A: as long as A is one vector for all tokens, any program that runs the stock
model runs the anchor with it. The filter is no matter of weights: the folder has an image processor that filters, which
transformers opens with trust_remote_code=True and refuses to open without, and a file that filters images for others.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lvlm_radapt.defences.base import refuse_attached
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import injected_anchor, injected_config
from lvlm_radapt.loading.image_processor import PREFIX
from lvlm_radapt.loading.load_options import no_loading_bar
from lvlm_radapt.models.base import LVLM
from lvlm_radapt.saving import filter_template, processor_template, video_template
from lvlm_radapt.saving.plain_weights import refuse_unwritable, save_companions, weight_bytes
from lvlm_radapt.towers import find_tower
from lvlm_radapt.utils.atomic_folder import new_folder
from lvlm_radapt.utils.errors import UserError

FILTER = "radapt_filter.py"
_IMAGES, _VIDEOS = "image_processing_radapt", "video_processing_radapt"

_PROJECTIONS = ("out_proj", "proj")  # the names families give it


def fold_model(
    model: LVLM,
    out: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a stock checkpoint of `model` with its anchor, if it has one, in the weights to the new folder `out`.

    The folded layer is computed in float32 and rounded to the dtype that the model is opened in. Where the
    defence has a filter, images must go through it first: the image processor in the folder does that, and
    radapt_filter.py does it for programs that have a processor of their own.

    max_shard_size: no weight file is larger, in bytes or as "5GB". notes: texts to lay beside them, by file name.

    UserError, one line, when no defence is in the model, the anchor has a row per token, the projection has no bias,
    the model cuts images into views and has a filter, the weights are quantised, or `out` is not empty or cannot be
    written.
    """
    refuse_attached(model, "folding it")
    config, anchor = injected_config(model.hf), injected_anchor(model.hf)
    if config is None:
        raise UserError(f"{model.name} has no R-Adapt in it: call robustify() before folding it")
    refuse_unwritable(model)
    weights = model.hf.state_dict()
    if config.alpha and anchor is not None:
        if anchor.grid is not None:
            raise UserError(
                f"{model.name}: the anchor has a row for each of {len(anchor.values)} tokens, "
                "and weights can hold only one for all: use --export, or --alpha 0 for the filter alone"
            )
        path, projection = _projection(model)
        weights[f"{path}.weight"], weights[f"{path}.bias"] = folded(projection, anchor.values[0], config)
    filter_source = None if config.cutoff is None else _filter_source(model, config)
    with new_folder(out, room=weight_bytes(model)) as folder:
        with no_loading_bar():
            model.hf.save_pretrained(folder, state_dict=weights, max_shard_size=max_shard_size)
        save_companions(model, folder)
        if filter_source is not None:
            (folder / FILTER).write_text(filter_source, encoding="utf-8")
            _save_processors(folder)
        for name, text in (notes or {}).items():
            (folder / name).write_text(text, encoding="utf-8")


def folded(projection: nn.Linear, anchor: Tensor, config: RAdaptConfig) -> tuple[Tensor, Tensor]:
    """Weight [D, D'] and bias [D] of `projection` with the `anchor` [D] mixed into its output; its dtype."""
    kept = 1 - config.alpha if config.mix == "interpolate" else 1.0
    weight, bias = projection.weight.detach(), projection.bias.detach()
    added = config.alpha * anchor.to(bias.device, torch.float32)
    return (kept * weight.float()).to(weight.dtype), (kept * bias.float() + added).to(bias.dtype)


def _projection(model: LVLM) -> tuple[str, nn.Linear]:
    """The first attention's output projection, by its path in the model."""
    attention = find_tower(model.hf).first_attention
    for path, module in model.hf.named_modules():
        parent, _, name = path.rpartition(".")
        if isinstance(module, nn.Linear) and name in _PROJECTIONS and model.hf.get_submodule(parent) is attention:
            if module.bias is None:
                raise UserError(f"{model.name}: {path} has no bias that could hold the anchor: use --export")
            return path, module
    raise UserError(f"{model.name}: its first attention has no plain output projection to fold into: use --export")


def _filter_source(model: LVLM, config: RAdaptConfig) -> str:
    """radapt_filter.py with this model's numbers."""
    values = {"CUTOFF": config.cutoff, "UNIT": config.cutoff_unit, "BOUNDARY": config.boundary, **_canvas(model)}
    source = inspect.getsource(filter_template)
    for name, value in values.items():
        literal = f'"{value}"' if isinstance(value, str) else repr(value)
        source, count = re.subn(rf"^{name} = .*?(?=  #|$)", f"{name} = {literal}", source, flags=re.MULTILINE)
        assert count == 1, name
    return source


def _save_processors(folder: Path) -> None:
    """Let the folder's image processor be the one that filters, and its video processor one that refuses. Their types
    are names that no stock class has, so that transformers cannot take one without trust_remote_code."""
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    stock = str(settings["image_processor_type"]).removesuffix("Pil")
    video = stock.replace("Image", "Video")
    auto_map = {"AutoImageProcessor": _save_code(folder, _IMAGES, processor_template, f"{stock}Pil", PREFIX + stock)}
    if hasattr(transformers, video):
        auto_map["AutoVideoProcessor"] = _save_code(folder, _VIDEOS, video_template, video, PREFIX + video)
        (folder / "video_preprocessor_config.json").unlink(missing_ok=True)
    settings |= {"image_processor_type": PREFIX + stock, "auto_map": auto_map}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _save_code(folder: Path, module: str, template: ModuleType, stock: str, own: str) -> str:
    """Write the template's code for that stock class; what `auto_map` calls the class `own` in it."""
    source = re.sub(r"(?<=import )\w+(?= as StockProcessor)", stock, inspect.getsource(template))
    source = re.sub(r"(?<=^class )\w+", own, source, flags=re.MULTILINE)
    source = source.replace(filter_template.__name__, f".{Path(FILTER).stem}")
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    return f"{module}.{own}"


def _canvas(model: LVLM) -> dict[str, Any]:
    """The numbers of radapt_filter.py that say how this model's processor lays an image on its canvas."""
    processor: Any = model.image_processor
    size = dict(getattr(processor, "size", None) or {})
    sized = size.get("shortest_edge") or size.get("height")
    if model.views_apart or model.counts_frames or not processor.do_resize or not sized:
        raise UserError(
            f"{model.name}: the filter cannot be put in front of a {type(processor).__name__}: "
            "use --export, or leave the filter out"
        )
    values: dict[str, Any] = {"RESAMPLE": int(processor.resample)}
    if hasattr(processor, "merge_size"):
        return values | {
            "FACTOR": processor.patch_size * processor.merge_size,
            "MIN_PIXELS": size["shortest_edge"],
            "MAX_PIXELS": size["longest_edge"],
        }
    values |= {"CANVAS": "crop", "EDGE": int(size.get("shortest_edge") or 0)}
    if not values["EDGE"]:
        values["SIZE"] = (int(size["height"]), int(size["width"]))
    if processor.do_center_crop:
        crop = dict(processor.crop_size)
        values["CROP"] = (int(crop["height"]), int(crop["width"]))
    if model.geometry == "pad" or getattr(processor, "do_pad", False):
        values["PAD"] = tuple(int(255 * level) for level in model.image_mean)
    return values
