"""Models that cut images into crops: the texts around them, their views, their towers' first attention by hand."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from eval_tasks.crafting.source_model import view_of
from lvlm_radapt import RAdaptConfig, load_model
from lvlm_radapt.defences.radapt.anchor import Anchor, white_anchor
from lvlm_radapt.defences.radapt.hooks import inject
from lvlm_radapt.models.tiles import TiledLVLM
from lvlm_radapt.towers import find_tower
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints, tiny_random
from tests.helpers.families import FAMILIES, Case
from tests.helpers.first_attention import INTERNVL, vit_first_attention
from tests.helpers.inputs import PROMPTS, TARGETS, noise
from tests.helpers.released import stock_processor, write

NAMES = [name for name, family in FAMILIES.items() if issubclass(family.record.lvlm or object, TiledLVLM)]
CROPS = [(0, 0), (1, 2), (2, 1), (2, 2)]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def model_of(case: Case) -> TiledLVLM:
    assert isinstance(case.ours, TiledLVLM)
    return case.ours


@pytest.mark.parametrize(("high", "wide"), CROPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_text_around_an_image_is_the_processors_own(name: str, high: int, wide: int, tmp_path: Path) -> None:
    """Line ends included, which the tests' tokenizers pass over."""
    processor = stock_processor(name, write(name, tmp_path))
    model = load_model(tmp_path)
    assert isinstance(model, TiledLVLM)
    of_image = {"rows": [[high]], "cols": [[wide]], "num_patches": [high * wide + 1]}
    expected = processor.replace_image_token(of_image, 0)
    image = model.tokenizer.convert_ids_to_tokens(model.text.image_id)
    text = model.image_text({"crops": (high, wide)})
    views = high * wide + 1
    assert text.replace(image, image * (model.image_run * views // text.count(image))) == expected


def test_the_whole_image_lies_on_top_and_goes_last(case: Case) -> None:
    model, image = model_of(case), noise(200, 100)
    batch = model.pixels([image])
    high, wide = batch.meta[0]["crops"]
    assert (high, wide) == (2, 1)
    assert batch.x.shape == (1, 3, 3 * 56, 56)
    views = model.pixel_values(batch).reshape(3, 3, 56, 56)
    assert torch.equal(views[-1], model.normalise(batch.x[:, :, :56])[0])
    upper, lower = views[0], views[1]
    brightness = torch.linspace(0, 1, 200).view(200, 1).expand(200, 100)
    ramp = Image.fromarray((brightness * 255).byte().numpy(), "L").convert("RGB")
    shown = model.pixels([ramp]).x[0]
    whole, first, second = (shown[:, rows : rows + 56].mean() for rows in (0, 56, 112))
    assert first < whole < second
    assert not torch.equal(upper, lower)
    assert model.features(batch).shape == (1, 3 * 16, 32)
    assert model.features(batch, at="projector").shape == (1, 3 * 4, 32)


def test_views_are_said_to_be_attacked_apart_unless_the_files_switch_them_off(case: Case, tmp_path: Path) -> None:
    assert case.ours.views_apart
    processor = case.ours.image_processor
    FAMILIES[case.family.name].save(tmp_path)
    off = {"max_patches": 1, "do_image_splitting": False}
    type(processor).from_dict(processor.to_dict() | off).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    one = Case(case.family, model, case.stock, tmp_path)
    image = noise(200, 100)
    batch = model.pixels([image])
    assert (model.views_apart, batch.x.shape[-2:]) == (False, (56, 56))
    assert "crops" not in batch.meta[0]
    loss = model.loss(batch, PROMPTS[:1], TARGETS[:1])[0]
    torch.testing.assert_close(loss, one.stock_loss(image, PROMPTS[0], TARGETS[0]), rtol=1e-5, atol=1e-5)
    assert torch.equal(view_of(model, batch).x, batch.x)


def test_a_stack_of_views_has_no_surrogate_of_another_kind(case: Case, tmp_path: Path) -> None:
    other = load_model(tiny_checkpoints.save_llava(tmp_path))
    with pytest.raises(UserError, match="a stack of views"):
        view_of(other, case.ours.pixels([noise(200, 100)]))


def test_half_precision_rounds_pixels_behind_the_filter(case: Case) -> None:
    model = load_model(case.folder, dtype=torch.bfloat16)
    seen: list[torch.dtype] = []
    find_tower(model.hf).module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append([*args, *kwargs.values()][0].dtype), with_kwargs=True
    )
    model.features(model.pixels([noise(56, 56)]))
    assert seen == [torch.float32]


def test_internvls_anchor_by_hand_and_its_place_before_the_layer_scale() -> None:
    model = tiny_random.internvl()
    tower = find_tower(model)
    vision: dict[str, Tensor] = tower.module.state_dict()
    white = torch.tensor(tower.white()).reshape(3, 1, 1).expand(3, 56, 56)
    anchor = white_anchor(model)
    assert (anchor.grid, anchor.prefix_tokens, tuple(anchor.values.shape)) == ((4, 4), 1, (17, 32))
    assert (anchor.values - vit_first_attention(vision, white, 14, 4, INTERNVL)).abs().max() < 1e-5
    assert anchor.values.std(0).max() > 0.01
    inject(model, RAdaptConfig(cutoff=None, alpha=0.3))
    block = tower.module.get_submodule("encoder.layer.0")
    caught: list[Tensor] = []
    block.register_forward_pre_hook(lambda _, args: caught.append(args[0][0]))
    block.get_submodule("layernorm_after").register_forward_pre_hook(lambda _, args: caught.append(args[0][0]))
    image = torch.randn(3, 56, 56, generator=torch.Generator().manual_seed(0))
    tower.module(image[None])
    mixed = 0.7 * vit_first_attention(vision, image, 14, 4, INTERNVL) + 0.3 * anchor.values
    torch.testing.assert_close(caught[1], caught[0] + vision["encoder.layer.0.lambda_1"] * mixed, rtol=1e-4, atol=1e-4)


def test_an_anchor_of_another_grid_is_one_line() -> None:
    for model in (tiny_random.internvl(), tiny_random.idefics3()):
        tower = find_tower(model)
        rows = 64 + tower.prefix_tokens
        inject(model, RAdaptConfig(alpha=0.5), Anchor(torch.randn(rows, 32), (8, 8), tower.prefix_tokens))
        with pytest.raises(UserError, match="lies on 8x8 patches, this encoder's views on 4x4"):
            tower.module(torch.zeros(1, 3, 56, 56))
