"""What a checkpoint's preprocessor_config.json may ask of images: sizes that can be computed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lvlm_radapt.loading.load_options import OpeningError
from lvlm_radapt.utils.bounds import MOST_PIXELS
from lvlm_radapt.utils.json_files import first_problem

_Side = Annotated[int, Field(ge=1, le=4096)]
_Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
_Size = _Side | dict[str, _Side | None] | list[_Side] | None
_Colour = list[Annotated[float, Field(allow_inf_nan=True)]] | None  # what is no number is told where it is used


class _Processor(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    size: _Size = None
    crop_size: _Size = None
    image_mean: _Colour = None
    image_std: _Colour = None
    rescale_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    resample: Annotated[int, Field(ge=0, le=5)] | None = None
    patch_size: _Side | None = None
    temporal_patch_size: _Side | None = None
    merge_size: _Side | None = None
    image_grid_pinpoints: list[Annotated[list[_Side], Field(min_length=2, max_length=2)]] | None = None
    do_resize: bool | None = None
    do_center_crop: bool | None = None
    do_rescale: bool | None = None
    do_normalize: bool | None = None
    do_convert_rgb: bool | None = None


class _ByPixels(_Processor):
    """Qwen's, whose sizes are numbers of pixels."""

    size: dict[str, _Pixels | None] | None = None
    min_pixels: _Pixels | None = None
    max_pixels: _Pixels | None = None


def check_processor(config: Mapping[str, Any]) -> None:
    """OpeningError naming the first field that no image can be prepared with."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    try:
        (_ByPixels if kind.startswith("Qwen") else _Processor).model_validate(dict(config))
    except ValidationError as error:
        raise OpeningError(first_problem(error)) from error
