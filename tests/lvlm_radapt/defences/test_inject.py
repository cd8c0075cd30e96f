"""Injection into real model classes: the right numbers, nothing else touched, and all of it undone."""

import copy
import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lvlm_radapt.defences.radapt.anchor import CLIP_MEAN, CLIP_STD, Anchor, white_anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import disabled, inject, injected_anchor, injected_config, is_injected, remove
from lvlm_radapt.defences.radapt.modules import GaussianFilter
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.clip import CLIPTower
from lvlm_radapt.towers.glm import GlmTower
from lvlm_radapt.towers.qwen import QwenTower, batch_equal_windows, frames_to_rows, images_to_rows
from lvlm_radapt.towers.siglip import SiglipTower
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_random
from tests.helpers.first_attention import HALF, clip_first_attention

QWEN3S = [tiny_random.qwen3_vl, tiny_random.qwen3_vl_moe, tiny_random.qwen3_5]  # the last one's experts change no tower
ALL = [
    tiny_random.clip_vision,
    tiny_random.clip_vision_with_projection,
    tiny_random.clip,
    tiny_random.siglip_vision,
    tiny_random.siglip,
    tiny_random.llava,
    tiny_random.llava_next,
    tiny_random.llava_onevision,
    tiny_random.qwen2_vl,
    tiny_random.qwen2_5_vl,
    *QWEN3S,
    tiny_random.glm4v,
]
SIGLIPS = [tiny_random.siglip_vision, tiny_random.siglip, tiny_random.llava_onevision]
LVLMS = [
    tiny_random.llava,
    tiny_random.llava_next,
    tiny_random.llava_onevision,
    tiny_random.qwen2_vl,
    tiny_random.qwen2_5_vl,
    *QWEN3S,
    tiny_random.glm4v,
]
QWENS = [tiny_random.qwen2_vl, tiny_random.qwen2_5_vl, *QWEN3S, tiny_random.glm4v]
GRIDS = [(4, 6), (8, 6), (8, 6), (2, 10)]

# image tokens of 112x112 px, four crops: a row's end after each row of 8 patches; OneVision shrinks them to 5
ANYRES_TOKENS = {"LlavaNextForConditionalGeneration": 16 + 8 * 9, "LlavaOnevisionForConditionalGeneration": 16 + 5 * 6}


def row_width(model: Any) -> int:
    """How many pixel values one patch row of a Qwen model holds."""
    return int(find_tower(model).module.patch_embed.proj.weight[0].numel())  # type: ignore[index, union-attr]


def call(model: Any) -> dict[str, Tensor]:
    """Inputs that run `model`; the same on every call."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(2, 3, 56, 56, generator=generator)
    name = type(model).__name__
    if name.startswith(("Qwen", "Glm")):
        count = sum(high * wide for high, wide in GRIDS)
        return tiny_random.qwen_inputs(GRIDS, torch.randn(count, row_width(model), generator=generator))
    if name == "LlavaForConditionalGeneration":
        return tiny_random.llava_inputs(images)
    if name in ANYRES_TOKENS:
        views = torch.randn(2, 5, 3, 56, 56, generator=generator)
        return tiny_random.anyres_inputs(views, size=(112, 112), tokens=ANYRES_TOKENS[name])
    text = {"input_ids": torch.tensor([[1, 5, 6, 2]] * 2)} if name in ("CLIPModel", "SiglipModel") else {}
    return {"pixel_values": images, **text}


def answer(model: Any, inputs: dict[str, Tensor] | None = None) -> Tensor:
    """The model's main output, as far down as it goes."""
    output = model(**(call(model) if inputs is None else inputs))
    for name in ("logits", "logits_per_image", "image_embeds", "last_hidden_state"):
        if name in output:
            return output[name]
    raise AssertionError(f"no known output in {list(output)}")


def traces(model: nn.Module) -> list[tuple[str, str]]:
    """Every hook and attribute of the project on any module."""
    found = []
    for path, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        found += [(path, str(hook)) for hook in hooks if "radapt" in getattr(hook, "__module__", "")]
        found += [(path, name) for name in vars(module) if "radapt" in name]
    return found


def caught_at(module: nn.Module, run: Any) -> Tensor:
    """What the first positional argument of `module` is while `run()` runs."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    run()
    handle.remove()
    return seen[0]


# -- where the pieces sit ------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ALL)
def test_towers_are_found(factory: Any) -> None:
    model = factory()
    tower = find_tower(model)
    expected = QwenTower if factory in QWENS else SiglipTower if factory in SIGLIPS else CLIPTower
    assert type(tower) is (GlmTower if factory is tiny_random.glm4v else expected)
    assert type(tower.module).__name__ == {
        tiny_random.qwen2_vl: "Qwen2VisionTransformerPretrainedModel",
        tiny_random.qwen2_5_vl: "Qwen2_5_VisionTransformerPretrainedModel",
        tiny_random.qwen3_vl: "Qwen3VLVisionModel",
        tiny_random.qwen3_vl_moe: "Qwen3VLMoeVisionModel",
        tiny_random.qwen3_5: "Qwen3_5VisionModel",
        tiny_random.glm4v: "Glm4vVisionModel",
    }.get(factory, "SiglipVisionModel" if factory in SIGLIPS else "CLIPVisionModel")
    assert tower.width == 32
    assert find_tower(tower.module).module is tower.module
    if factory in LVLMS:
        assert find_tower(model.model).module is tower.module
    assert find_tower(torch.compile(model)).module is tower.module


@pytest.mark.parametrize(
    ("kind", "factory"), [("CLIP", tiny_random.clip_vision), ("Siglip", tiny_random.siglip_vision)]
)
def test_the_older_layout_with_one_more_level_is_found(kind: str, factory: Any) -> None:
    flat = factory()
    outer = type(f"{kind}VisionModel", (nn.Module,), {})()
    outer.vision_model = flat
    assert find_tower(outer).module is flat
    whole = type(f"{kind}Model", (nn.Module,), {})()
    whole.vision_model = flat
    assert find_tower(whole).module is flat


def test_subclasses_are_found() -> None:
    class Exported(transformers.CLIPVisionModel):  # type: ignore[misc]
        pass

    model = Exported(tiny_random.clip_vision_config())
    assert find_tower(model).module is model


def test_unknown_models_are_named() -> None:
    with pytest.raises(UserError, match=r"encoder Linear: supported are CLIPVisionModel.*Qwen2_5_VisionTransformer"):
        find_tower(nn.Linear(2, 2))
    model = tiny_random.llava()
    model.model.vision_tower = nn.Identity()
    with pytest.raises(UserError, match="encoder Identity in LlavaForConditionalGeneration"):
        inject(model, RAdaptConfig())


# -- the right numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["interpolate", "add"])
@pytest.mark.parametrize("alpha", [0.5, 1.0, -0.3, 2.0])
@pytest.mark.parametrize("factory", [tiny_random.clip_vision, tiny_random.siglip_vision])
def test_first_block_of_clip_and_siglip_by_hand(factory: Any, alpha: float, mix: Any) -> None:
    model = factory()
    anchor = white_anchor(model)
    images = torch.randn(2, 3, 56, 56)
    stock_block = copy.deepcopy(model.encoder.layers[0])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        filtered = GaussianFilter(30)(images)
        tokens = model.embeddings(filtered)
        tokens = tokens if factory in SIGLIPS else model.pre_layrnorm(tokens)
        r = torch.stack([clip_first_attention(weights, image, 14, 4) for image in filtered])
        mixed = r + alpha * anchor.values if mix == "add" else (1 - alpha) * r + alpha * anchor.values
        hidden = tokens + mixed
        expected = hidden + stock_block.mlp(stock_block.layer_norm2(hidden))
        inject(model, RAdaptConfig(cutoff=30, alpha=alpha, mix=mix))
        measured = model(images, output_hidden_states=True).hidden_states[1]
    assert (measured - expected).abs().max() < 2e-5
    stored = injected_anchor(model)
    assert stored is not None
    assert torch.equal(stored.values, anchor.values)


@pytest.mark.parametrize("same_grid", [True, False])
@pytest.mark.parametrize("factory", QWENS)
def test_a_per_patch_anchor_reaches_qwens_patches(factory: Any, same_grid: bool) -> None:
    model = factory()
    grids = [(8, 6), (8, 6)] if same_grid else GRIDS
    rows = torch.randn(sum(high * wide for high, wide in grids), row_width(model))
    attention = model.model.visual.blocks[0].attn
    outputs: list[Tensor] = []

    def run() -> Tensor:
        handle = attention.register_forward_hook(lambda *c: outputs.append(c[2]))
        model.model.visual(rows, grid_thw=torch.tensor([[1, *grid] for grid in grids]))
        handle.remove()
        return outputs[-1]

    stock = run()
    anchor = Anchor(torch.randn(48, 32), (8, 6))
    inject(model, RAdaptConfig(cutoff=None, alpha=0.25), anchor)
    measured = run()
    window = 2 if factory is tiny_random.qwen2_5_vl else 1000  # in merge blocks
    row = 0
    for high, wide in grids:
        values = anchor.resized((high, wide)).values
        corners = itertools.product(range(0, high // 2, window), range(0, wide // 2, window))
        for top, left in corners:
            for by in range(top, min(top + window, high // 2)):
                for bx in range(left, min(left + window, wide // 2)):
                    for y, x in itertools.product((2 * by, 2 * by + 1), (2 * bx, 2 * bx + 1)):
                        expected = 0.75 * stock[row] + 0.25 * values[y * wide + x]
                        assert (measured[row] - expected).abs().max() < 1e-5
                        row += 1
    assert row == len(measured)


@pytest.mark.parametrize("factory", [tiny_random.llava, tiny_random.llava_next, tiny_random.llava_onevision])
def test_in_tower_equals_on_image_for_clip_and_siglip(factory: Any) -> None:
    model = factory()
    mean_std = (HALF, HALF) if factory in SIGLIPS else (CLIP_MEAN, CLIP_STD)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in mean_std)
    inputs = call(model)
    images = torch.rand(inputs["pixel_values"].shape)  # of views too, each filtered alone
    inputs["pixel_values"] = (images - mean) / std
    inject(model, RAdaptConfig(cutoff=25, alpha=0))
    embedding = model.model.vision_tower.embeddings.patch_embedding
    inside = caught_at(embedding, lambda: model(**inputs))
    outside = (GaussianFilter(25)(images.flatten(0, -4)) - mean) / std
    assert (inside - outside).abs().max() * max(mean_std[1]) < 1e-6  # in pixels on [0, 1]
    assert (inside - inputs["pixel_values"].flatten(0, -4)).abs().max() > 0.1


@pytest.mark.parametrize("unit", ["px224", "image"])
@pytest.mark.parametrize("factory", QWENS)
def test_in_tower_equals_on_image_for_qwen_with_mixed_grids(factory: Any, unit: Any) -> None:
    model = factory()
    mean, std = torch.tensor(CLIP_MEAN).reshape(3, 1, 1), torch.tensor(CLIP_STD).reshape(3, 1, 1)
    side = model.model.visual.patch_embed.patch_size
    images = [torch.rand(1, 3, side * high, side * wide) for high, wide in GRIDS]
    rows = torch.cat([images_to_rows((image - mean) / std, side, 2) for image in images])
    inject(model, RAdaptConfig(cutoff=25, cutoff_unit=unit, alpha=0))
    inputs = tiny_random.qwen_inputs(GRIDS, rows)
    inside = caught_at(model.model.visual.patch_embed, lambda: model(**inputs))
    low_pass = GaussianFilter(25, unit)
    outside = torch.cat([images_to_rows((low_pass(image) - mean) / std, side, 2) for image in images])
    assert (inside - outside).abs().max() * max(CLIP_STD) < 1e-6  # in pixels on [0, 1]
    assert (inside - rows).abs().max() > 0.1


def test_frames_of_a_video_are_filtered_each_alone() -> None:
    model = tiny_random.qwen2_5_vl()
    clip = torch.randn(1, 6, 3, 56, 84)
    inject(model, RAdaptConfig(cutoff=25))
    visual = model.model.visual
    rows = frames_to_rows(clip, 14, 2)
    inside = caught_at(visual.patch_embed, lambda: visual(rows, grid_thw=torch.tensor([[3, 4, 6]])))
    expected = torch.stack([GaussianFilter(25)(frame) for frame in clip[0]])
    assert torch.allclose(inside, frames_to_rows(expected[None], 14, 2), atol=1e-6)


@pytest.mark.parametrize("factory", LVLMS)
def test_positional_and_keyword_pixels_are_the_same(factory: Any) -> None:
    model = inject(factory(), RAdaptConfig(cutoff=20))
    tower = find_tower(model).module
    inputs = call(model)
    if factory in QWENS:
        pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
        one, two = tower(pixels, grid), tower(hidden_states=pixels, grid_thw=grid)
    else:
        pixels = inputs["pixel_values"].flatten(0, -4)
        one, two = tower(pixels), tower(pixel_values=pixels)
    assert torch.equal(one.last_hidden_state, two.last_hidden_state)


# -- nothing else touched, and all of it undone --------------------------------------------------------


@pytest.mark.parametrize("factory", ALL)
def test_neutral_settings_change_no_bit(factory: Any) -> None:
    model = factory()
    stock = answer(model)
    inject(model, RAdaptConfig(cutoff=None, alpha=0), Anchor(torch.randn(1, 32)))
    assert is_injected(model)
    assert torch.equal(answer(model), stock)


@pytest.mark.parametrize("factory", LVLMS)
def test_generate_runs_defended(factory: Any) -> None:
    model = inject(factory(), RAdaptConfig(cutoff=10, alpha=0.8))
    inputs = call(model)
    first = model(**inputs).logits[:, -1].argmax(-1)
    tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(tokens[:, inputs["input_ids"].shape[1]], first)
    with disabled(model):
        assert not torch.equal(model(**inputs).logits[:, -1], first)


@pytest.mark.parametrize("factory", ALL)
def test_injected_twin_and_removed(factory: Any) -> None:
    model = factory()
    keys = list(model.state_dict())
    parameters = {name: value.clone() for name, value in model.named_parameters()}
    stock = answer(model)
    assert not is_injected(model)
    assert injected_config(model) is None
    assert injected_anchor(model) is None
    with disabled(model):
        assert torch.equal(answer(model), stock)

    config = RAdaptConfig(cutoff=20, alpha=0.9)
    assert inject(model, config) is model
    defended = answer(model)
    assert (defended - stock).abs().max() > 1e-2
    assert injected_config(model) == config
    with pytest.raises(UserError, match="injected already"):
        inject(model, config)
    with disabled(model):
        assert torch.equal(answer(model), stock)
        with disabled(model):
            assert torch.equal(answer(model), stock)
        assert torch.equal(answer(model), stock)
        assert is_injected(model)
    assert torch.equal(answer(model), defended)
    with pytest.raises(RuntimeError, match="boom"), disabled(model):
        raise RuntimeError("boom")
    assert torch.equal(answer(model), defended)

    assert list(model.state_dict()) == keys
    for name, value in model.named_parameters():
        assert torch.equal(value, parameters[name])
        assert not value.requires_grad
    assert traces(model) != []
    assert remove(model) is model
    assert traces(model) == []
    assert torch.equal(answer(model), stock)
    assert list(model.state_dict()) == keys
    with pytest.raises(UserError, match="nothing to remove"):
        remove(model)
    inject(model, config)
    assert torch.equal(answer(model), defended)


def test_deep_copies_are_defended_on_their_own() -> None:
    model = tiny_random.llava()
    stock = answer(model)
    inject(model, RAdaptConfig(cutoff=20))
    defended = answer(model)
    twin = copy.deepcopy(model)
    with disabled(model):
        assert torch.equal(answer(twin), defended)
    remove(twin)
    assert torch.equal(answer(twin), stock)
    assert torch.equal(answer(model), defended)


def test_a_saved_model_is_the_stock_one(tmp_path: Path) -> None:
    model = tiny_random.clip_vision()
    stock = answer(model)
    inject(model, RAdaptConfig())
    model.save_pretrained(tmp_path)
    again, report = transformers.CLIPVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(answer(again.eval()), stock)
    # and one made through from_pretrained, hence on the meta device first, takes the defence as well
    assert torch.equal(answer(inject(again, RAdaptConfig())), answer(model))


# -- what it must survive ------------------------------------------------------------------------------


def test_anchors_that_do_not_fit_are_refused() -> None:
    model = tiny_random.clip_vision()
    with pytest.raises(UserError, match="anchor is 16 wide, this encoder 32"):
        inject(model, RAdaptConfig(), Anchor(torch.zeros(1, 16)))
    with pytest.raises(UserError, match="0 prefix tokens, this clip encoder 1"):
        inject(model, RAdaptConfig(), Anchor(torch.zeros(16, 32), (4, 4)))
    assert traces(model) == []
    with pytest.raises(UserError, match="1 prefix tokens, this qwen encoder 0"):
        inject(tiny_random.qwen2_vl(), RAdaptConfig(), Anchor(torch.zeros(5, 32), (2, 2), 1))


@pytest.mark.parametrize(
    ("factory", "prefix"), [(tiny_random.clip_vision, 1), (tiny_random.siglip_vision, 0), (tiny_random.llava, 1)]
)
def test_an_anchor_of_another_grid_is_interpolated(factory: Any, prefix: int) -> None:
    """A guide of 224 px for a tower of 336, in small: 2 x 3 patches for a tower of 4 x 4."""
    model = factory()
    anchor = Anchor(torch.randn(prefix + 6, 32), (2, 3), prefix)
    inject(model, RAdaptConfig(cutoff=None, alpha=0.6), anchor)
    by_itself = answer(model)
    remove(model)
    inject(model, RAdaptConfig(cutoff=None, alpha=0.6), anchor.resized((4, 4)))
    assert torch.equal(by_itself, answer(model))
    remove(model)
    assert not torch.allclose(by_itself, answer(model))


def test_an_anchor_serves_interpolated_positions() -> None:
    image = torch.randn(1, 3, 84, 70)
    outs = []
    for resized in (False, True):
        model = tiny_random.clip_vision()
        anchor = white_anchor(model)
        inject(model, RAdaptConfig(), anchor.resized((6, 5)) if resized else anchor)
        outs.append(model(image, interpolate_pos_encoding=True).last_hidden_state)
    assert tuple(outs[0].shape) == (1, 31, 32)
    assert torch.equal(*outs)


@pytest.mark.parametrize("factory", LVLMS)
def test_half_precision(factory: Any) -> None:
    model = factory()
    inject(model, RAdaptConfig(cutoff=20, alpha=0.7))
    full = answer(model)
    model.bfloat16()
    half = answer(model)
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(full.flatten(), half.float().flatten(), dim=0) > 0.98
    remove(model)
    inject(model, RAdaptConfig(cutoff=20, alpha=0.7))
    assert torch.nn.functional.cosine_similarity(full.flatten(), answer(model).float().flatten(), dim=0) > 0.98


def test_it_follows_the_activations_to_another_device() -> None:
    model = inject(tiny_random.qwen2_5_vl(), RAdaptConfig())
    visual = model.model.visual.to("meta")
    rows = torch.zeros(16, 3 * 2 * 14 * 14, device="meta")
    hidden = visual.blocks[0].attn._forward_hooks
    hook = next(hook for hook in hidden.values() if "radapt" in getattr(hook, "__module__", ""))
    out = hook(visual.blocks[0].attn, (), {}, rows[:, :32])
    assert out.device.type == "meta"
    assert out.shape == (16, 32)
    filtered, _ = find_tower(model).filter_pixels((rows, torch.tensor([[1, 4, 4]])), {}, GaussianFilter(40))
    assert filtered[0].device.type == "meta"


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("factory", LVLMS)
def test_gradient_checkpointing_with_two_forwards_before_the_backward(factory: Any, reentrant: bool) -> None:
    grids = ([(4, 6), (8, 6)], [(8, 6), (4, 6)])  # the second call must not lend its order to the first

    def pixel_gradients(checkpointed: bool) -> list[Tensor]:
        torch.manual_seed(3)
        model = factory()
        is_qwen = factory in QWENS
        own = factory in (*QWEN3S, tiny_random.glm4v)  # an anchor taken on each call's grids
        anchor = Anchor(torch.randn(24, 32), (4, 6)) if is_qwen and not own else None
        inject(model, RAdaptConfig(cutoff=20, alpha=0.6), anchor)
        tower = find_tower(model).module
        if checkpointed:
            layers: Any = tower.blocks if is_qwen else tower.encoder.layers  # type: ignore[union-attr]
            for layer in layers.train():
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=reentrant)
        pixels, losses = [], []
        for grid in grids:
            shape = (72, row_width(model)) if is_qwen else (2, 3, 56, 56)
            x = torch.randn(shape, requires_grad=True)
            extra = {"grid_thw": torch.tensor([[1, *one] for one in grid])} if is_qwen else {}
            out = tower(x, **extra).last_hidden_state
            pixels.append(x)
            losses.append((out * torch.randn(out.shape)).sum())
        sum(losses).backward()  # type: ignore[union-attr]
        return [x.grad for x in pixels if x.grad is not None]

    plain, checkpointed = pixel_gradients(False), pixel_gradients(True)
    assert len(plain) == len(checkpointed) == 2
    for one, two in zip(plain, checkpointed, strict=True):
        assert one.abs().max() > 0
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6)


def test_gradients_to_the_pixels_against_finite_differences() -> None:
    model = tiny_random.llava().double()
    inject(model, RAdaptConfig(cutoff=30, alpha=0.5))
    tower = model.model.vision_tower
    images = torch.randn(1, 3, 56, 56, dtype=torch.float64, requires_grad=True)

    def score(x: Tensor) -> Tensor:
        return tower(x).last_hidden_state.square().mean()

    (gradient,) = torch.autograd.grad(score(images), images)
    for seed in range(3):
        direction = torch.randn(images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            numeric = (score(images + 1e-5 * direction) - score(images - 1e-5 * direction)) / 2e-5
        assert abs((gradient * direction).sum() - numeric) < 1e-6 * (1 + abs(numeric))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_alpha_one_cuts_the_gradient_through_the_first_attention() -> None:
    model = tiny_random.clip_vision()
    model.requires_grad_(True)
    inject(model, RAdaptConfig(cutoff=None, alpha=1.0))
    answer(model).sum().backward()
    first, second = (layer.self_attn.out_proj.weight.grad for layer in model.encoder.layers[:2])
    assert first.abs().max() == 0
    assert second.abs().max() > 0


def test_compiled_after_injection() -> None:
    torch._dynamo.reset()
    model = inject(tiny_random.clip_vision(), RAdaptConfig(cutoff=20, alpha=0.8))
    images = torch.randn(2, 3, 56, 56)
    defended = model(images).last_hidden_state
    compiled = torch.compile(model, backend="eager")
    assert torch.allclose(compiled(images).last_hidden_state, defended, atol=1e-6)
    with disabled(compiled):
        stock = model(images).last_hidden_state
        assert torch.allclose(compiled(images).last_hidden_state, stock, atol=1e-6)
    assert torch.allclose(compiled(images).last_hidden_state, defended, atol=1e-6)
    assert not torch.allclose(stock, defended, atol=1e-2)


@pytest.mark.parametrize("factory", QWENS)
def test_with_batched_windows(factory: Any) -> None:
    model = factory()
    inject(model, RAdaptConfig(cutoff=20, alpha=0.8), Anchor(torch.randn(24, 32), (4, 6)))
    defended = answer(model)
    batch_equal_windows(model)
    assert (answer(model) - defended).abs().max() < 1e-5
    remove(model)
    assert (answer(model) - answer(factory())).abs().max() < 1e-5


def test_injection_in_inference_mode_still_gives_gradients_later() -> None:
    images = torch.randn(1, 3, 56, 56, requires_grad=True)
    model = tiny_random.clip_vision()
    with torch.inference_mode():
        inject(model, RAdaptConfig(cutoff=21.5))
        model(images.detach())
    model(images).last_hidden_state.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
