"""Weights and generation settings of a checkpoint in Hugging Face layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers

from lvlm_radapt.loading.export_files import StockCheckpoint
from lvlm_radapt.loading.load_options import LoadOptions, OpeningError, opening_errors, quiet_loading
from lvlm_radapt.loading.weights import check_indices, check_weight_files, checkpoint_file
from lvlm_radapt.utils.errors import UserError


def load_weights(
    hf_class: Any,
    source: str,
    name: str,
    options: LoadOptions,
    *,
    stored: StockCheckpoint | None = None,
    kept: Sequence[str] = (),
) -> Any:
    """The model `hf_class` from the checkpoint `source`, or from what `stored` holds of it.

    kept: modules that are not quantised, by their path. UserError, with the model's `name`, for weights that are
    missing, damaged, too many or of another shape.
    """
    check_indices(source)
    shared = options.arguments(kept) | {"output_loading_info": True}
    try:
        with options.fitting(name), quiet_loading():
            if stored is None:
                model, info = hf_class.from_pretrained(source, **shared)
            else:
                config = hf_class.config_class.from_dict(stored.config)
                model, info = hf_class.from_pretrained(None, config=config, state_dict=stored.weights, **shared)
            _check_keys(hf_class, info)
            return options.place(model)
    except OpeningError as error:
        if stored is None:
            check_weight_files(source, name)
        raise UserError(f"{name}: cannot load its weights: {error}") from error


def _check_keys(hf_class: Any, info: dict[str, Any]) -> None:
    """OpeningError unless the checkpoint gave each weight of the model and no other."""
    missing = sorted(info["missing_keys"])
    # constants that old checkpoints stored and newer code computes
    unexpected = sorted(k for k in info["unexpected_keys"] if not k.endswith(("position_ids", "inv_freq")))
    for what, keys in (("misses", missing), ("holds unknown", unexpected)):
        if keys:
            raise OpeningError(f"the checkpoint {what} weights {first_keys(keys)}: it is no plain {hf_class.__name__}")


def first_keys(keys: Sequence[str]) -> str:
    """The first three names of weights, and how many more there are."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def read_generation_config(hf: Any, source: str, name: str) -> None:
    """The checkpoint's generation settings, if it has any; UserError where transformers would pass over a damaged
    file, and the answers would end elsewhere."""
    if checkpoint_file(source, "generation_config.json") is None:
        return
    try:
        with opening_errors():
            hf.generation_config = transformers.GenerationConfig.from_pretrained(source)
    except OpeningError as error:
        raise UserError(f"{name}: cannot read its generation_config.json: {error}") from error
    ends = hf.generation_config.eos_token_id
    each = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in each):
        raise UserError(f"{name}: generation_config.json has eos_token_id {str(ends)[:60]}: it must be ids of tokens")
