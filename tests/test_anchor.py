"""The white anchor against the first block written out by hand, and the anchor's own rules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_random
import torch
from torch import Tensor

from lvlm_radapt.anchor import CLIP_MEAN, CLIP_STD, Anchor, white_anchor
from lvlm_radapt.config import RAdaptConfig
from lvlm_radapt.errors import UserError
from lvlm_radapt.inject import inject
from lvlm_radapt.towers import find_tower

CLIPS = [
    tiny_random.clip_vision,
    tiny_random.clip_vision_with_projection,
    tiny_random.clip,
    tiny_random.llava,
]
QWENS = [tiny_random.qwen2_vl, tiny_random.qwen2_5_vl]


def normalised_white(mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD) -> list[float]:
    return [(1.0 - m) / s for m, s in zip(mean, std, strict=True)]


def clip_first_attention(weights: dict[str, Tensor], image: Tensor, patch: int, heads: int) -> Tensor:
    """Embedding, LayerNorms and self-attention of CLIP's first block, from weights alone; image [3, H, W]."""

    def layer_norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    kernel = weights["embeddings.patch_embedding.weight"].flatten(1)
    corners = [(y, x) for y in range(0, image.shape[1], patch) for x in range(0, image.shape[2], patch)]
    patches = [kernel @ image[:, y : y + patch, x : x + patch].flatten() for y, x in corners]
    hidden = (
        torch.stack([weights["embeddings.class_embedding"], *patches]) + weights["embeddings.position_embedding.weight"]
    )
    hidden = layer_norm(layer_norm(hidden, "pre_layrnorm"), "encoder.layers.0.layer_norm1")

    def project(x: Tensor, name: str) -> Tensor:
        path = f"encoder.layers.0.self_attn.{name}"
        return x @ weights[f"{path}.weight"].T + weights[f"{path}.bias"]

    query, key, value = (project(hidden, name) for name in ("q_proj", "k_proj", "v_proj"))
    size = hidden.shape[1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = (query[:, part] @ key[:, part].T / math.sqrt(size)).exp()
        mixed.append(scores / scores.sum(1, keepdim=True) @ value[:, part])
    return project(torch.cat(mixed, dim=1), "out_proj")


@pytest.mark.parametrize("factory", CLIPS)
def test_white_anchor_of_clip_by_hand(factory: Any) -> None:
    model = factory()
    anchor = white_anchor(model)
    assert (anchor.grid, anchor.prefix_tokens, tuple(anchor.values.shape)) == ((4, 4), 1, (17, 32))
    white = torch.tensor(normalised_white()).reshape(3, 1, 1).expand(3, 56, 56)
    expected = clip_first_attention(find_tower(model).module.state_dict(), white, 14, 4)
    assert (anchor.values - expected).abs().max() < 1e-5
    assert expected.std(0).max() > 0.01  # the tokens differ: a permuted anchor would be seen


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("factory", QWENS)
def test_white_anchor_of_qwen_is_one_vector(factory: Any, implementation: str) -> None:
    model = factory()
    model.set_attn_implementation(implementation)
    anchor = white_anchor(model)
    assert (anchor.grid, anchor.prefix_tokens, tuple(anchor.values.shape)) == (None, 0, (1, 32))
    # equal tokens have equal values, so any attention weights return the value: norm, v, projection
    weights = model.model.visual.state_dict()
    patch = torch.tensor(normalised_white()).reshape(3, 1, 1, 1).expand(3, 2, 14, 14).flatten()
    hidden = weights["patch_embed.proj.weight"].flatten(1) @ patch
    if factory is tiny_random.qwen2_vl:
        hidden = (hidden - hidden.mean()) / torch.sqrt(hidden.var(unbiased=False) + 1e-6)
        hidden = hidden * weights["blocks.0.norm1.weight"] + weights["blocks.0.norm1.bias"]
    else:
        hidden = hidden / torch.sqrt((hidden**2).mean() + 1e-6) * weights["blocks.0.norm1.weight"]
    value = (weights["blocks.0.attn.qkv.weight"] @ hidden + weights["blocks.0.attn.qkv.bias"])[64:]
    expected = weights["blocks.0.attn.proj.weight"] @ value + weights["blocks.0.attn.proj.bias"]
    assert (anchor.values[0] - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("factory", QWENS)
@pytest.mark.parametrize("grid", [(2, 2), (4, 10), (12, 6)])
def test_qwens_white_anchor_is_that_of_every_grid(factory: Any, grid: tuple[int, int]) -> None:
    model = factory()
    white = torch.tensor(normalised_white()).repeat_interleave(2 * 14 * 14).expand(grid[0] * grid[1], -1)
    caught: list[Tensor] = []
    model.model.visual.blocks[0].attn.register_forward_hook(lambda *call: caught.append(call[2]))
    model.model.visual(white, grid_thw=torch.tensor([[1, *grid]]))
    anchor = white_anchor(model)
    assert (caught[0] - anchor.values).abs().max() < 1e-5 * anchor.values.abs().max()


def test_where_qwens_tokens_differ_the_anchor_is_per_patch_in_raster_order() -> None:
    model = tiny_random.qwen2_5_vl()
    visual = model.model.visual
    tower = find_tower(model)
    _, kwargs = tower.uniform_input(torch.tensor(normalised_white()))
    high, wide = tower.grid((), kwargs)

    def brighten(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # patches from left to right ever brighter: row r of patch_embed is in merge-block order
        blocks = torch.arange(high * wide).reshape(high // 2, 2, wide // 2, 2).transpose(1, 2).flatten()
        return output * (1 + (blocks % wide)[:, None])

    # queries of zero: every token gets its window's mean value, so columns of one window agree, others differ
    visual.blocks[0].attn.qkv.weight[:32] = 0
    visual.blocks[0].attn.qkv.bias[:32] = 0
    visual.blocks[0].norm1 = torch.nn.Identity()
    visual.patch_embed.register_forward_hook(brighten)
    anchor = white_anchor(model)
    assert anchor.grid == (high, wide)
    image = anchor.values.reshape(high, wide, 32)
    assert torch.allclose(image, image[:1, :].expand_as(image), rtol=1e-4, atol=1e-4)  # no change downwards
    assert torch.allclose(image[:, :4], image[:, :1].expand(-1, 4, -1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(image[:, 3], image[:, 4], rtol=1e-2)


@pytest.mark.parametrize("factory", [tiny_random.llava, tiny_random.qwen2_5_vl])
def test_white_anchor_leaves_no_trace_and_sees_no_defence(factory: Any) -> None:
    model = factory()
    before = white_anchor(model)
    tower = find_tower(model)
    tower.module.train()
    tower.first_attention.eval()
    inject(model, RAdaptConfig(cutoff=12, alpha=2.0), Anchor(torch.ones(1, 32)))
    modes = [module.training for module in model.modules()]
    hooks = len(tower.first_attention._forward_hooks)
    after = white_anchor(tower)
    assert torch.equal(before.values, after.values)
    assert [module.training for module in model.modules()] == modes
    assert len(tower.first_attention._forward_hooks) == hooks


def test_white_anchor_of_another_normalisation_and_of_half_precision() -> None:
    model = tiny_random.clip_vision()
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    white = torch.tensor(normalised_white(mean, std)).reshape(3, 1, 1).expand(3, 56, 56)
    expected = clip_first_attention(model.state_dict(), white, 14, 4)
    assert (white_anchor(model, mean, std).values - expected).abs().max() < 1e-5
    half = white_anchor(model.bfloat16(), mean, std)
    assert half.values.dtype == torch.float32
    assert (half.values - expected).abs().max() < 0.05 * expected.abs().max()
    assert tuple(white_anchor(tiny_random.qwen2_vl().bfloat16()).values.shape) == (1, 32)


@pytest.mark.parametrize("mean_std", [((0.5,), (0.5,)), (CLIP_MEAN, (1.0, 0.0, 1.0))])
def test_bad_normalisation_is_refused(mean_std: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="three finite numbers"):
        white_anchor(tiny_random.clip_vision(), *mean_std)


def test_anchor_rules() -> None:
    values = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    anchor = Anchor(values, grid=(2, 3), prefix_tokens=1)
    assert anchor.values.dtype == torch.float32
    assert not anchor.values.requires_grad
    assert anchor.width == 4
    for bad, grid, prefix in [
        (torch.randn(7, 4), (2, 3), 0),
        (torch.randn(7, 4), None, 0),
        (torch.randn(1, 4), None, 1),
        (torch.randn(4), None, 0),
        (torch.tensor([[1.0, math.nan]]), None, 0),
        (torch.ones(1, 4, dtype=torch.long), None, 0),
    ]:
        with pytest.raises(UserError) as caught:
            Anchor(bad, grid, prefix)
        assert "\n" not in str(caught.value)


def test_resized() -> None:
    prefix = torch.tensor([[5.0, -5.0]])
    ramp = torch.linspace(0, 1, 8).expand(8, 8)
    patches = torch.stack([ramp, torch.full((8, 8), 3.0)], dim=-1).reshape(64, 2)
    anchor = Anchor(torch.cat([prefix, patches]), (8, 8), 1)
    assert anchor.resized((8, 8)) is anchor
    assert Anchor(prefix).resized((3, 3)).values is not None
    assert torch.equal(Anchor(prefix).resized((3, 3)).values, prefix)
    for grid in [(12, 16), (4, 4), (5, 9)]:
        other = anchor.resized(grid)
        assert (other.grid, other.prefix_tokens, len(other.values)) == (grid, 1, 1 + grid[0] * grid[1])
        assert torch.equal(other.values[:1], prefix)
        image = other.values[1:].reshape(*grid, 2)
        assert torch.allclose(image[..., 1], torch.tensor(3.0), atol=1e-5)  # a constant channel stays
        assert (image[:, 1:, 0] > image[:, :-1, 0]).all()  # brighter to the right, as before
        assert torch.allclose(image[0, :, 0], image[-1, :, 0], atol=1e-5)  # equal downwards
