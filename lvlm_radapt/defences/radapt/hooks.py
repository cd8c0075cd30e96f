"""The defence into a transformers model, and out again.

Two hooks do it: one filters the pixels on their way into the vision encoder, one mixes the anchor into the
first attention's output. Weights, classes, configuration and state dict of the model stay as they were, so
`save_pretrained` writes the UNDEFENDED model; the defence itself is kept in an adapter file. The hooks hold
the anchor beside the module tree and bring it to the device of the activations.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lvlm_radapt.defences.radapt.anchor import Anchor, uniform_anchor, uniform_rows
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.modules import AnchorMix, GaussianFilter
from lvlm_radapt.towers.base import BYPASS, PLACED_ANCHOR, STATE, AnyGridTower, Args, Colour, Kwargs, Tower, find_tower
from lvlm_radapt.utils.errors import UserError

Model = TypeVar("Model", bound=nn.Module)

_GRIDS_KEPT = 16  # a large image's anchor takes some 50 MB; the images of one batch mostly share a grid


class Injection:
    """What one tower carries: its settings, the two modules, and the hooks that call them.

    white: the normalised white pixel where the anchor is the tower's own and other on each grid: it is then
        the tower's answer to white on the grid at hand, and `anchor` shows the one on its usual grid.
    """

    def __init__(self, tower: Tower, config: RAdaptConfig, anchor: Anchor | None, white: Colour | None = None) -> None:
        self.tower = tower
        self.config = config
        self.anchor = anchor
        self.white = white
        self._own_rows: dict[Any, Tensor] = {}
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
        if self._suspended or BYPASS in kwargs:
            return None
        if self.filter is not None:
            args, kwargs = self.tower.filter_pixels(args, kwargs, self.filter)
        if self.mix is not None and self.anchor is not None:
            if self.white is not None and isinstance(self.tower, AnyGridTower):
                args, kwargs = self.tower.place_anchor_per_grid(
                    functools.partial(self._own_rows_on, self.white), args, kwargs
                )
            else:
                args, kwargs = self.tower.place_anchor(self.mix.anchor, self.anchor.grid, args, kwargs)
        return args, kwargs

    def _own_rows_on(self, white: Colour, grid: tuple[int, int]) -> Tensor:
        # by device and dtype too, so that no answer depends on what the model did before it was moved
        key = (grid, self.tower.device, self.tower.dtype)
        rows = self._own_rows.pop(key, None)
        if rows is None:
            with torch.inference_mode(False):  # a tensor made in inference mode could not be trained through
                rows, _ = uniform_rows(self.tower, white, grid)
        self._own_rows[key] = rows  # the one used last comes last
        if len(self._own_rows) > _GRIDS_KEPT:
            self._own_rows.pop(next(iter(self._own_rows)), None)
        return rows

    def _after_attention(self, module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        if self._suspended or self.mix is None or BYPASS in kwargs:
            return None
        r = output[0] if isinstance(output, tuple) else output
        if self.mix.anchor.device != r.device and not torch.compiler.is_compiling():
            with torch.inference_mode(False):  # an anchor made in inference mode could not be trained through
                self.mix.to(r.device)  # the model has moved; once, not in every call
        mixed = self.mix(r, kwargs.get(PLACED_ANCHOR))
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


def inject(
    hf_model: Model, config: RAdaptConfig, anchor: Anchor | None = None, *, white: Colour | None = None
) -> Model:
    """Puts the defence into `hf_model`, in place, and returns it.

    No parameter is touched. The hooks survive generate, gradient checkpointing, half precision, device
    moves and deep copies; under torch.compile inject before the first compiled call. With `cutoff=None`
    and `alpha=0` outputs are the stock ones, bit for bit.

    An anchor serves images of every grid. A given one is fixed: one vector for all tokens, or patch rows that
    are interpolated in image space where an encoder takes any grid (Qwen). The encoder's own white one is
    other on each grid where positions are added to its patches (Qwen3-VL): there it is taken anew on each
    image's grid, by an extra pass through the first block, and kept for the grids met last.

    Args:
        hf_model: a transformers model with a vision encoder that `find_tower` knows.
        config: the settings.
        anchor: the anchor to mix in; None takes the white one from the encoder itself, which `config.anchor` must
            then ask for. Not needed, and not computed, for `alpha=0`.
        white: without an anchor, a white pixel after the model's normalisation, three numbers; None for the
            family's usual normalisation.

    Raises:
        UserError: unknown model, injected already, an anchor that does not fit the encoder, or none where the
            settings ask for a guided or learned one.
    """
    tower = find_tower(hf_model)
    if hasattr(tower.module, STATE):
        raise UserError(f"{type(hf_model).__name__} has R-Adapt injected already: call remove() first")
    own = None
    if anchor is None and config.alpha != 0:
        if config.anchor != "white":
            raise UserError(
                f"the {config.anchor} anchor is not the encoder's own: give it as `anchor`, or set anchor to white"
            )
        colour = tower.white() if white is None else white
        anchor = uniform_anchor(tower, colour)
        own = colour if anchor.grid is not None and isinstance(tower, AnyGridTower) else None
    if anchor is not None:
        tower.check(anchor)
    Injection(tower, config, anchor, own).attach()
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
    """The anchor of the defence in `hf_model`; None without a defence, or where `alpha=0` needed none.

    Where there is an `injected_white`, it is the one on the encoder's usual grid.
    """
    injection = _injection(hf_model)
    return None if injection is None else injection.anchor


def injected_white(hf_model: nn.Module) -> Colour | None:
    """The normalised white pixel from which the defence takes its anchor anew on each image's grid; None
    without a defence, or where its anchor is fixed."""
    injection = _injection(hf_model)
    return None if injection is None else injection.white


def injected_mix(hf_model: nn.Module) -> AnchorMix | None:
    """The module that mixes the anchor into `hf_model`; None without a defence, or where `alpha=0` needed none.

    Every call reads the module's `anchor` and `alpha`: tensors that ask for gradients, put in their place, get them.
    """
    injection = _injection(hf_model)
    return None if injection is None else injection.mix


def disabled(hf_model: nn.Module) -> AbstractContextManager[None]:
    """Within it `hf_model` is its own undefended model, on the same weights: bit for bit the stock model.

    May be nested, ends with an exception, and does nothing on a model without the defence. Not per thread.
    """
    return find_tower(hf_model).stock()


def _injection(hf_model: nn.Module) -> Injection | None:
    found = getattr(find_tower(hf_model).module, STATE, None)
    return found if isinstance(found, Injection) else None
