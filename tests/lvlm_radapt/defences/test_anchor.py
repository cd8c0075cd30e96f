"""The white anchor against the first block written out by hand, and the anchor's own rules."""

import copy
import math
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from lvlm_radapt.defences.radapt.anchor import CLIP_MEAN, CLIP_STD, Anchor, white_anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import disabled, inject, injected_anchor, injected_white, remove
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.qwen import images_to_rows
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_random
from tests.helpers.first_attention import HALF, clip_first_attention

CLIPS = [tiny_random.clip_vision, tiny_random.clip_vision_with_projection, tiny_random.clip, tiny_random.llava]
NEXT = [tiny_random.llava_next]
SIGLIPS = [tiny_random.siglip_vision, tiny_random.siglip, tiny_random.llava_onevision, tiny_random.idefics3]
QWENS = [tiny_random.qwen2_vl, tiny_random.qwen2_5_vl]


def normalised_white(mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD) -> list[float]:
    return [(1.0 - m) / s for m, s in zip(mean, std, strict=True)]


@pytest.mark.parametrize("factory", [*CLIPS, *NEXT])
def test_white_anchor_of_clip_by_hand(factory: Any) -> None:
    model = factory()
    anchor = white_anchor(model)
    assert (anchor.grid, anchor.prefix_tokens, tuple(anchor.values.shape)) == ((4, 4), 1, (17, 32))
    white = torch.tensor(normalised_white()).reshape(3, 1, 1).expand(3, 56, 56)
    expected = clip_first_attention(find_tower(model).module.state_dict(), white, 14, 4)
    assert (anchor.values - expected).abs().max() < 1e-5
    assert expected.std(0).max() > 0.01  # the tokens differ: a permuted anchor would be seen


@pytest.mark.parametrize("factory", SIGLIPS)
def test_white_anchor_of_siglip_by_hand(factory: Any) -> None:
    model = factory()
    # with positions as small as the rest, white's tokens would answer nearly alike
    find_tower(model).module.get_parameter("embeddings.position_embedding.weight").mul_(20)
    anchor = white_anchor(model)
    assert (anchor.grid, anchor.prefix_tokens, tuple(anchor.values.shape)) == ((4, 4), 0, (16, 32))
    white = torch.tensor(normalised_white(HALF, HALF)).reshape(3, 1, 1).expand(3, 56, 56)
    expected = clip_first_attention(find_tower(model).module.state_dict(), white, 14, 4)
    assert (anchor.values - expected).abs().max() < 1e-5
    assert expected.std(0).max() > 0.01


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


# -- Qwen3-VL: an anchor for each grid -------------------------------------------------------------------

MIXED = [(4, 6), (10, 2), (4, 6), (6, 6)]
WHITE = (1.0, 1.0, 1.0)  # where mean and std are one half


def qwen3_first_attention(weights: dict[str, Tensor], colour: tuple[float, ...], high: int, wide: int) -> Tensor:
    """Qwen3-VL's first attention output on a uniform image, from weights alone: float64 [high * wide, 32] in
    raster order; 4 heads of size 8."""
    weights = {name: value.double() for name, value in weights.items()}
    kernel = weights["patch_embed.proj.weight"]
    patch = kernel.sum((2, 3, 4)) @ torch.tensor(colour).double() + weights["patch_embed.proj.bias"]
    table = weights["pos_embed.weight"]
    side = math.isqrt(len(table))

    def learned(y: float, x: float) -> Tensor:
        """The position at a point of the table, bilinear between its four neighbours."""
        top, left = min(int(y), side - 2), min(int(x), side - 2)
        down, right = y - top, x - left
        upper = (1 - right) * table[top * side + left] + right * table[top * side + left + 1]
        lower = (1 - right) * table[(top + 1) * side + left] + right * table[(top + 1) * side + left + 1]
        return (1 - down) * upper + down * lower

    places = [(y, x) for y in range(high) for x in range(wide)]
    # the table's corners lie on the image's corner patches
    points = [(y * (side - 1) / (high - 1), x * (side - 1) / (wide - 1)) for y, x in places]
    hidden = torch.stack([patch + learned(y, x) for y, x in points])
    hidden = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    hidden = hidden * weights["blocks.0.norm1.weight"] + weights["blocks.0.norm1.bias"]
    merged = hidden @ weights["blocks.0.attn.qkv.weight"].T + weights["blocks.0.attn.qkv.bias"]
    query, key, value = merged.split(32, dim=1)
    # pairs of numbers turn with the row and the column, at speeds 1 and 1 / 100
    angles = torch.tensor([[y, y / 100, x, x / 100] for y, x in places], dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angles), angles)
    outputs = []
    for head in range(4):
        part = slice(8 * head, 8 * head + 8)
        query_turned, key_turned = (torch.complex(*x[:, part].split(4, dim=1)) * turn for x in (query, key))
        scores = (query_turned @ key_turned.conj().T).real / math.sqrt(8)
        outputs.append(scores.softmax(1) @ value[:, part])
    return torch.cat(outputs, 1) @ weights["blocks.0.attn.proj.weight"].T + weights["blocks.0.attn.proj.bias"]


def glm_first_attention(weights: dict[str, Tensor], colour: tuple[float, ...], high: int, wide: int) -> Tensor:
    """As `qwen3_first_attention`, of GLM-4V: norms without mean, and positions bicubic (a = -0.75) between the middles
    of patches; beyond the table's edge lie its outermost rows."""
    weights = {name: value.double() for name, value in weights.items()}

    def normed(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]

    def shares(place: float) -> list[tuple[int, float]]:
        """The table's rows around a place, each with its share."""
        found = []
        for row in range(math.floor(place) - 1, math.floor(place) + 3):
            d = abs(row - place)
            share = 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            found.append((min(max(row, 0), side - 1), share))
        return found

    kernel = weights["patch_embed.proj.weight"]
    patch = kernel.sum((2, 3, 4)) @ torch.tensor(colour).double() + weights["patch_embed.proj.bias"]
    table = weights["embeddings.position_embedding.weight"]
    side = math.isqrt(len(table))
    places = [(y, x) for y in range(high) for x in range(wide)]
    points = [((y + 0.5) * side / high - 0.5, (x + 0.5) * side / wide - 0.5) for y, x in places]
    learned = [
        torch.stack([p * q * table[r * side + c] for r, p in shares(y) for c, q in shares(x)]).sum(0) for y, x in points
    ]
    hidden = normed(normed(patch, "post_conv_layernorm") + torch.stack(learned), "blocks.0.norm1")
    query, key, value = (hidden @ weights["blocks.0.attn.qkv.weight"].T).split(32, dim=1)
    angles = torch.tensor([[y, y / 100, x, x / 100] for y, x in places], dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angles), angles)
    outputs = []
    for part in (slice(start, start + 8) for start in range(0, 32, 8)):
        query_turned, key_turned = (torch.complex(*x[:, part].split(4, dim=1)) * turn for x in (query, key))
        scores = (query_turned @ key_turned.conj().T).real / math.sqrt(8)
        outputs.append(scores.softmax(1) @ value[:, part])
    return torch.cat(outputs, 1) @ weights["blocks.0.attn.proj.weight"].T


def in_blocks(raster: Tensor, high: int, wide: int) -> Tensor:
    """Raster rows in the order of Qwen's tokens, 2 x 2 patches at a time."""
    corners = [(top, left) for top in range(0, high, 2) for left in range(0, wide, 2)]
    return raster[[(top + y) * wide + left + x for top, left in corners for y in (0, 1) for x in (0, 1)]]


def laid_rows(model: Any, grids: list[tuple[int, int]]) -> Tensor:
    """The first attention's output after the hooks, for random images of these grids."""
    caught: list[Tensor] = []
    visual = model.model.visual
    side, generator = visual.patch_embed.patch_size, torch.Generator().manual_seed(0)
    images = [torch.randn(1, 3, side * high, side * wide, generator=generator) for high, wide in grids]
    rows = torch.cat([images_to_rows(image, side, 2) for image in images]).to(visual.dtype)
    handle = visual.blocks[0].attn.register_forward_hook(lambda *c: caught.append(c[2].detach()))
    visual(rows, grid_thw=torch.tensor([[1, *grid] for grid in grids]))
    handle.remove()
    return caught[-1]  # the passes of own anchors come first


@pytest.mark.parametrize("grid", [None, (2, 2), (4, 10), (16, 2)])
def test_white_anchor_of_glm_by_hand(grid: tuple[int, int] | None) -> None:
    model = tiny_random.glm4v()
    anchor = white_anchor(model, grid=grid)
    assert anchor.grid == (grid or (6, 6))
    white = tuple((1 - mean) / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True))
    expected = glm_first_attention(model.model.visual.state_dict(), white, *anchor.grid)
    assert (anchor.values - expected).abs().max() < 5e-6
    assert expected.std(0).max() > 0.01  # the tokens differ: a permuted anchor would be seen
    expected = glm_first_attention(model.model.visual.state_dict(), white, 4, 10)
    inject(model, RAdaptConfig(cutoff=None, alpha=1))
    assert (laid_rows(model, [(4, 10)]) - in_blocks(expected, 4, 10)).abs().max() < 5e-6


@pytest.mark.parametrize("grid", [None, (2, 2), (4, 10), (12, 6), (16, 2)])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("factory", [tiny_random.qwen3_vl, tiny_random.qwen3_vl_moe, tiny_random.qwen3_5])
def test_white_anchor_of_qwen3_by_hand(factory: Any, grid: tuple[int, int] | None, implementation: str) -> None:
    model = factory()
    model.set_attn_implementation(implementation)
    anchor = white_anchor(model, grid=grid)
    assert anchor.grid == (grid or (6, 6))  # that of the learned positions
    expected = qwen3_first_attention(model.model.visual.state_dict(), WHITE, *anchor.grid)
    assert (anchor.values - expected).abs().max() < 5e-6
    in_double = white_anchor(model.double(), grid=grid)
    assert (in_double.values - expected).abs().max() < 1e-6
    assert expected.std(0).max() > 0.01  # the tokens differ: a permuted anchor would be seen


def test_qwen3s_own_anchor_is_taken_on_the_grid_of_every_image() -> None:
    model = tiny_random.qwen3_vl().double()
    inject(model, RAdaptConfig(cutoff=20, alpha=1))
    weights = model.model.visual.state_dict()
    expected = torch.cat([in_blocks(qwen3_first_attention(weights, WHITE, *grid), *grid) for grid in MIXED])
    for _ in range(2):
        assert (laid_rows(model, MIXED) - expected).abs().max() < 1e-6
    reference = injected_anchor(model)
    assert reference is not None
    assert reference.grid == (6, 6)
    # what a resized anchor would have been
    resized = torch.cat([in_blocks(reference.resized(grid).values, *grid) for grid in MIXED])
    assert (resized - expected).abs().max() > 0.01


def test_a_given_anchor_is_interpolated_not_taken_anew() -> None:
    model = tiny_random.qwen3_vl()
    anchor = white_anchor(tiny_random.qwen3_vl(seed=1))  # a guide's
    inject(model, RAdaptConfig(alpha=1), anchor)
    assert injected_white(model) is None
    expected = torch.cat([in_blocks(anchor.resized(grid).values, *grid) for grid in MIXED])
    assert torch.allclose(laid_rows(model, MIXED), expected, atol=1e-6)


def test_qwen3s_own_anchor_in_another_normalisation() -> None:
    model = tiny_random.qwen3_vl().double()
    inject(model, RAdaptConfig(alpha=1), white=(0.1, -0.7, 2.0))
    assert injected_white(model) == (0.1, -0.7, 2.0)
    expected = in_blocks(qwen3_first_attention(model.model.visual.state_dict(), (0.1, -0.7, 2.0), 4, 6), 4, 6)
    assert (laid_rows(model, [(4, 6)]) - expected).abs().max() < 1e-6
    with pytest.raises(UserError, match="three finite numbers"):
        inject(tiny_random.qwen3_vl(), RAdaptConfig(), white=(1.0, math.nan, 1.0))


def test_own_anchors_are_kept_for_the_grids_met_last() -> None:
    model = inject(tiny_random.qwen3_vl(), RAdaptConfig(alpha=1))
    passes: list[int] = []
    model.model.visual.patch_embed.register_forward_hook(lambda *_: passes.append(1))

    def taken(grids: list[tuple[int, int]]) -> int:
        """How many anchors were taken for these images, in one call."""
        passes.clear()
        laid_rows(model, grids)
        return len(passes) - 1

    first, *others = [(2, 2 * wide) for wide in range(1, 18)]
    assert taken(MIXED) == 3
    assert taken(MIXED[::-1]) == 0
    assert taken([first]) == 1
    assert sum(taken([grid]) for grid in others) == 16
    assert taken([others[-1]]) == 0
    assert taken([first]) == 1  # 16 others have come since
    assert taken([first, *others]) >= 16  # more grids in one call than are kept
    with disabled(model):
        assert taken([(8, 8)]) == 0


def test_own_anchors_follow_the_model() -> None:
    model = inject(tiny_random.qwen3_vl(), RAdaptConfig(alpha=1))
    full = laid_rows(model, MIXED)
    twin = copy.deepcopy(model)
    remove(model)
    assert torch.equal(laid_rows(twin, MIXED), full)
    twin.model.visual.pos_embed.weight.mul_(2)  # a copy looks at its own weights
    inject(model, RAdaptConfig(alpha=1))
    assert not torch.allclose(laid_rows(twin, [(8, 4)]), laid_rows(model, [(8, 4)]), atol=1e-3)
    # half precision: as if it had been so from the start, whatever was met before
    half = laid_rows(model.bfloat16(), MIXED)
    fresh = inject(tiny_random.qwen3_vl().bfloat16(), RAdaptConfig(alpha=1))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, laid_rows(fresh, MIXED))
    assert not torch.equal(half, full.bfloat16())


def test_while_an_anchor_is_taken_other_threads_stay_defended() -> None:
    model = inject(tiny_random.qwen3_vl(), RAdaptConfig(alpha=1))
    expected = laid_rows(model, [(4, 6)])
    meanwhile: list[Tensor] = []

    def other(*_: Any) -> None:
        handle.remove()
        thread = threading.Thread(target=lambda: meanwhile.append(laid_rows(model, [(4, 6)])))
        thread.start()
        thread.join()

    handle = model.model.visual.blocks[0].norm1.register_forward_hook(other)
    laid_rows(model, [(8, 4)])  # its first pass through the block takes the anchor
    assert torch.equal(meanwhile[0], expected)


def test_autocast_around_the_first_call_does_not_stay_in_the_anchor() -> None:
    model = inject(tiny_random.qwen3_vl(), RAdaptConfig(alpha=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        laid_rows(model, MIXED)
    assert torch.equal(laid_rows(model, MIXED), laid_rows(inject(tiny_random.qwen3_vl(), RAdaptConfig()), MIXED))


def test_half_precision_does_not_make_qwen3s_anchor_one_vector() -> None:
    model = tiny_random.qwen3_vl()
    model.model.visual.pos_embed.weight.mul_(0.01)  # positions that matter little beside the pixels
    half = white_anchor(model.bfloat16())
    assert half.grid == (6, 6)


def test_an_own_anchor_met_in_inference_mode_still_gives_gradients_later() -> None:
    model = inject(tiny_random.qwen3_vl(), RAdaptConfig(alpha=0.5))
    visual = model.model.visual
    grid = torch.tensor([[1, 4, 4]])
    pixels = torch.randn(16, 3 * 2 * 16 * 16)
    with torch.inference_mode():
        visual(pixels, grid_thw=grid)
    pixels.requires_grad_()
    visual(pixels, grid_thw=grid).last_hidden_state.square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().max() > 0


def test_only_towers_of_any_grid_take_a_grid() -> None:
    with pytest.raises(UserError, match=r"a clip encoder has one grid: .*resized\(\(2, 2\)\)"):
        white_anchor(tiny_random.clip_vision(), grid=(2, 2))


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
