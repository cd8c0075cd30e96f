"""Qwen vision encoders: pixels to patch rows and back, token order, attention batched over equal windows."""

import copy
import functools
from typing import Any

import accelerate.hooks
import pytest
import torch
from torch import Tensor

from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.qwen import batch_equal_windows, frames_to_rows, images_to_rows, rows_to_frames, rows_to_images
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_random

QWENS = [tiny_random.qwen2_vl, tiny_random.qwen2_5_vl, tiny_random.qwen3_vl]
GRIDS = [(1, 4, 6), (1, 10, 4), (1, 2, 2), (1, 8, 8), (2, 6, 10)]


def rows_by_loops(frames: Tensor, patch: int, merge: int, temporal: int) -> Tensor:
    """Patch rows of one clip [F, C, H, W], one number at a time in the documented order."""
    count, channels, height, width = frames.shape
    rows = []
    for step in range(count // temporal):
        for block_y in range(height // (patch * merge)):
            for block_x in range(width // (patch * merge)):
                for in_y in range(merge):
                    for in_x in range(merge):
                        top, left = (block_y * merge + in_y) * patch, (block_x * merge + in_x) * patch
                        columns = [
                            frames[step * temporal + t, c, top : top + patch, left : left + patch].flatten()
                            for c in range(channels)
                            for t in range(temporal)
                        ]
                        rows.append(torch.cat(columns))
    return torch.stack(rows)


@pytest.mark.parametrize(("patch", "merge", "temporal"), [(3, 2, 2), (2, 1, 1), (2, 3, 2)])
def test_rows_against_loops(patch: int, merge: int, temporal: int) -> None:
    frames = torch.rand(2, 2 * temporal, 3, 2 * patch * merge, 3 * patch * merge)
    rows = frames_to_rows(frames, patch, merge, temporal)
    assert torch.equal(rows, torch.cat([rows_by_loops(clip, patch, merge, temporal) for clip in frames]))
    grid = (2, 2 * merge, 3 * merge)
    assert torch.equal(rows_to_frames(rows, grid, patch, merge, temporal), frames)


def test_still_images_repeat_their_frame_and_come_back() -> None:
    small, large = torch.rand(2, 3, 12, 18), torch.rand(1, 3, 24, 6)
    rows = torch.cat([images_to_rows(small, 3, 2), images_to_rows(large, 3, 2)])
    back = rows_to_images(rows, torch.tensor([[1, 4, 6], [1, 4, 6], [1, 8, 2]]), 3, 2)
    assert [tuple(image.shape) for image in back] == [(2, 3, 12, 18), (2, 3, 12, 18), (2, 3, 24, 6)]
    for image, frames in zip([*small, *large], back, strict=True):
        assert torch.equal(frames, image.expand(2, -1, -1, -1))


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2 frames and of 6 px"):
        images_to_rows(torch.rand(1, 3, 12, 15), 3, 2)


@pytest.mark.parametrize("factory", QWENS)
def test_order_is_that_of_the_models_first_block(factory: Any) -> None:
    model = factory(patch_size=4)
    tower = find_tower(model)
    if tower.absolute_positions:
        model.model.visual.pos_embed.weight.zero_()  # what is compared are patches alone
    frames = [torch.rand(t * 2, 3, 4 * high, 4 * wide) for t, high, wide in GRIDS]
    rows = torch.cat([frames_to_rows(clip[None], 4, 2) for clip in frames])
    caught: list[Tensor] = []
    handle = model.model.visual.blocks[0].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    grid_thw = torch.tensor(GRIDS)
    model.model.visual(rows, grid_thw=grid_thw)
    handle.remove()
    # every patch cut out of its frame in raster order and embedded alone
    raster = torch.stack(
        [
            clip[2 * step : 2 * step + 2, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].transpose(0, 1).flatten()
            for clip, (t, high, wide) in zip(frames, GRIDS, strict=True)
            for step in range(t)
            for y in range(high)
            for x in range(wide)
        ]
    )
    embedded = model.model.visual.patch_embed(raster)
    order = tower.order((rows,), {"grid_thw": grid_thw})
    assert order is not None
    assert torch.allclose(caught[0], embedded[order], atol=1e-6)
    assert not torch.allclose(caught[0], embedded, atol=1e-2)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("factory", QWENS)
def test_batched_windows_equal_the_stock_loop(factory: Any, implementation: str) -> None:
    stock = factory(patch_size=4)
    stock.set_attn_implementation(implementation)
    stock.requires_grad_(True)
    batched = batch_equal_windows(copy.deepcopy(stock))
    batch_equal_windows(batched)  # twice is as once
    assert batched.state_dict().keys() == stock.state_dict().keys()
    count = sum(t * high * wide for t, high, wide in GRIDS)
    rows = torch.randn(count, 3 * 2 * 16)
    results = []
    for model in (stock, batched, copy.deepcopy(batched)):
        pixels = rows.clone().requires_grad_()
        out = model.model.visual(pixels, grid_thw=torch.tensor(GRIDS)).last_hidden_state
        (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).mean().backward()
        weight = model.model.visual.blocks[0].attn.qkv.weight
        results.append((out.detach(), pixels.grad, weight.grad))
    for other in results[1:]:
        for ours, theirs in zip(other, results[0], strict=True):
            assert ours is not None
            assert theirs is not None
            assert theirs.abs().max() > 0
            assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, theirs.abs().max().item())


def test_batched_windows_call_attention_once_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_random.qwen2_5_vl(patch_size=4, layers=2)
    model.set_attn_implementation("sdpa")
    calls: list[tuple[int, ...]] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def counting(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(tuple(query.shape))
        return plain(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    batch_equal_windows(model)
    grid_thw = torch.tensor([[1, 8, 8], [1, 8, 8], [1, 4, 6]])
    model.model.visual(torch.randn(152, 96), grid_thw=grid_thw)
    # block 0: windows of 4 x 4 patches (4 + 4 + 1) and one of 4 x 2; block 1: whole images
    assert calls == [(9, 4, 16, 8), (1, 4, 8, 8), (2, 4, 64, 8), (1, 4, 24, 8)]


def test_batched_windows_keep_the_hooks_of_a_dispatched_model() -> None:
    model = tiny_random.qwen2_5_vl(patch_size=4)
    rows, grid_thw = torch.randn(64, 96), torch.tensor([[1, 8, 8]])
    stock = model.model.visual(rows, grid_thw=grid_thw).last_hidden_state
    calls: list[int] = []

    class Counting(accelerate.hooks.ModelHook):  # type: ignore[misc]
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return args, kwargs

    for block in model.model.visual.blocks:
        accelerate.hooks.add_hook_to_module(block.attn, Counting())
    batch_equal_windows(model)
    batched = model.model.visual(rows, grid_thw=grid_thw).last_hidden_state
    assert torch.allclose(batched, stock, atol=1e-5)
    assert len(calls) == len(model.model.visual.blocks)
    assert isinstance(model.model.visual.blocks[0].attn._old_forward, functools.partial)


def test_batched_windows_want_a_qwen_model() -> None:
    with pytest.raises(UserError, match="LlavaForConditionalGeneration is no Qwen2-VL"):
        batch_equal_windows(tiny_random.llava())
