"""The gradient of a patch embedding as one matrix product.

A convolution whose kernel is as large as its step cuts an image into patches and multiplies each by a matrix. The
library's backward pass does not see that: on a CPU it was 39 % of an attack step on tiny-qwen. The forward pass stays
the library's, to the bit.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def prepare(tower: nn.Module) -> None:
    """Gives every patch embedding in `tower` its gradient; weights that are trained keep the library's."""
    for module in tower.modules():
        if _cuts_patches(module) and replace_gradient not in module._forward_hooks.values():
            module.register_forward_hook(replace_gradient)


def _cuts_patches(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d | nn.Conv3d)
        and module.kernel_size == module.stride
        and module.groups == 1
        and (module.padding == "valid" or set(module.padding) == {0})
        and all(step == 1 for step in module.dilation)
    )


def replace_gradient(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    weight: Tensor = module.weight
    trained = any(parameter.requires_grad for parameter in module.parameters())
    # an offloaded weight has been taken away again by now
    if trained or not output.requires_grad or weight.device != output.device:
        return None
    return _Patches.apply(args[0], weight, output.detach())


class _Patches(torch.autograd.Function):
    """The identity on `output`, whose gradient goes to `pixels`."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weight: Tensor, output: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.sizes, ctx.dtype = pixels.shape[2:], pixels.dtype
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        channels, *kernel = weight.shape[1:]
        count, _, *grid = slopes[0].shape
        axes = range(len(grid))
        # under autocast the convolution's result has another dtype than its weight
        patches = slopes[0].movedim(1, -1) @ weight.flatten(1).to(slopes[0].dtype)
        # [count, grid..., channels, kernel...] -> [count, channels, grid, kernel, grid, kernel...]
        placed = patches.view(count, *grid, channels, *kernel).permute(
            0, 1 + len(grid), *chain.from_iterable((1 + axis, 2 + len(grid) + axis) for axis in axes)
        )
        image = placed.reshape(count, channels, *(grid[axis] * kernel[axis] for axis in axes)).to(ctx.dtype)
        # pixels beyond the last whole patch are not seen
        beyond = [(0, ctx.sizes[axis] - grid[axis] * kernel[axis]) for axis in reversed(axes)]
        return functional.pad(image, list(chain.from_iterable(beyond))), None, None
