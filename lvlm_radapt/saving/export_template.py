"""A vision-language model with R-Adapt in its vision tower: every image is low-pass filtered on its way in, and
a fixed anchor is mixed into the first attention's output (arXiv 2603.12799).

`AutoModelForImageTextToText.from_pretrained(FOLDER, trust_remote_code=True)` opens it; torch and transformers
are all it needs. The weights lie in a file that the code here alone asks for, and the patch embedding's is stored in
another shape. Both are on purpose: a stock class knows neither filter nor anchor, and would open the model unprotected.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaConfig as StockConfig
from transformers import LlavaForConditionalGeneration as StockModel
from transformers import LlavaModel as StockBase
from transformers import PreTrainedModel

from lvlm_radapt.defences.radapt.anchor import Anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import Injection
from lvlm_radapt.defences.radapt.modules import AnchorMix
from lvlm_radapt.towers.base import find_tower
from lvlm_radapt.towers.clip import CLIPTower as StockTower


class RAdaptModelConfig(StockConfig):
    """The stock configuration and, under `radapt`, what there is to know about the defence."""

    model_type = f"radapt_{StockConfig.model_type}"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        defence = dict(getattr(self, "radapt", {}))
        weights = defence.pop("weights", None)
        if weights is not None:  # whoever saves the opened model again gets files of the common names
            self.radapt, self.transformers_weights = defence, weights


class MatrixConv2d(nn.Module):
    """A convolution whose weight is kept as a matrix [out, in * kernel]. It is no nn.Conv2d: servers replace these by
    their own, with a weight of the usual shape."""

    def forward(self, input: Tensor) -> Tensor:
        conv: Any = self
        return nn.Conv2d._conv_forward(conv, input, conv.weight.unflatten(1, (-1, *conv.kernel_size)), conv.bias)


class MatrixConv3d(nn.Module):
    """The same in three dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        conv: Any = self
        return nn.Conv3d._conv_forward(conv, input, conv.weight.unflatten(1, (-1, *conv.kernel_size)), conv.bias)


class StackedLinear(nn.Module):
    """A linear map whose weight is kept as a stack of one matrix [1, out, in]; no nn.Linear, whose weight libraries
    that quantise would take for a matrix."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight[0], self.bias)


_MARKED = {nn.Conv2d: MatrixConv2d, nn.Conv3d: MatrixConv3d, nn.Linear: StackedLinear}


def marked(weight: Tensor) -> Tensor:
    """A patch embedding's weight in a shape at which a stock class stops."""
    return weight[None] if weight.ndim == 2 else weight.flatten(1)


class _Defended(PreTrainedModel):
    """A stock class with the defence put in before its weights are loaded."""

    config_class = RAdaptModelConfig
    # the anchor is float32 whatever the model computes in
    _keep_in_fp32_modules_strict = {*(StockModel._keep_in_fp32_modules_strict or ()), "radapt_mix"}  # noqa: RUF012
    _path = ""

    def __init__(self, config: RAdaptModelConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        defence, tower = config.radapt, find_tower(self)
        assert isinstance(tower, StockTower)
        place, white = defence["anchor"], defence["white"]
        anchor = None
        with torch.device("cpu"):  # from_pretrained builds on the meta device
            if place is not None:
                grid = None if place["grid"] is None else (place["grid"][0], place["grid"][1])
                anchor = Anchor(torch.zeros(place["rows"], tower.width), grid, place["prefix_tokens"])
            elif white is not None:  # the tower answers anew on each grid
                anchor = Anchor(torch.zeros(1, tower.width))
            settings = RAdaptConfig.from_dict(defence["config"])
            injection = Injection(tower, settings, anchor, None if white is None else tuple(white))
        injection.attach()
        if place is not None:
            self.radapt_mix = injection.mix  # in the module tree, so that the anchor is loaded and saved
        patches: Any = self.get_submodule(defence["patches"]["module"].removeprefix(self._path))
        patches.__class__ = _MARKED[type(patches)]
        patches.weight = nn.Parameter(marked(patches.weight.detach()))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, AnchorMix):
            nn.init.constant_(module.anchor, torch.nan)  # weights without an anchor must not go unnoticed
        else:
            super()._init_weights(module)


class RAdaptForConditionalGeneration(_Defended, StockModel):
    """The whole model."""


class RAdaptModel(_Defended, StockBase):
    """The model without its language head, for servers that bring a head of their own: vLLM and SGLang ask for it."""

    _path = f"{StockModel.base_model_prefix}."

    def __init__(self, config: RAdaptModelConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        mix: Any = getattr(self, "radapt_mix", None)
        if mix is not None:  # these servers load parameters and no buffers
            values = mix.anchor
            del mix.anchor
            mix.anchor = nn.Parameter(values, requires_grad=False)
