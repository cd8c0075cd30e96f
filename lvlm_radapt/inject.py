"""The defence into a transformers model, and out again.

Two hooks do it: one filters the pixels on their way into the vision encoder, one mixes the anchor into the
first attention's output. Weights, classes, configuration and state dict of the model stay as they were, so
`save_pretrained` writes the UNDEFENDED model; the defence itself is kept in an adapter file. The hooks hold
the anchor beside the module tree and bring it to the device of the activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from lvlm_radapt.anchor import Anchor, white_anchor
from lvlm_radapt.config import RAdaptConfig
from lvlm_radapt.errors import UserError
from lvlm_radapt.modules import AnchorMix, GaussianFilter
from lvlm_radapt.towers import Tower, find_tower
from lvlm_radapt.towers.base import LAID_ANCHOR, STATE, Args, Kwargs

Model = TypeVar("Model", bound=nn.Module)


class Injection:
    """What one tower carries: its settings, the two modules, and the hooks that call them."""

    def __init__(self, tower: Tower, config: RAdaptConfig, anchor: Anchor | None) -> None:
        self.tower = tower
        self.config = config
        self.anchor = anchor
        self.filter: GaussianFilter | None = None
        self.mix: AnchorMix | None = None
        self._suspended = 0
        self._handles: list[Any] = []
        if config.cutoff is not None:
            self.filter = GaussianFilter(config.cutoff, config.cutoff_unit, config.boundary)
        if config.alpha != 0 and anchor is not None:
            self.mix = AnchorMix(anchor.values.to(tower.device, copy=True), config.alpha, config.mix)

    def attach(self) -> None:
        """Registers the hooks that there is work for."""
        if self.filter is not None or self.mix is not None:
            self._handles.append(self.tower.module.register_forward_pre_hook(self._before_tower, with_kwargs=True))
        if self.mix is not None:
            self._handles.append(
                self.tower.first_attention.register_forward_hook(self._after_attention, with_kwargs=True)
            )
        setattr(self.tower.module, STATE, self)

    def detach(self) -> None:
        """Takes everything out again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        delattr(self.tower.module, STATE)

    @contextmanager
    def suspend(self) -> Iterator[None]:
        """Within it the hooks do nothing; may be nested."""
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1

    def _before_tower(self, module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        if self._suspended:
            return None
        if self.filter is not None:
            args, kwargs = self.tower.filter_pixels(args, kwargs, self.filter)
        if self.mix is not None and self.anchor is not None:
            args, kwargs = self.tower.lay(self.mix.anchor, self.anchor.grid, args, kwargs)
        return args, kwargs

    def _after_attention(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        if self._suspended or self.mix is None:
            return None
        r = output[0] if isinstance(output, tuple) else output
        if self.mix.anchor.device != r.device and not torch.compiler.is_compiling():
            with torch.inference_mode(False):  # an anchor made in inference mode could not be trained through
                self.mix.to(r.device)  # the model has moved; once, not in every call
        mixed = self.mix(r, kwargs.get(LAID_ANCHOR))
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


def inject(hf_model: Model, config: RAdaptConfig, anchor: Anchor | None = None) -> Model:
    """Puts the defence into `hf_model`, in place, and returns it.

    No parameter is touched. The hooks survive generate, gradient checkpointing, half precision, device
    moves and deep copies; under torch.compile inject before the first compiled call. With `cutoff=None`
    and `alpha=0` outputs are the stock ones, bit for bit.

    Args:
        hf_model: a transformers model with a vision encoder that `find_tower` knows.
        config: the settings.
        anchor: the anchor to mix in; None takes the white one from the encoder itself, with CLIP's
            normalisation (elsewise call `white_anchor`). Not needed, and not computed, for `alpha=0`.

    Raises:
        UserError: unknown model, injected already, or an anchor that does not fit the encoder.
    """
    tower = find_tower(hf_model)
    if hasattr(tower.module, STATE):
        raise UserError(f"{type(hf_model).__name__} has R-Adapt injected already: call remove() first")
    if anchor is None and config.alpha != 0:
        anchor = white_anchor(tower)
    if anchor is not None:
        tower.check(anchor)
    Injection(tower, config, anchor).attach()
    return hf_model


def remove(hf_model: Model) -> Model:
    """Takes the defence out of `hf_model`, in place, leaving the stock model; `UserError` if none is in."""
    injection = _injection(hf_model)
    if injection is None:
        raise UserError(f"{type(hf_model).__name__} has no R-Adapt injected: there is nothing to remove")
    injection.detach()
    return hf_model


def is_injected(hf_model: nn.Module) -> bool:
    """Whether the defence is in `hf_model` (also within `disabled`)."""
    return _injection(hf_model) is not None


def injected_config(hf_model: nn.Module) -> RAdaptConfig | None:
    """The settings of the defence in `hf_model`, or None."""
    injection = _injection(hf_model)
    return None if injection is None else injection.config


def injected_anchor(hf_model: nn.Module) -> Anchor | None:
    """The anchor of the defence in `hf_model`; None without a defence, or where `alpha=0` needed none."""
    injection = _injection(hf_model)
    return None if injection is None else injection.anchor


def disabled(hf_model: nn.Module) -> AbstractContextManager[None]:
    """Within it `hf_model` is its own undefended twin, on the same weights: bit for bit the stock model.

    May be nested, ends with an exception, and does nothing on a model without the defence. Not per thread.
    """
    return find_tower(hf_model).stock()


def _injection(hf_model: nn.Module) -> Injection | None:
    found = getattr(find_tower(hf_model).module, STATE, None)
    return found if isinstance(found, Injection) else None
