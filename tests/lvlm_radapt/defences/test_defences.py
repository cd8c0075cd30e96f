"""The contract of a defence: every family sees it, it can be taken out to the bit, and runs know all of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor

from eval_tasks.crafting.batches import SampleBatch
from eval_tasks.crafting.embedding import Embedding
from eval_tasks.crafting.source_model import Draws, SourceModel
from lvlm_radapt import RAdaptConfig, export_model, fold_model, inject, remove, robustify
from lvlm_radapt.defences.base import Defence, defence_document, defence_remarks
from lvlm_radapt.defences.jpeg import Jpeg
from lvlm_radapt.defences.radapt.defence import RAdapt
from lvlm_radapt.defences.random_resize import RandomResize
from lvlm_radapt.defences.registry import DEFENCES, find_defence
from lvlm_radapt.embedded.scenes import render, sample_scene
from lvlm_radapt.loading.load import load_encoder, load_model
from lvlm_radapt.models import PixelBatch, PixelModel
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints
from tests.helpers.families import FAMILIES, NAMES

QUESTION = "what color is the background?"


@dataclass(frozen=True)
class Dark(Defence):
    """Exact, not random: every value is scaled down."""

    share: float = 0.5

    def pixels(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        return self.share * x


@dataclass(frozen=True)
class Scaled(Defence):
    """Inside the network: the tower's input is scaled by a hook."""

    share: float = 0.5
    hooks: ClassVar[dict[int, Any]] = {}

    def put_in(self, model: PixelModel) -> None:
        def scale(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0] * self.share, *args[1:])

        self.hooks[id(model)] = model.tower.embeddings.patch_embedding.register_forward_pre_hook(scale)

    def take_out(self, model: PixelModel) -> None:
        self.hooks.pop(id(model)).remove()


def scenes(count: int = 2) -> list[Image.Image]:
    return [render(sample_scene("test", 0, number)) for number in range(1, count + 1)]


@pytest.fixture
def tiny() -> Any:
    return load_model("tiny-llava")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PixelModel]:
    root = tmp_path_factory.mktemp("checkpoints")
    lvlms: dict[str, PixelModel] = {name: load_model(each.save(root / name)) for name, each in FAMILIES.items()}
    return lvlms | {
        "clip": load_encoder(tiny_checkpoints.save_clip(root / "clip")),
        "siglip": load_encoder(tiny_checkpoints.save_siglip(root / "siglip")),
    }


def outputs(model: Any, batch: PixelBatch) -> list[Tensor]:
    """Everything that a task or an attack reads of a model, and the gradient of a loss."""
    leaf = batch.x.clone().requires_grad_()
    at = batch.replace(leaf)
    if hasattr(model, "image_features"):
        found = [model.features(at), model.image_features(at)]
    else:
        found = [model.features(at), model.features(at, at="projector"), model.loss(at, ["what?"] * 2, ["red"] * 2)]
    found[-1].sum().backward()
    assert leaf.grad is not None
    return [*(each.detach() for each in found), leaf.grad]


@pytest.mark.parametrize("name", [*NAMES, "clip", "siglip"])
def test_every_family_sees_the_image_behind_the_defence_and_can_go_back(
    models: dict[str, PixelModel], name: str
) -> None:
    model = models[name]
    batch = model.pixels([image.resize((90, 60)) for image in scenes()])
    stock = outputs(model, batch)
    darker = outputs(model, batch.replace(0.5 * batch.x))
    Dark().attach(model)
    try:
        *values, slope = outputs(model, batch)
        assert all(map(torch.equal, values, darker[:-1]))
        assert torch.equal(slope, 0.5 * darker[-1])
        with model.undefended():
            assert model.defence is None
            assert all(map(torch.equal, outputs(model, batch), stock))
        assert model.defence == Dark()
    finally:
        Dark.detach(model.attached, model)  # type: ignore[arg-type]
    assert all(map(torch.equal, outputs(model, batch), stock))


@pytest.mark.parametrize("name", ["llava-next", "onevision"])
def test_every_view_of_a_stack_is_a_picture_of_its_own(models: dict[str, PixelModel], name: str) -> None:
    model: Any = models[name]
    batch = model.pixels([image.resize((90, 60)) for image in scenes()])
    side = batch.x.shape[-1]
    views = batch.x.unflatten(2, (-1, side)).unbind(2)
    assert len(views) > 1
    for defence in (Jpeg(20), RandomResize(0.5, fill=0.5)):
        defence.attach(model)
        seen = model.pixel_values(batch.with_seeds([3, 4]))
        defence.detach(model)
        for number, view in enumerate(views):
            assert not torch.equal(seen[:, number], model.tower_input(batch)[:, number])
            if isinstance(defence, Jpeg):
                expected = model.normalise(defence.pixels(view, [0, 0]))
                assert torch.equal(seen[:, number], expected)
    drawn = [(view - view[:, :1, :1]).abs().sum(0) > 1e-4 for view in seen[0]]  # where the ground is not
    assert len({tuple(map(int, place.nonzero().aminmax(dim=0)[0])) for place in drawn}) > 1  # a draw for each view


def test_the_answers_come_from_behind_the_defence(tiny: Any) -> None:
    batch = tiny.pixels(scenes())
    black = tiny.generate(batch.replace(torch.zeros_like(batch.x)), [QUESTION] * 2)
    stock = tiny.generate(batch, [QUESTION] * 2)
    Dark(0.0).attach(tiny)
    assert tiny.generate(batch, [QUESTION] * 2) == black != stock
    with tiny.undefended():
        assert tiny.generate(batch, [QUESTION] * 2) == stock


def test_one_inside_the_network_is_taken_out_and_put_back(tiny: Any) -> None:
    batch = tiny.pixels(scenes())
    stock = tiny.features(batch)
    defence = Scaled()
    defence.attach(tiny)
    defended = tiny.features(batch)
    assert not torch.equal(defended, stock)
    with tiny.undefended():
        assert torch.equal(tiny.features(batch), stock)
        with tiny.undefended():
            assert torch.equal(tiny.features(batch), stock)
    assert torch.equal(tiny.features(batch), defended)
    with pytest.raises(RuntimeError), tiny.undefended():
        raise RuntimeError
    assert torch.equal(tiny.features(batch), defended)
    defence.detach(tiny)
    assert torch.equal(tiny.features(batch), stock)
    assert tiny.defence is None


def test_r_adapt_is_a_defence_like_any_other(tiny: Any) -> None:
    batch = tiny.pixels(scenes())
    stock = tiny.features(batch)
    RAdapt(cutoff=30).attach(tiny)
    attached = tiny.features(batch)
    assert tiny.defence == RAdapt(cutoff=30)
    assert tiny.radapt == RAdaptConfig(cutoff=30)
    with tiny.undefended():
        assert torch.equal(tiny.features(batch), stock)
    with pytest.raises(UserError, match="does not have R-Adapt with these settings"):
        RAdapt().detach(tiny)
    RAdapt(cutoff=30).detach(tiny)
    assert tiny.defence is None
    assert torch.equal(robustify(tiny, RAdaptConfig(cutoff=30)).features(batch), attached)
    remove(tiny.hf)
    inject(tiny.hf, RAdaptConfig(cutoff=30))
    assert tiny.defence == RAdapt(cutoff=30)
    remove(tiny.hf)
    assert tiny.defence is None


def test_a_model_has_one_defence(tiny: Any) -> None:
    Jpeg().attach(tiny)
    for second in (Dark(), RAdapt()):
        with pytest.raises(UserError, match="tiny-llava has the defence jpeg already"):
            second.attach(tiny)
    with pytest.raises(UserError, match="has the defence jpeg already"):
        robustify(tiny)
    with pytest.raises(UserError, match="does not have this defence Dark"):
        Dark().detach(tiny)
    assert tiny.defence == Jpeg()
    protected = robustify(load_model("tiny-llava"))
    with pytest.raises(UserError, match="has the defence radapt already"):
        Jpeg().attach(protected)
    assert protected.attached is None


def test_settings_go_to_json_and_back() -> None:
    for defence in (Jpeg(20), RandomResize(0.7), RAdapt(cutoff=20, alpha=0), Dark(0.2)):
        told = json.loads(json.dumps(defence.to_dict()))
        assert type(defence).from_dict(told) == defence
        with pytest.raises(UserError, match="strength"):
            type(defence).from_dict(told | {"strength": 1})
    assert find_defence("jpeg", {"quality": 20}) == Jpeg(20)
    assert {name: cls.name for name, cls in DEFENCES.items()} == {name: name for name in DEFENCES}


class Untold(Defence):
    """Its constructor's argument is no field, so no run would know it."""

    def __init__(self, size: int = 3) -> None:
        self.size = size  # type: ignore[misc]


@dataclass(frozen=True)
class NoJson(Defence):
    kernel: Any = torch.ones(1)  # noqa: RUF009


@dataclass(frozen=True)
class Cropped(Defence):
    def pixels(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        return x[..., 1:]


def test_what_a_run_could_not_record_is_not_attached(tiny: Any) -> None:
    with pytest.raises(UserError, match="defence Untold: to_dict leaves out size"):
        Untold().attach(tiny)
    with pytest.raises(UserError, match="defence NoJson: its settings are no plain JSON values"):
        NoJson().attach(tiny)
    assert tiny.defence is None


def test_a_defence_that_changes_the_shape_is_told(tiny: Any) -> None:
    Cropped().attach(tiny)
    with pytest.raises(UserError, match=r"defence Cropped made images .*: it must keep the shape"):
        tiny.features(tiny.pixels(scenes()))


def test_nothing_is_saved_as_if_the_defence_were_not_there(tiny: Any, tmp_path: Path) -> None:
    Jpeg().attach(tiny)
    for save in (save_adapter, export_model, fold_model):
        with pytest.raises(UserError, match="has the defence jpeg around it: detach it before"):
            save(tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_recorded_of_a_defence(tiny: Any) -> None:
    assert defence_document(tiny) == {}
    assert defence_remarks(tiny) == []
    defence = RandomResize()
    defence.attach(tiny)
    tiny.eot_draws = 7
    assert defence_document(tiny)["defence"] == {
        "name": "random-resize", "settings": {"smallest": 0.9, "fill": 0.0}, "gradient": "exact", "random": True,
        "draws": 7, "plugin": None,
    }  # fmt: skip
    assert "raise the mean over 7 draws (EOT)" in defence_remarks(tiny)[0]
    defence.detach(tiny)
    Dark().attach(tiny)
    plugin = defence_document(tiny)["defence"]["plugin"]
    assert plugin["name"] == f"{__name__}:Dark"
    assert len(plugin["sha256"]) == 64
    assert defence_document(tiny)["defence"]["draws"] is None


def test_an_attack_averages_over_its_own_draws_and_never_over_the_scores(tiny: Any) -> None:
    batch = tiny.pixels(scenes()).with_seeds([11, 12])
    RandomResize(0.5).attach(tiny)
    tiny.eot_draws = 3
    attacker = SourceModel(tiny, batch)
    leaf = batch.x.clone().requires_grad_()
    value = attacker.nll([QUESTION] * 2, ["red", "blue"])(leaf, [0, 1])
    value.sum().backward()
    seen = [attacker.seen(batch.x, [0, 1], draw) for draw in range(3)]
    each = torch.stack([tiny.loss(one, [QUESTION] * 2, ["red", "blue"]) for one in seen])
    torch.testing.assert_close(value.detach(), each.mean(0).detach())
    assert leaf.grad is not None
    assert bool(leaf.grad.abs().sum() > 0)
    # the second image alone: its own draws, the same loss
    alone = attacker.nll([QUESTION] * 2, ["red", "blue"])(batch.x[1:], [1])
    torch.testing.assert_close(alone[0], value[1])
    with tiny.undefended():
        assert SourceModel(tiny, batch).seen(batch.x, [0, 1]).seeds == [11, 12]
        assert tiny.draws == 1


def test_draws_are_new_at_every_point_or_held_or_those_of_the_scores(tiny: Any) -> None:
    batch = tiny.pixels(scenes()).with_seeds([11, 12])
    RandomResize(0.5).attach(tiny)
    points = [batch.x, (batch.x + 1 / 255).clamp(0, 1)]

    def seeds(draws: Draws) -> list[int]:
        attacker = SourceModel(tiny, batch, draws)
        return [seed for x in points for draw in range(2) for seed in attacker.seen(x, [0, 1], draw).seeds]

    assert len({*seeds("fresh"), *seeds("held"), *seeds("scored")}) == 8 + 4 + 2
    assert seeds("scored") == [11, 12] * 4
    assert seeds("held")[:4] == seeds("held")[4:]
    again = SourceModel(tiny, batch).seen(points[1][1:], [1], 1).seeds  # alone, in another call
    assert again == seeds("fresh")[7:]


def test_image_tokens_are_compared_behind_the_same_draw(tiny: Any) -> None:
    batch = tiny.pixels(scenes()).with_seeds([11, 12])
    RandomResize(0.5).attach(tiny)
    attack = Embedding(name="embedding", eps=8 / 255)
    apart = attack.loss(SourceModel(tiny, batch), batch, SampleBatch(samples=[], batch_size=2))
    assert apart(batch.x, [0, 1]).abs().max() < 1e-6
    assert apart((batch.x + 8 / 255).clamp(0, 1), [0, 1]).min() > 1e-4
