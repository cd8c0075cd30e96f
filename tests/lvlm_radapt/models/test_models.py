"""Every model's features, loss and answers against transformers' own road on the same files."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from lvlm_radapt import RAdaptConfig, load_encoder, load_model, robustify
from lvlm_radapt.defences.radapt.anchor import white_anchor
from lvlm_radapt.defences.radapt.hooks import inject, injected_anchor
from lvlm_radapt.loading import locate
from lvlm_radapt.loading.locate import embedded_models
from lvlm_radapt.models.families import lvlm_families
from lvlm_radapt.models.speedups import last_layer
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints
from tests.helpers.failures import one_line
from tests.helpers.families import FAMILIES, FEW, NAMES, Case, open_case
from tests.helpers.inputs import PROMPTS, TARGETS, noise
from tests.helpers.slow import slow

GRIDS = [(84, 56), (196, 84), slow((56, 56)), slow((112, 168))]


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


@pytest.fixture(params=FEW)
def core(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    """For what is shared code of ours."""
    return cases[request.param]


@pytest.mark.parametrize("size", GRIDS)
def test_loss_equals_the_library_s(case: Case, size: tuple[int, int]) -> None:
    for i, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        image = noise(*size, seed=i)
        loss = case.ours.loss(case.ours.pixels([image]), [prompt], [target])
        assert loss.shape == (1,)
        torch.testing.assert_close(loss[0], case.stock_loss(image, prompt, target), rtol=1e-5, atol=1e-5)


def test_pixel_gradient_equals_the_library_s(case: Case) -> None:
    image = noise(112, 84)
    batch = case.ours.pixels([image])
    x = batch.x.clone().requires_grad_()
    case.ours.loss(batch.replace(x), PROMPTS[:1], TARGETS[:1]).sum().backward()
    # the chain rule by hand: through the model's inputs, then the normalisation (and the patch rows)
    inputs = case.ours.pixel_values(batch).requires_grad_()
    case.stock_loss(image, PROMPTS[0], TARGETS[0], pixel_values=inputs).backward()
    leaf = batch.x.clone().requires_grad_()
    case.ours.pixel_values(batch.replace(leaf)).backward(inputs.grad)
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    torch.testing.assert_close(x.grad, leaf.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", FEW)
def test_recomputed_activations_give_the_same_gradient_from_less_memory(name: str, tmp_path: Path) -> None:
    model = open_case(name, tmp_path / name).ours
    batch = model.pixels([noise(112, 84)])
    answers = model.generate(batch, PROMPTS[:1], max_new_tokens=3)

    def measured() -> tuple[torch.Tensor, torch.Tensor, int]:
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(saved: torch.Tensor) -> torch.Tensor:
            kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage()
            return saved

        x = batch.x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            loss = model.loss(batch.replace(x), PROMPTS[:1], TARGETS[:1])
        loss.sum().backward()
        assert x.grad is not None
        weights = {one.untyped_storage().data_ptr() for one in model.hf.parameters()}
        return loss.detach(), x.grad, sum(one.nbytes() for at, one in kept.items() if at not in weights)

    loss, gradient, before = measured()
    assert model.recompute_activations()
    same_loss, same_gradient, after = measured()
    assert torch.equal(same_loss, loss)
    torch.testing.assert_close(same_gradient, gradient, rtol=1e-5, atol=1e-9)
    assert after < 0.8 * before
    assert model.generate(batch, PROMPTS[:1], max_new_tokens=3) == answers
    assert not model.recompute_activations()


def test_pixel_gradient_equals_finite_differences(core: Case) -> None:
    model = load_model(core.folder, dtype=torch.float64, attn="sdpa")
    if "experts" in str(model.hf):
        model.hf.set_experts_implementation("eager")  # the fast one takes no double precision
    batch = model.pixels([noise(84, 56, 1), noise(84, 56, 2)])
    x = batch.x.double().requires_grad_()
    loss = model.loss(batch.replace(x), PROMPTS[:2], TARGETS[:2])
    assert loss.dtype == torch.float64
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    noises = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).double() for i in range(3)]
    # along noise the loss hardly moves and is nearly straight; along the gradient it is steep and curved
    for direction, step in [*((n, 1e-3) for n in noises), (gradient / gradient.std(), 1e-5)]:
        with torch.no_grad():
            up = model.loss(batch.replace(x + step * direction), PROMPTS[:2], TARGETS[:2]).sum()
            down = model.loss(batch.replace(x - step * direction), PROMPTS[:2], TARGETS[:2]).sum()
        expected = float((gradient * direction).sum())
        # noise may happen to lie across the gradient; rotary embeddings round to single precision
        rounding = 1e-4 * float(gradient.norm())
        if "linear_attn" in str(model.hf):  # recurrent layers compute in single precision, and so is the loss rounded
            rounding += torch.finfo(torch.float32).eps * loss.sum().item() / (2 * step)
        assert float(up - down) / (2 * step) == pytest.approx(expected, rel=5e-3, abs=rounding)


def test_a_mixed_batch_equals_its_samples_one_by_one(case: Case) -> None:
    batch = case.ours.pixels([noise(112, 84, i) for i in range(3)])
    x = batch.x.clone().requires_grad_()
    losses = case.ours.loss(batch.replace(x), PROMPTS, TARGETS)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    for i in range(3):
        alone = batch[i].x.clone().requires_grad_()
        loss = case.ours.loss(batch[i].replace(alone), [PROMPTS[i]], [TARGETS[i]])
        (expected,) = torch.autograd.grad(loss.sum(), alone)
        torch.testing.assert_close(losses[i], loss[0], rtol=1e-4, atol=1e-5)
        assert (gradient[i] - expected[0]).norm() <= 1e-4 * expected.norm()


def test_the_samples_of_a_batch_do_not_touch_each_other(case: Case) -> None:
    batch = case.ours.pixels([noise(112, 84, i) for i in range(2)])
    x = batch.x.clone().requires_grad_()
    losses = case.ours.loss(batch.replace(x), PROMPTS[:2], TARGETS[:2])
    (gradient,) = torch.autograd.grad(losses[0], x)
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0


@pytest.mark.parametrize("size", GRIDS)
def test_answers_equal_the_library_s_greedy_search(case: Case, size: tuple[int, int]) -> None:
    images = [noise(*size, seed=i) for i in range(3)]
    answers = case.ours.generate(case.ours.pixels(images), PROMPTS, 12)
    assert answers == [case.stock_answer(image, prompt, 12) for image, prompt in zip(images, PROMPTS, strict=True)]
    assert len({*answers}) > 1  # else the test shows nothing


def test_generation_stops_at_every_end_token(core: Case) -> None:
    batch = core.ours.pixels([noise(56, 56, i) for i in range(3)])
    free = core.ours.generate(batch, PROMPTS, 10)
    tokenizer = core.ours.tokenizer
    said = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in free]
    end = said[0][2]
    config = core.ours.hf.generation_config
    stock = config.eos_token_id
    config.eos_token_id = [2, end]
    try:
        stopped = core.ours.generate(batch, PROMPTS, 10)
    finally:
        config.eos_token_id = stock
    for before, after in zip(said, stopped, strict=True):
        assert after == tokenizer.decode(before[: before.index(end)] if end in before else before).strip()


def test_the_checkpoint_s_repetition_penalty_is_applied(core: Case) -> None:
    images = [noise(56, 84, i) for i in range(3)]
    batch = core.ours.pixels(images)
    config = core.ours.hf.generation_config
    plain = core.ours.generate(batch, PROMPTS, 10)
    config.repetition_penalty = 1.7
    try:
        answers = core.ours.generate(batch, PROMPTS, 10)
        alone = [core.ours.generate(batch[i], [PROMPTS[i]], 10)[0] for i in range(3)]
    finally:
        config.repetition_penalty = None
    expected = [
        core.stock_answer(image, prompt, 10, repetition_penalty=1.7)
        for image, prompt in zip(images, PROMPTS, strict=True)
    ]
    assert answers == alone == expected
    assert answers != plain


def test_generation_says_nothing(core: Case, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        core.ours.generate(core.ours.pixels([noise(56, 56)]), ["what"], 3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", GRIDS)
def test_llava_features_are_the_layer_the_language_model_reads(cases: dict[str, Case], size: tuple[int, int]) -> None:
    case = cases["llava"]
    images = [noise(*size, seed=i) for i in range(2)]
    batch = case.ours.pixels(images)
    values = case.ours.image_processor(images=images, return_tensors="pt")["pixel_values"]
    hidden = case.stock.model.vision_tower(values, output_hidden_states=True).hidden_states
    torch.testing.assert_close(case.ours.features(batch), hidden[-2][:, 1:])
    projected = torch.stack(list(case.stock.get_image_features(values).pooler_output))
    torch.testing.assert_close(case.ours.features(batch, at="projector"), projected)


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith("qwen")])
def test_qwen_features_are_in_raster_order(cases: dict[str, Case], name: str, size: tuple[int, int]) -> None:
    case = cases[name]
    images = [noise(*size, seed=i) for i in range(2)]
    batch = case.ours.pixels(images)
    inputs = case.ours.image_processor(images=images, return_tensors="pt")
    grid = inputs["image_grid_thw"]
    out = case.stock.model.visual(inputs["pixel_values"], grid_thw=grid)
    # where each row lies, from the positions that the rotary embedding itself uses
    places = get_vision_position_ids(grid, 2)
    if name == "qwen2.5":
        window, _ = get_vision_window_index(grid, 2, 56, 14)
        places = places.reshape(-1, 4, 2)[window].reshape(-1, 2)
    _, high, wide = grid[0].tolist()
    expected = torch.zeros(2, high, wide, 32)
    seen = torch.zeros(2, high, wide)
    for row, (y, x) in enumerate(places.tolist()):
        expected[row // (high * wide), y, x] = out.last_hidden_state[row]
        seen[row // (high * wide), y, x] += 1
    assert bool((seen == 1).all())
    torch.testing.assert_close(case.ours.features(batch), expected.flatten(1, 2), rtol=1e-4, atol=1e-4)
    merged = torch.stack(list(case.stock.get_image_features(inputs["pixel_values"], grid).pooler_output))
    projected = case.ours.features(batch, at="projector")
    torch.testing.assert_close(projected, merged, rtol=1e-4, atol=1e-4)


def test_features_have_gradients_and_known_places(case: Case) -> None:
    batch = case.ours.pixels([noise(56, 56)])
    for at in ("tower", "projector"):
        x = batch.x.clone().requires_grad_()
        case.ours.features(batch.replace(x), at=at).pow(2).sum().backward()
        assert x.grad is not None
        assert x.grad.abs().max() > 0
    with pytest.raises(UserError, match="'head' are unknown"):
        case.ours.features(batch, at="head")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "strategy"), [(-2, "full"), ([-3, -1], "default"), ([1, 2], "full"), (1, "default")]
)
def test_llava_with_other_feature_settings(cases: dict[str, Case], layers: int | list[int], strategy: str) -> None:
    """Some checkpoints read several layers, or keep CLS."""
    ours = cases["llava"].ours
    config = transformers.LlavaConfig(
        **{**ours.hf.config.to_dict(), "vision_feature_layer": layers, "vision_feature_select_strategy": strategy}
    )
    hf = transformers.LlavaForConditionalGeneration(config)
    for parameter in hf.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model = type(ours)(hf, ours.tokenizer, ours.image_processor, name="other")
    image = noise(70, 60)
    batch = model.pixels([image])
    width = 32 * (len(layers) if isinstance(layers, list) else 1)
    assert model.features(batch).shape == (1, 16, width)
    projected = hf.get_image_features(ours.image_processor(images=[image], return_tensors="pt")["pixel_values"])
    stock = torch.stack(list(projected.pooler_output))[:, -16:]
    torch.testing.assert_close(model.features(batch, at="projector"), stock)
    tokens = 16 + (strategy == "full")
    ids = torch.tensor([model.text.prompt("what", tokens) + model.text.target("what", "a pig")])
    labels = ids.clone()
    labels[:, :-3] = -100
    expected = hf(
        input_ids=ids, pixel_values=model.pixel_values(batch), attention_mask=torch.ones_like(ids), labels=labels
    ).loss
    torch.testing.assert_close(model.loss(batch, ["what"], ["a pig"])[0], expected)


def test_the_last_mlp_sees_the_answer_alone(case: Case) -> None:
    model = case.ours.language_model
    is_plain = type(model.layers[-1]).__name__ in lvlm_families()[case.ours.hf.config.model_type].plain_layers
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(2, 11, model.config.hidden_size, generator=generator)
    read = torch.tensor([[6, 7, 8], [9, 10, 0]])
    inputs = {"inputs_embeds": embeds, "attention_mask": None, "use_cache": False}
    inputs |= case.ours.token_inputs(torch.arange(22).view(2, 11))
    whole = model(**inputs).last_hidden_state
    seen: list[int] = []
    handle = model.layers[-1].mlp.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[1]))
    try:
        states = last_layer.final_states(model, read, **inputs)
        expected = torch.stack([whole[0, read[0]], whole[1, read[1]]])
        torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
        if is_plain:  # a layer of another build is run whole
            unknown = copy.deepcopy(model)
            unknown.layers[-1].post_attention_layernorm._forward_pre_hooks.clear()
            states = last_layer.final_states(unknown, read, **inputs)
            torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    finally:
        handle.remove()
    assert seen == ([3, 11] if is_plain else [11])
    torch.testing.assert_close(model(**inputs).last_hidden_state, whole)  # the model itself stays whole


def test_counts_must_agree(case: Case) -> None:
    batch = case.ours.pixels([noise(56, 56), noise(56, 56, 1)])
    with pytest.raises(UserError, match="2 images need 2 prompts, got 1"):
        case.ours.loss(batch, ["what"], ["a", "b"])
    with pytest.raises(UserError, match="2 images need 2 targets, got 3"):
        case.ours.loss(batch, ["what", "how"], ["a", "b", "c"])
    with pytest.raises(UserError, match="got one string"):
        case.ours.generate(batch, "ab")
    with pytest.raises(UserError, match="max_new_tokens"):
        case.ours.generate(batch, ["what", "how"], 0)


def test_no_text_can_pose_as_an_image(case: Case) -> None:
    batch = case.ours.pixels([noise(56, 56)])
    token = case.family.image_token
    with pytest.raises(UserError, match="reserved token"):
        case.ours.generate(batch, [f"what {token} is"])
    with pytest.raises(UserError, match="reserved token"):
        case.ours.loss(batch, ["what"], [token])


def test_braces_and_outer_spaces_are_plain_text(cases: dict[str, Case]) -> None:
    model = load_model(cases["llava"].folder, conversation="vicuna_v1")
    plain = model.text.prompt("", 2)
    words = model.text.prompt("the {text} {0} pig", 2)
    tail = model.tokenizer("the {text} {0} pig ASSISTANT:", add_special_tokens=False)["input_ids"]
    assert words == plain[:-2] + tail
    assert model.text.target("what", "  a pig \n") == model.text.target("what", "a pig")


def test_named_conversations(cases: dict[str, Case], tmp_path: Path) -> None:
    vicuna = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: <image><image>\n"
        "What? ASSISTANT:"
    )
    bare = load_model(tiny_checkpoints.save_llava(tmp_path / "l", chat_template=None))
    named = load_model(cases["llava"].folder, conversation="vicuna_v1")
    for model in (bare, named):
        assert model.text.prompt("What?", 2) == model.tokenizer(vicuna)["input_ids"]
    assert (
        cases["llava"].ours.text.prompt("What?", 2)
        == (bare.tokenizer("USER: <image><image>\nWhat? ASSISTANT:")["input_ids"])
    )
    chatml = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        "<|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n"
    )
    qwen = load_model(tiny_checkpoints.save_qwen(tmp_path / "q", chat_template=None))
    assert qwen.text.prompt("What?", 1) == qwen.tokenizer(chatml)["input_ids"]
    qwen3 = load_model(tiny_checkpoints.save_qwen3(tmp_path / "q3", chat_template=None))
    assert qwen3.text.prompt("What?", 1) == qwen.tokenizer(chatml.split("\n", 2)[2])["input_ids"]
    with pytest.raises(UserError, match="'alpaca' is unknown"):
        load_model(cases["llava"].folder, conversation="alpaca")


def test_a_template_that_writes_the_opening_token_gets_no_second_one(tmp_path: Path) -> None:
    template = "{{ bos_token }}" + tiny_checkpoints.LLAVA_TEMPLATE
    model = load_model(tiny_checkpoints.save_llava(tmp_path, chat_template=template))
    assert model.text.prompt("What?", 1).count(1) == 1


def test_a_loaded_model_is_frozen_and_reports_itself(case: Case) -> None:
    model = case.ours
    assert not model.hf.training
    assert not any(p.requires_grad for p in model.hf.parameters())
    assert (model.device.type, model.dtype, model.geometry, model.image_backend) == (
        "cpu",
        torch.float32,
        "stock",
        "pil",
    )
    assert type(model.image_processor).__name__.endswith("Pil")
    assert model.name == str(case.folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_stored_in_half_precision_come_in_the_dtype_asked_for(
    cases: dict[str, Case], tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = tiny_checkpoints.save_llava(tmp_path)
    cases["llava"].family.open_stock(cases["llava"].folder).half().save_pretrained(folder)
    model = load_model(folder, dtype=dtype)
    weight = cases["llava"].ours.hf.model.vision_tower.pre_layrnorm.weight
    assert model.dtype == dtype
    assert torch.equal(model.hf.model.vision_tower.pre_layrnorm.weight, weight.half().to(dtype))


def test_half_precision_answers_are_near(case: Case) -> None:
    model = load_model(case.folder, dtype=torch.bfloat16)
    batch = model.pixels([noise(84, 84, i) for i in range(2)])
    assert batch.x.dtype == torch.float32
    losses = model.loss(batch, PROMPTS[:2], TARGETS[:2])
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, case.ours.loss(batch, PROMPTS[:2], TARGETS[:2]), rtol=0.1, atol=0.3)


def test_missing_and_foreign_weights_are_errors(tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_llava(tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    key = next(k for k in weights if "linear_1.bias" in k)
    save_file({k: v for k, v in weights.items() if k != key}, path, metadata={"format": "pt"})
    with one_line(r"misses weights .*linear_1\.bias"):
        load_model(folder)
    save_file({**weights, "radapt.anchor": torch.zeros(3)}, path, metadata={"format": "pt"})
    with one_line(r"holds unknown weights radapt\.anchor"):
        load_model(folder)
    path.unlink()
    with one_line("cannot load its weights"):
        load_model(folder)


def test_incomplete_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_model(tmp_path / "nothing")
    folder = tiny_checkpoints.save_llava(tmp_path / "a")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="cannot load its image processor"):
        load_model(folder)
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read its config\.json") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_unknown_names_and_kinds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean tiny-llava"):
        load_model("tiny-lava")
    with pytest.raises(UserError, match=r"owner/none: cannot read its config\.json") as error:
        load_model("owner/none")
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match=f"'gpt2' is not supported, only {', '.join(lvlm_families())} are"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="'gpt2' is no image encoder"):
        load_encoder(tmp_path)
    with pytest.raises(UserError, match="it is an image encoder"):
        load_model(tiny_checkpoints.save_clip(tmp_path / "clip"))
    with pytest.raises(UserError, match="geometry 'crop'"):
        load_model(tiny_checkpoints.save_llava(tmp_path / "l"), geometry="crop")  # type: ignore[arg-type]


def test_embedded_names_open_the_packaged_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_checkpoints.save_llava(tmp_path / "embedded" / "weights" / "tiny-llava")
    monkeypatch.setattr(locate, "files", lambda package: tmp_path)
    assert embedded_models() == {"tiny-llava": tmp_path / "embedded" / "weights" / "tiny-llava"}
    assert load_model("tiny-llava").name == "tiny-llava"


def test_robustify_protects_in_place_and_the_undefended_twin_is_the_old_model(case: Case) -> None:
    model = load_model(case.folder)
    batch = model.pixels([noise(112, 84)])
    assert model.radapt is None
    before = model.loss(batch, PROMPTS[:1], TARGETS[:1])
    config = RAdaptConfig(cutoff=30.0, alpha=0.7)
    assert robustify(model, config) is model
    assert model.radapt == config
    after = model.loss(batch, PROMPTS[:1], TARGETS[:1])
    assert not torch.allclose(before, after)
    with model.undefended():
        assert torch.equal(model.loss(batch, PROMPTS[:1], TARGETS[:1]), before)
    assert torch.equal(model.loss(batch, PROMPTS[:1], TARGETS[:1]), after)


def test_robustify_takes_the_white_of_the_model_s_own_normalisation(tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_llava(tmp_path)
    odd = tiny_checkpoints.clip_processor(56, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.5, 0.7])
    odd.save_pretrained(folder)
    model = load_model(folder)
    expected = white_anchor(model.hf, [0.5, 0.4, 0.3], [0.2, 0.5, 0.7]).values
    anchor = injected_anchor(robustify(model, RAdaptConfig()).hf)
    assert anchor is not None
    assert torch.equal(anchor.values, expected)
    assert not torch.allclose(expected, white_anchor(model.hf).values)


def test_robustify_without_an_anchor(cases: dict[str, Case]) -> None:
    model = robustify(load_model(cases["llava"].folder), RAdaptConfig(alpha=0.0))
    assert injected_anchor(model.hf) is None


def test_loss_and_answers_both_run_through_the_defence(case: Case) -> None:
    config = RAdaptConfig(cutoff=15.0)
    stock = inject(case.family.open_stock(case.folder), config)
    defended = Case(case.family, robustify(load_model(case.folder), config), stock, case.folder)
    images = [noise(84, 84, i) for i in range(2)]
    batch = defended.ours.pixels(images)
    losses = defended.ours.loss(batch, PROMPTS[:2], TARGETS[:2])
    answers = defended.ours.generate(batch, PROMPTS[:2], 6)
    for i in range(2):
        expected = defended.stock_loss(images[i], PROMPTS[i], TARGETS[i])
        torch.testing.assert_close(losses[i], expected, rtol=1e-4, atol=1e-4)
        assert answers[i] == defended.stock_answer(images[i], PROMPTS[i], 6)
    assert answers != case.ours.generate(batch, PROMPTS[:2], 6)


def test_the_package_stays_light_and_its_names_whole() -> None:
    script = """
import sys
import lvlm_radapt
assert "torch" not in sys.modules
import lvlm_radapt.defences.radapt.hooks
assert lvlm_radapt.inject is sys.modules["lvlm_radapt.defences.radapt.hooks"].inject
from lvlm_radapt import RAdaptConfig, inject, remove
assert callable(inject) and RAdaptConfig().cutoff == 40.0
assert "transformers.models" not in sys.modules
assert set(lvlm_radapt.__all__) <= set(dir(lvlm_radapt))
try:
    lvlm_radapt.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", ["qwen2", "qwen2.5", "glm"])
def test_positions_that_do_not_share_out_a_head_are_one_line(name: str, tmp_path: Path) -> None:
    """They would end in a traceback at the first question."""
    folder = FAMILIES[name].save(tmp_path / "model")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["rope_parameters"]["mrope_section"] = [2, 2, 1]
    path.write_text(json.dumps(config))
    with one_line(
        r"mrope_section \[2, 2, 1\] in config.json adds up to 5, not to half of .* a head, 4: one of the two"
    ):
        load_model(folder)


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def no_weights_but_a_name(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"xx")


def another(file: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(content)


def processor_change(**values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def weight_change(value: float) -> Callable[[Path], object]:
    """One number of the last weight is replaced."""

    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights[max(weights)].view(-1)[-1] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def config_change(part: str | None, **values: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        (config if part is None else config[part]).update(values)
        path.write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "model.safetensors is cut short or damaged: .*not fully covered"),
        (no_weights_but_a_name, "model.safetensors is cut short or damaged: .*too small"),
        (
            config_change("vision_config", intermediate_size=48),
            r"fc[12].* has shape \(.*64.*\) and the config asks for \(.*48.*\): one of the two is of another model",
        ),
        (config_change("text_config", hidden_size=10**9), r"has shape \(.*\) and the config asks for \(.*1000000000"),
        (config_change("vision_config", hidden_size=30), "hidden size .*30.* is not a multiple"),
        (config_change("vision_config", patch_size=0), r"a size in config\.json is impossible"),
        (config_change("vision_config", num_attention_heads=0), r"a size in config\.json is impossible"),
        (config_change("vision_config", num_hidden_layers=4), r"misses weights .*encoder\.layers\.3"),
        (config_change("text_config", num_hidden_layers=1), r"holds unknown weights .*layers\.1"),
        (config_change(None, image_token_index=5000), "names 5000 as the image token, which is not in the vocabulary"),
        (config_change(None, vision_feature_layer=9), "layer 9 of the vision tower read, which has 3 layers"),
        (another("config.json", "[1]"), r"cannot read its config\.json"),
        (another("config.json", "{"), r"cannot read its config\.json: .*not a valid JSON"),
        (another("tokenizer.json", "[]"), "cannot load its tokenizer"),
        (another("tokenizer_config.json", "[1]"), "cannot load its tokenizer"),
        (another("preprocessor_config.json", "[1]"), "cannot load its image processor"),
        (another("preprocessor_config.json", '{"image_processor_type": 3}'), "image processor '3' is not supported"),
        (
            another("preprocessor_config.json", '{"image_processor_type": "CLIPImageProcessor", "size": "big"}'),
            "cannot load its image processor",
        ),
        (processor_change(image_std=[0.2, 0.0, 0.2]), r"image_std must be three finite numbers above 0, got .0.2, 0"),
        (processor_change(image_std=[math.nan] * 3), r"image_std must be three finite numbers above 0, got .nan"),
        (processor_change(image_mean=[0.5]), r"image_mean must be three finite numbers, got .0.5"),
        (weight_change(math.nan), "the weight .* holds NaN or infinite numbers in float32: the checkpoint is damaged"),
        (weight_change(-math.inf), "the weight .* holds NaN or infinite numbers in float32"),
        (another("generation_config.json", "{"), r"cannot read its generation_config\.json"),
        (another("chat_template.jinja", "{% if"), "chat template does not render an image .*end of template"),
    ],
)
def test_damaged_checkpoints_are_one_line(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    folder = tiny_checkpoints.save_llava(tmp_path / "model")
    damage(folder)
    with one_line(said):
        load_model(folder)
