"""LLaVA-NeXT and LLaVA-OneVision: views on one tall canvas, and image tokens that depend on the original size."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from eval_tasks.crafting.source_model import view_of
from lvlm_radapt import load_encoder, load_model
from lvlm_radapt.models.conversations import CONVERSATIONS
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints, tiny_random
from tests.helpers.families import Case
from tests.helpers.inputs import PROMPTS, TARGETS, noise

NAMES = ["llava-next", "onevision"]
SHAPES = [(112, 112), (112, 84), (101, 200)]  # four crops each, but other token counts


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def test_images_of_other_sizes_share_a_batch(case: Case) -> None:
    images = [noise(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    batch = case.ours.pixels(images)
    assert len({meta["tokens"] for meta in batch.meta}) == (3 if case.family.name == "llava-next" else 2)
    x = batch.x.clone().requires_grad_()
    losses = case.ours.loss(batch.replace(x), PROMPTS, TARGETS)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    answers = case.ours.generate(batch, PROMPTS, 8)
    for i, image in enumerate(images):
        torch.testing.assert_close(losses[i], case.stock_loss(image, PROMPTS[i], TARGETS[i]), rtol=1e-4, atol=1e-5)
        assert answers[i] == case.stock_answer(image, PROMPTS[i], 8)
        alone = case.ours.pixels([image])
        leaf = alone.x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(case.ours.loss(alone.replace(leaf), [PROMPTS[i]], [TARGETS[i]]).sum(), leaf)
        assert (gradient[i] - expected[0]).norm() <= 1e-4 * expected.norm()
    picked = batch[[2, 0]]
    torch.testing.assert_close(
        case.ours.loss(picked, [PROMPTS[2], PROMPTS[0]], [TARGETS[2], TARGETS[0]]), losses[[2, 0]], rtol=1e-4, atol=1e-5
    )


@given(st.integers(1, 260), st.integers(1, 260))
@settings(max_examples=20, deadline=None)
def test_as_many_tokens_as_the_stock_processor_counts(cases: dict[str, Case], height: int, width: int) -> None:
    image = noise(height, width)
    for case in (cases[name] for name in NAMES):
        wanted = int((case.inputs(image, "what")["input_ids"] == tiny_random.IMAGE_TOKEN).sum())
        batch = case.ours.pixels([image])
        with torch.no_grad():
            assert [len(case.ours.image_embeds(batch))] == case.ours.image_tokens(batch) == [wanted]


def test_features_are_the_layer_the_language_model_reads(case: Case) -> None:
    images = [noise(112, 168, i) for i in range(2)]
    batch = case.ours.pixels(images)
    views = case.ours.image_processor(images=images, return_tensors="pt")["pixel_values"]
    assert views.shape == (2, 5, 3, 56, 56)
    hidden = case.stock.model.vision_tower(views.flatten(0, 1), output_hidden_states=True).hidden_states
    read = hidden[-2][:, 1:] if case.family.name == "llava-next" else hidden[-1]
    torch.testing.assert_close(case.ours.features(batch), read.reshape(2, 80, 32))
    projected = case.stock.model.multi_modal_projector(read).reshape(2, 80, 32)
    torch.testing.assert_close(case.ours.features(batch, at="projector"), projected)
    # raster order of the tall canvas: a change of its 9th band of patches moves one view's features only
    x = batch.x.clone()
    x[0, :, 8 * 14 : 9 * 14] = 0.5
    moved = (case.ours.features(batch.replace(x)) - read.reshape(2, 80, 32)).abs().amax(-1) > 1e-3
    assert moved[0].nonzero().flatten().tolist() == list(range(32, 48))


def test_crops_are_packed_row_by_row_without_their_bars(cases: dict[str, Case]) -> None:
    """LLaVA-NeXT's packing by hand for a wide image: 112x56 px, 4 rows of patches of which 2 are black bars."""
    model = cases["llava-next"].ours
    batch = model.pixels([noise(28, 112)])
    assert batch.meta[0]["canvas"] == (3 * 56, 56)
    views = model.features(batch, at="projector")[0].reshape(3, 4, 4, 32)
    newline = model.hf.model.image_newline
    expected = [*views[0].reshape(16, 32)]
    for row in (1, 2):
        expected += [*views[1, row], *views[2, row], newline]
    torch.testing.assert_close(model.image_embeds(batch), torch.stack(expected))


def test_onevision_shrinks_crops_beyond_its_limit(cases: dict[str, Case], tmp_path: Path) -> None:
    """8 x 8 patches of four crops where two views' area is allowed: 5 x 5, bilinear, by hand."""
    model = cases["onevision"].ours
    batch = model.pixels([noise(112, 112)])
    views = model.features(batch, at="projector")[0].reshape(5, 4, 4, 32)
    crops = torch.cat([torch.cat([views[1], views[2]], 1), torch.cat([views[3], views[4]], 1)], 0)

    def at(line: Tensor, place: float) -> Tensor:  # linear between the two nearest of the 8 centres
        low = min(max(int(place), 0), 6)
        return line[low] + (place - low) * (line[low + 1] - line[low])

    places = [(i + 0.5) * 8 / 5 - 0.5 for i in range(5)]
    expected = [*views[0].reshape(16, 32)]
    for y in places:
        row = at(crops, y)
        expected += [*(at(row, x) for x in places), model.hf.model.image_newline]
    torch.testing.assert_close(model.image_embeds(batch), torch.stack(expected), rtol=1e-4, atol=1e-4)
    roomy = load_model(tiny_checkpoints.save_onevision(tmp_path, vision_aspect_ratio="anyres_max_9"))
    assert roomy.pixels([noise(112, 112)]).meta[0]["tokens"] == 16 + 8 * 9


def test_default_conversations(tmp_path: Path) -> None:
    following = load_model(tiny_checkpoints.save_llava_next(tmp_path / "n", chat_template=None))
    vicuna = CONVERSATIONS["vicuna_v1"].render("What?", "<image><image>")
    assert following.text.prompt("What?", 2) == following.tokenizer(vicuna)["input_ids"]
    chatml = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<image><image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    )
    one = load_model(tiny_checkpoints.save_onevision(tmp_path / "o", chat_template=None))
    assert one.text.prompt("What?", 2) == one.tokenizer(chatml)["input_ids"]


def test_no_text_can_pose_as_a_video(cases: dict[str, Case]) -> None:
    model = cases["onevision"].ours
    with pytest.raises(UserError, match="reserved token <video>"):
        model.generate(model.pixels([noise(56, 56)]), ["what is <video>"])


@pytest.mark.parametrize("save", [tiny_checkpoints.save_llava_next, tiny_checkpoints.save_onevision])
def test_what_does_not_fit_is_refused(save: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = save(tmp_path)
    with pytest.raises(UserError, match=r"pad is for LLaVA-1\.5"):
        load_model(folder, geometry="pad")
    settings_file = folder / "preprocessor_config.json"
    stock = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps({**stock, "image_grid_pinpoints": [[56, 112]]}))
    with pytest.raises(UserError, match="differ in image_grid_pinpoints"):
        load_model(folder)
    small = {"crop_size": None, "size": {"height": 28, "width": 28}, "do_center_crop": False}
    settings_file.write_text(json.dumps({**stock, **small}))
    with pytest.raises(UserError, match="the model takes 3x56x56"):
        load_model(folder).pixels([noise(56, 56)])
    settings_file.write_text(json.dumps(stock))
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text())
    other = "full" if config["vision_feature_select_strategy"] == "default" else "default"
    config_file.write_text(json.dumps({**config, "vision_feature_select_strategy": other}))
    with pytest.raises(UserError, match=f"strategy '{other}' leaves no square of patches"):
        load_model(folder)


def test_the_hub_s_weight_names_are_read(case: Case, tmp_path: Path) -> None:
    """The published checkpoints have one more level in the tower than the library has by now."""
    folder = case.family.save(tmp_path)
    path = folder / "model.safetensors"
    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in load_file(path).items()
    }
    assert "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias" in weights
    save_file(weights, path, metadata={"format": "pt"})
    batch = case.ours.pixels([noise(84, 56)])
    again = load_model(folder)
    assert torch.equal(again.loss(batch, PROMPTS[:1], TARGETS[:1]), case.ours.loss(batch, PROMPTS[:1], TARGETS[:1]))
    assert isinstance(again.hf, getattr(transformers, case.family.stock))


def test_an_attack_sees_the_victim_s_own_canvas(case: Case, tmp_path: Path) -> None:
    """A stack of views taken for one image would be cut into views once more."""
    batch = case.ours.pixels([noise(*shape, seed=i) for i, shape in enumerate(SHAPES)])
    for source in (case.ours, load_model(case.folder)):
        view = view_of(source, batch)
        assert torch.equal(view.x, batch.x)
        assert view.meta == batch.meta
    clip = load_encoder(tiny_checkpoints.save_clip(tmp_path))
    with pytest.raises(UserError, match="stack of views"):
        view_of(clip, batch)
    with pytest.raises(UserError, match="stack of views"):
        view_of(case.ours, clip.pixels([noise(56, 56)]))
