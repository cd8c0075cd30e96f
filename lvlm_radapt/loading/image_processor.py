"""A checkpoint's image processor, and which of its settings no image can be prepared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import transformers
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lvlm_radapt.loading.load_options import OpeningError, opening_errors
from lvlm_radapt.models.families import image_processors
from lvlm_radapt.utils.bounds import MOST_PIXELS
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import first_problem, read_json

PREFIX = "RAdapt"
"""What the type of an image processor begins with that filters, in a folded folder."""
_Side = Annotated[int, Field(ge=1, le=4096)]
_Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
_Size = _Side | dict[str, _Side | None] | list[_Side] | None
_Colour = list[Annotated[float, Field(allow_inf_nan=True)]] | None  # what is no number is told where it is used


def open_image_processor(source: str, name: str) -> Any:
    """The PIL class itself, named outright: torchvision's resizes otherwise, by up to 17 of 255 levels on a photo for
    Qwen2.5-VL, and transformers' automatic choice asks for torchvision in some versions even where PIL would do.

    Of one that filters it is the stock class: code in a checkpoint's folder is never run.

    UserError, with the model's `name`, for one that is missing, damaged or of no family here.
    """
    try:
        with opening_errors():
            config, _ = transformers.CLIPImageProcessorPil.get_image_processor_dict(source)
            kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "missing")
            kind = kind.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor").removeprefix(PREFIX)
            if kind in image_processors():
                check_processor(kind, config)
                return getattr(transformers, f"{kind}Pil").from_pretrained(source)
    except OpeningError as error:
        raise UserError(f"{name}: cannot load its image processor: {error}") from error
    raise UserError(f"{name}: image processor {kind!r} is not supported, only {', '.join(image_processors())} are")


def filters_images(folder: Path) -> bool:
    """Whether the image processor in the folder is one that filters, by code of its own: that of folded weights."""
    path = folder / "preprocessor_config.json"
    content = read_json(path) if path.is_file() else None
    return isinstance(content, dict) and str(content.get("image_processor_type")).startswith(PREFIX)


class _Processor(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    size: _Size = None
    crop_size: _Size = None
    image_mean: _Colour = None
    image_std: _Colour = None
    rescale_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    resample: Annotated[int, Field(ge=0, le=5)] | None = None
    patch_size: _Side | dict[str, _Side] | None = None
    temporal_patch_size: _Side | None = None
    merge_size: _Side | None = None
    image_grid_pinpoints: list[Annotated[list[_Side], Field(min_length=2, max_length=2)]] | None = None
    do_resize: bool | None = None
    do_center_crop: bool | None = None
    do_rescale: bool | None = None
    do_normalize: bool | None = None
    do_convert_rgb: bool | None = None


class _ByPixels(_Processor):
    """Of models whose canvas grows with the image: sizes are numbers of pixels."""

    size: dict[str, _Pixels | None] | None = None
    min_pixels: _Pixels | None = None
    max_pixels: _Pixels | None = None


def check_processor(kind: str, config: Mapping[str, Any]) -> None:
    """OpeningError naming the first field that no image can be prepared with."""
    by_pixels = image_processors()[kind]
    try:
        (_ByPixels if by_pixels else _Processor).model_validate(dict(config))
    except ValidationError as error:
        raise OpeningError(first_problem(error)) from error
