"""The vision transformer of Idefics3 and SmolVLM: SigLIP's modules under other names."""

from __future__ import annotations

from torch import Tensor

from lvlm_radapt.towers.base import Args, Kwargs, Tower, argument
from lvlm_radapt.towers.siglip import SiglipTower
from lvlm_radapt.utils.errors import UserError


class OneGridTower(Tower):
    """A tower whose forward hands no keyword on to its blocks, so that an anchor must lie on the tower's own grid."""

    def place_anchor(
        self, values: Tensor, grid: tuple[int, int] | None, args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs]:
        if grid is None or argument(args, kwargs, 0, "pixel_values") is None:
            return args, kwargs
        here = self.grid(args, kwargs)
        if here != grid:
            raise UserError(
                f"the anchor lies on {grid[0]}x{grid[1]} patches, this encoder's views on {here[0]}x{here[1]}: "
                "take one from an encoder of that grid"
            )
        return args, kwargs


class Idefics3Tower(OneGridTower, SiglipTower):
    """Idefics3VisionTransformer or SmolVLMVisionTransformer, called without a mask: no view here is padded."""

    family = "idefics3"
    encoders = ("Idefics3VisionTransformer", "SmolVLMVisionTransformer")
