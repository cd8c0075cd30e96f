"""A transformers model from settings and tensors that come from elsewhere than one of its own checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_radapt.loading.hf import first_keys
from lvlm_radapt.loading.load_options import LoadOptions, OpeningError, quiet_loading
from lvlm_radapt.utils.errors import UserError


def from_state_dict(
    hf_class: Any, config: Any, tensors: dict[str, Tensor], name: str, options: LoadOptions, *, kept: Sequence[str] = ()
) -> Any:
    """`hf_class(config)` with exactly these weights.

    Tensors that have the wanted precision already are taken over as they are, the others converted one by one.
    kept: modules that are not quantised, by their path. UserError, one line with `name` in front, when a tensor is
    missing, too many or of another shape than the settings ask for.
    """
    shapes = _shapes(hf_class, config, name)
    for what, keys in (
        ("misses", sorted(shapes.keys() - tensors.keys())),
        ("holds unknown", sorted(tensors.keys() - shapes.keys())),
    ):
        if keys:
            raise UserError(f"{name}: the checkpoint {what} weights {first_keys(keys)}: its config is of another model")
    for key, shape in shapes.items():
        check_shape(key, tensors[key], shape, name)
    arguments = options.arguments(kept)
    try:
        with options.fitting(name), quiet_loading():
            hf = hf_class.from_pretrained(None, config=config, state_dict=tensors, **arguments)
            return options.place(hf)
    except OpeningError as error:
        raise UserError(f"{name}: cannot build the model: {error}") from error


def check_shape(key: str, tensor: Tensor, shape: tuple[int, ...], name: str) -> None:
    """UserError unless the tensor has that shape."""
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"{name}: {key} has shape {tuple(tensor.shape)} and the config asks for {shape}: one of the two is of "
            "another model"
        )


def _shapes(hf_class: Any, config: Any, name: str) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of every weight that a model of these settings has."""
    try:
        with quiet_loading(), torch.device("meta"):
            return {key: tuple(value.shape) for key, value in hf_class(config).state_dict().items()}
    except OpeningError as error:
        raise UserError(f"{name}: the config describes no model: {error}") from error
