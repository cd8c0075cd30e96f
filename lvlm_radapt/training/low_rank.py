"""Changes of low rank in place of the weights themselves: few numbers to train, and plain weights at the end."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lvlm_radapt.utils.errors import UserError

_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d)  # a patch embedding is a convolution


class LowRankChange(nn.Module):
    """weight, a matrix of O rows and I columns -> weight + up @ down; `down` [rank, I] is drawn, `up` [O, rank] zero at
    first: no change (LoRA, Hu et al. 2021, arXiv 2106.09685, at scale 1). Of a convolution each kernel is a row."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = _matrix(weight)
        drawn = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.down = nn.Parameter(drawn.to(weight))
        self.up = nn.Parameter(torch.zeros(rows, rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        # what is merged in the end is this, whatever precision the layer computes in
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.up @ self.down).view_as(weight)


@contextmanager
def low_rank_changes(
    module: nn.Module, names: Collection[str], rank: int, *, seed: int
) -> Iterator[dict[str, nn.Parameter]]:
    """Inside, the linear layers and convolutions of `module` whose weight is among `names` carry a change; gives the
    changes' factors by name. When it ends, by an error too, the changes are in the weights and the module is as it was
    built.

    Raises UserError when there is no such layer, or the rank is none for one of them.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _LAYERS) and f"{name}.weight" in names
    }
    if not layers:
        raise UserError("--rank finds no linear layer or convolution to train: choose a wider --scope")
    least = min(min(_matrix(layer.weight)) for layer in layers.values())
    if not 1 <= rank < least:
        raise UserError(f"--rank must be from 1 to {least - 1}, below the layers' own, got {rank}")
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, nn.Parameter] = {}
    try:
        for name, layer in layers.items():
            change = LowRankChange(layer.weight, rank, generator)
            parametrize.register_parametrization(layer, "weight", change)
            factors |= {f"{name}.{factor}": value for factor, value in change.named_parameters()}
        yield factors
    finally:
        for layer in layers.values():
            if parametrize.is_parametrized(layer):
                parametrize.remove_parametrizations(layer, "weight")


def _matrix(weight: Tensor) -> tuple[int, int]:
    """Rows and columns of a weight."""
    return len(weight), weight[0].numel()
