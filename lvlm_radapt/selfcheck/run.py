"""All checks of a model, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from lvlm_radapt.loading.load_options import LoadOptions
from lvlm_radapt.models.base import LVLM, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.selfcheck import batching, cost, defence, files, gradients, pixels, stock
from lvlm_radapt.selfcheck.result import Check, run
from lvlm_radapt.selfcheck.trial import Trial, photo_like


def self_check(name: str, place: dict[str, Any], *, image: Image.Image | None = None) -> Iterator[Check]:
    """Each check as soon as it is made. Where the model does not open, that alone.

    name: what `load_any` opens. place: its keywords. image: what the model is shown; None for one of a photo's kind.
    Transformers' own model is opened last, when this package's is gone: memory holds one at a time.
    """
    opened: list[PixelModel] = []
    yield from run(files.NAMES, lambda: files.check_files(name, place, opened))
    if not opened:
        return
    given = {key: place[key] for key in ("device", "quantize", "device_map") if place.get(key) is not None}
    options = LoadOptions(**given, dtype=opened[0].dtype)
    kept = stock.Kept()
    yield from opened_checks(opened[0], name, photo_like() if image is None else image, kept)
    is_encoder = isinstance(opened.pop(), CLIPEncoder)
    gc.collect()
    torch.cuda.empty_cache()
    if is_encoder:
        yield from run(stock.EMBEDDINGS, lambda: stock.check_encoder(kept, options))
    else:
        yield from run(stock.TEXT, lambda: stock.check_text(kept, options))


def opened_checks(model: PixelModel, name: str, image: Image.Image, kept: stock.Kept) -> Iterator[Check]:
    """The checks that need this package's model, which is left as it was. name: what it was opened by. What the checks
    against transformers' own model need of it goes to `kept`."""
    source, why = files.stock_source(name, model)
    trial = Trial(model, image, source, why)
    yield from run(pixels.NAMES, lambda: pixels.check_pixels(trial))
    yield from run(gradients.NAMES, lambda: gradients.check_gradient(trial))
    yield from run(defence.NAMES, lambda: defence.check_defence(trial))
    yield from run(batching.NAMES, lambda: batching.check_batch(trial))
    yield from run(cost.NAMES, lambda: cost.check_cost(trial))
    if isinstance(model, LVLM):
        yield from run(stock.PROMPT, lambda: stock.check_prompt(model, trial, kept))
    elif isinstance(model, CLIPEncoder):
        stock.keep_features(model, trial, kept)
