"""Adversarial fine-tuning: the losses against their definitions, what is trained and what stays, resuming, mistakes."""

import copy
import json
import math
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.utils import parametrize
from transformers import CLIPModel, LlavaForConditionalGeneration

from attacks.losses import embedding_loss
from eval_tasks.config.presets import load_recipe
from lvlm_radapt import RAdaptConfig, load_encoder, load_model, robustify
from lvlm_radapt.embedded import scenes
from lvlm_radapt.loading.load import load_any
from lvlm_radapt.models.zero_shot import ZeroShot
from lvlm_radapt.towers import find_tower
from lvlm_radapt.training import finetune as module
from lvlm_radapt.training.data_parallel import SingleProcess
from lvlm_radapt.training.finetune import FinetuneSettings, TrainingLog, finetune, rate_at
from lvlm_radapt.training.labelled import TrainingImages
from lvlm_radapt.training.losses import fare_loss, tecoa_loss, text_guided_attention, tga_loss
from lvlm_radapt.training.low_rank import low_rank_changes
from lvlm_radapt.training.objectives import Fare, Tga, objective_of
from lvlm_radapt.training.recipe import FinetuneRecipe
from lvlm_radapt.training.scopes import scope_parameters
from lvlm_radapt.training.state import StateFile
from tests.helpers import tiny_checkpoints
from tests.helpers.cli import Cli
from tests.helpers.commands import Command, launch
from tests.helpers.failures import one_line
from tests.helpers.slow import slow

RECIPE = FinetuneRecipe(
    name="test", description="few steps", eps=4 / 255, pgd_step=2 / 255, pgd_steps=2, steps=3, warmup=1, batch_size=4,
    lr=1e-3, weight_decay=1e-4, templates=["a {}"], probe_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of red and ten of blue noise, a folder each."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (root / name).mkdir()
        for i in range(10):
            pixels = rng.integers(0, 120, (60, 60, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.save_llava(tmp_path_factory.mktemp("llava"))


def images_of(folder: Path, method: str = "fare") -> TrainingImages:
    return TrainingImages.of(folder, limit=None, seed=0, classes=method != "fare")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


# --- losses


def test_fare_is_the_squared_distance_and_over_tokens_its_mean() -> None:
    a, b = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    by_hand = [[sum(float(x - y) ** 2 for x, y in zip(s, t, strict=True)) for s, t in zip(u, v, strict=True)]
               for u, v in zip(a, b, strict=True)]  # fmt: skip
    torch.testing.assert_close(fare_loss(a, b), torch.tensor(by_hand).mean(1))
    torch.testing.assert_close(fare_loss(a[:, 0], b[:, 0]), torch.tensor(by_hand)[:, 0])
    # the embedding attack's distance, which the defence is asked about later
    torch.testing.assert_close(fare_loss(a, b), embedding_loss(lambda x, i: a, b, distance="l2")(a, [0, 1, 2]))
    with pytest.raises(ValueError, match="features"):
        fare_loss(a, b[:, :1])


def test_tecoa_is_the_cross_entropy() -> None:
    logits, classes = torch.randn(4, 6), torch.tensor([0, 5, 2, 2])
    by_hand = [
        -float(row[c]) + math.log(sum(map(math.exp, row.tolist()))) for row, c in zip(logits, classes, strict=True)
    ]
    torch.testing.assert_close(tecoa_loss(logits, classes), torch.tensor(by_hand))


def test_a_text_guided_map_is_the_stretched_cosine_laid_over_the_image() -> None:
    patches, texts = torch.randn(2, 6, 5), torch.randn(2, 5)
    found = text_guided_attention(patches, texts, (2, 3), (2, 3))  # one pixel a patch: nothing to interpolate
    for row in range(2):
        near = [float(p @ texts[row] / p.norm() / texts[row].norm()) for p in patches[row]]
        by_hand = [(v - min(near)) / (max(near) - min(near)) for v in near]
        torch.testing.assert_close(found[row], torch.tensor(by_hand))
    large = text_guided_attention(patches, texts, (2, 3), (8, 12))
    assert large.shape == (2, 96)
    assert float(large.min()) >= 0
    assert float(large.max()) <= 1
    # corners are the corner patches', whose middles lie further in
    torch.testing.assert_close(large.view(2, 8, 12)[:, 0, 0], found[:, 0])
    flat = text_guided_attention(torch.ones(1, 4, 5), texts[:1], (2, 2), (4, 4))
    assert bool((flat == 0).all())


def test_tga_adds_both_distances_and_has_a_gradient_where_they_vanish() -> None:
    logits, classes = torch.randn(2, 3), torch.tensor([1, 2])
    maps = [torch.rand(2, 9) for _ in range(3)]
    by_hand = [
        float(tecoa_loss(logits, classes)[i])
        + 0.08 * math.dist(maps[0][i].tolist(), maps[2][i].tolist())
        + 0.05 * math.dist(maps[1][i].tolist(), maps[2][i].tolist())
        for i in range(2)
    ]
    torch.testing.assert_close(tga_loss(logits, classes, *maps), torch.tensor(by_hand))
    same = maps[0].clone().requires_grad_()  # before the first step the model is the original
    tga_loss(logits, classes, same, same, maps[0]).sum().backward()
    assert same.grad is not None
    assert bool(same.grad.isfinite().all())


def test_tga_reads_the_logits_of_the_classifier_and_a_map_from_the_last_layer(clip: Path, folder: Path) -> None:
    encoder = load_encoder(clip)
    objective = objective_of("tga", encoder, features="cls", class_names=["red", "blue"], templates=["a {}"])
    assert isinstance(objective, Tga)
    batch = encoder.pixels([Image.open(folder / "red/0.png"), Image.open(folder / "blue/0.png")])
    classes = torch.tensor([0, 1])
    logits, attention = objective.read(batch, classes)
    zero_shot = ZeroShot(encoder, ["red", "blue"], ["a {}"])
    torch.testing.assert_close(logits, zero_shot.logits(batch))
    out = encoder.hf.vision_model(encoder.pixel_values(batch), output_hidden_states=True)
    patches = encoder.hf.visual_projection(encoder.hf.vision_model.post_layernorm(out.hidden_states[-1][:, 1:]))
    texts = encoder.text_features(["a red", "a blue"])
    torch.testing.assert_close(attention, text_guided_attention(patches, texts, (4, 4), (56, 56)))


# --- what is trained


def test_scopes_are_nested_and_hold_what_they_say(clip: Path) -> None:
    tower = find_tower(load_encoder(clip).hf)
    every, shallow, least = (scope_parameters(tower, s) for s in ("tower", "shallow", "embedding+attention"))
    assert set(least) < set(shallow) < set(every) == {name for name, _ in tower.module.named_parameters()}
    assert all(n.startswith(("embeddings.", "pre_layrnorm.", "encoder.layers.0.")) for n in shallow)
    assert not any("mlp" in n or "layer_norm2" in n for n in least)
    assert "embeddings.patch_embedding.weight" in least
    assert "encoder.layers.0.layer_norm1.weight" in least
    assert set(shallow) - set(least) == {n for n in shallow if "mlp" in n or "layer_norm2" in n}
    both = scope_parameters(tower, "embedding+attention1+attention2")
    assert set(both) - set(least) == {n.replace("layers.0.", "layers.1.") for n in least if "layers.0." in n}
    assert scope_parameters(tower, "block1+embedding") == shallow
    for wrong in ("deep", "embedding+attention9", "embedding+", ""):
        with one_line(re.escape(f"scope {wrong!r} is neither tower, shallow, embedding+attention nor parts")):
            scope_parameters(tower, wrong)


@pytest.mark.parametrize("method", ["fare", "tecoa", "tga"])
@pytest.mark.parametrize("scope", ["tower", "shallow", "embedding+attention"])
def test_everything_outside_the_scope_is_bit_identical(method: Any, scope: Any, clip: Path, folder: Path) -> None:
    encoder = load_encoder(clip)
    before = copy.deepcopy(encoder.hf.state_dict())
    log = finetune(encoder, images_of(folder, method), FinetuneSettings(method, RECIPE, scope))
    moved = changed(before, encoder.hf.state_dict())
    wanted = {f"vision_model.{n}" for n in scope_parameters(find_tower(encoder.hf), scope)}
    if scope == "tower":
        wanted.add("visual_projection.weight")
    # a key's bias moves no attention; its gradient is rounding alone
    assert {n for n in wanted if not n.endswith("k_proj.bias")} <= moved <= wanted
    assert log.trained == sum(before[n].numel() for n in wanted)
    assert not any(p.requires_grad for p in encoder.hf.parameters())
    assert len(log.losses) == 3
    assert [probe.step for probe in log.probes] == [0, 2, 3]
    if method == "fare":
        assert log.probes[0].clean == pytest.approx(1, abs=1e-5)
        assert log.probes[0].robust < 0.9999


def test_of_a_language_model_the_blocks_that_it_reads_are_trained_and_nothing_else(llava: Path, folder: Path) -> None:
    model = load_model(llava, dtype=torch.bfloat16)
    before = copy.deepcopy(model.hf.state_dict())
    finetune(model, images_of(folder), FinetuneSettings("fare", RECIPE, features="tokens"))
    after = model.hf.state_dict()
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    moved = changed(before, after)
    depth = model.hf.config.vision_config.num_hidden_layers
    assert moved
    assert all(name.startswith("model.vision_tower.") for name in moved)
    assert not any(f"layers.{depth - 1}." in name or "post_layernorm" in name for name in moved)


@pytest.mark.parametrize(
    "save",
    [
        tiny_checkpoints.save_qwen,
        tiny_checkpoints.save_qwen3,
        tiny_checkpoints.save_llava_next,
        tiny_checkpoints.save_onevision,
    ],
)
@pytest.mark.parametrize("rank", [None, slow(2)])
def test_families_with_canvases_of_several_shapes_are_trained_too(
    save: Any, rank: int | None, folder: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    for path in sorted(mixed.glob("red/*.png")):
        Image.open(path).resize((112, 60)).save(path)
    model = load_model(save(tmp_path / "model"))
    before = copy.deepcopy(model.hf.state_dict())
    settings = FinetuneSettings("fare", RECIPE.changed(steps=2), "shallow", "tokens", rank=rank)
    log = finetune(model, images_of(mixed), settings)
    assert all(map(math.isfinite, log.losses))
    moved = changed(before, model.hf.state_dict())
    assert moved
    first = (".patch_embed.", ".pos_embed.", ".blocks.0.", ".embeddings.", ".pre_layrnorm.", ".layers.0.")
    assert all(any(part in name for part in first) for name in moved)
    assert not any("language_model" in name for name in moved)


@pytest.mark.parametrize("scope", ["tower", "embedding", "attention1+block2"])
def test_changes_of_low_rank_are_what_is_trained_and_are_merged_into_plain_weights(
    scope: str, clip: Path, folder: Path
) -> None:
    encoder = load_encoder(clip)
    tower = find_tower(encoder.hf).module
    before = copy.deepcopy(tower.state_dict())
    everything = copy.deepcopy(encoder.hf.state_dict())
    log = finetune(encoder, images_of(folder), FinetuneSettings("fare", RECIPE, scope, rank=3))
    after = tower.state_dict()
    assert after.keys() == before.keys()
    assert not any(parametrize.is_parametrized(layer) for layer in tower.modules())
    assert not any(p.requires_grad for p in encoder.hf.parameters())
    kinds = torch.nn.Linear, torch.nn.Conv2d
    matrices = {f"{name}.weight" for name, layer in tower.named_modules() if isinstance(layer, kinds)}
    wanted = matrices & set(scope_parameters(find_tower(encoder.hf), scope))
    assert changed(before, after) == wanted
    assert changed(everything, encoder.hf.state_dict()) == {f"vision_model.{name}" for name in wanted}
    for name in wanted:
        values = torch.linalg.svdvals((after[name] - before[name]).flatten(1).double())
        assert values[2] > 1e-6
        assert values[3] < 1e-3 * values[2]  # what float32 rounds off the sum
    assert log.trained == sum(3 * sum(before[name].flatten(1).shape) for name in wanted)
    assert log.weights == sum(value.numel() for value in tower.parameters())


def test_a_change_of_low_rank_is_none_at_first_and_ends_as_the_product_of_its_factors() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 5))
    x = torch.randn(7, 6)
    plain, weight = module(x), module[0].weight.detach().clone()
    with low_rank_changes(module, ["0.weight", "2.bias"], 2, seed=1) as factors:
        assert torch.equal(module(x), plain)
        assert {name: tuple(value.shape) for name, value in factors.items()} == {"0.down": (2, 6), "0.up": (4, 2)}
        module(x).square().sum().backward()
        assert factors["0.up"].grad is not None
        assert bool(factors["0.up"].grad.any())
        with torch.no_grad():
            factors["0.up"] += 0.5
        changed_to = weight + factors["0.up"].detach() @ factors["0.down"].detach()
        inside = module(x)
    assert torch.equal(module[0].weight, changed_to)
    assert torch.equal(module(x), inside)
    assert sorted(name for name, _ in module.named_parameters()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    with pytest.raises(ZeroDivisionError), low_rank_changes(module, ["2.weight"], 1, seed=1):
        raise ZeroDivisionError
    assert not parametrize.is_parametrized(module[2])


def test_training_lowers_the_loss_and_raises_the_attacked_score(tmp_path: Path) -> None:
    for i in range(60):
        scenes.render(scenes.sample_scene("train", 7, i)).save(tmp_path / f"{i}.png")
    encoder = load_encoder("tiny-clip")
    recipe = RECIPE.changed(steps=8, lr=1e-4, batch_size=8, probe_every=8)
    log = finetune(encoder, images_of(tmp_path), FinetuneSettings("fare", recipe, features="tokens"))
    assert sum(log.losses[-3:]) < 0.8 * sum(log.losses[:3])
    assert log.probes[-1].robust > log.probes[0].robust + 0.03


def test_the_inner_attack_is_pgd_on_the_loss_against_the_weights_of_the_step(
    clip: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step, done by hand: targets, attack, loss, gradient, AdamW."""
    encoder, by_hand = load_encoder(clip), load_encoder(clip)
    images = images_of(folder)
    seen: dict[str, Any] = {}
    stock_pgd = module.pgd

    def spy(loss: Any, x: torch.Tensor, **more: Any) -> Any:
        found = stock_pgd(loss, x, **more)
        if more["seed"][0] >= 0:
            seen.update(x=x, adversarial=found.x_adv, **more)
        return found

    monkeypatch.setattr(module, "pgd", spy)
    log = finetune(encoder, images, FinetuneSettings("fare", RECIPE.changed(steps=1)))
    x, adversarial = seen["x"], seen["adversarial"]
    assert (seen["eps"], seen["step_size"], seen["steps"]) == (4 / 255, 2 / 255, 2)
    assert 0 < float((adversarial - x).abs().max()) <= 4 / 255 + 1e-7

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        return by_hand.hf.get_image_features(by_hand.normalise(pixels)).pooler_output

    with torch.no_grad():
        clean = embed(x)
    weights = [*by_hand.hf.vision_model.parameters(), by_hand.hf.visual_projection.weight]
    for weight in weights:
        weight.requires_grad_(True)
    loss = (embed(adversarial) - clean).square().sum(-1).mean()
    assert log.losses == pytest.approx([loss.item()], rel=1e-5)
    loss.backward()
    for weight in weights:  # AdamW's first step is the gradient's sign, less the decay
        assert weight.grad is not None
        with torch.no_grad():
            weight.mul_(1 - 1e-3 * 1e-4).sub_(1e-3 * weight.grad / (weight.grad.abs() + 1e-8))
    ours, theirs = encoder.hf.state_dict(), by_hand.hf.state_dict()
    for name in ours:
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("method", ["fare", "tga"])
def test_a_batch_that_does_not_fit_into_memory_is_trained_on_in_parts(
    method: Any, clip: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = load_encoder(clip), load_encoder(clip)
    settings, images = FinetuneSettings(method, RECIPE.changed(steps=3)), images_of(folder, method)
    expected = finetune(whole, images, settings)
    objective = {"fare": Fare, "tga": Tga}[method]
    stock, sizes = objective.loss, []

    def tight(self: Any, adversarial: Any, *more: Any) -> torch.Tensor:
        sizes.append(len(adversarial))
        if len(adversarial) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stock(self, adversarial, *more)

    monkeypatch.setattr(objective, "loss", tight)
    log = finetune(parts, images, settings)
    assert sizes[0] == RECIPE.batch_size > 1
    assert sizes[-1] == 1
    assert log.losses == pytest.approx(expected.losses, rel=1e-3)
    assert log.trained == expected.trained
    start = torch.cat([weight.flatten() for weight in load_encoder(clip).hf.parameters()])
    ways = [torch.cat([weight.flatten() for weight in one.hf.parameters()]) - start for one in (whole, parts)]
    assert torch.cosine_similarity(*ways, dim=0) > 0.999  # AdamW's first steps are signs: rounding turns a few


@pytest.mark.parametrize("method", ["fare", "tga"])
def test_what_features_should_be_is_the_original_s_answer_at_every_step(
    method: Any, clip: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any, Any]] = []
    kind = {"fare": Fare, "tga": Tga}[method]
    stock = kind.targets

    def spy(self: Any, batch: Any, classes: Any) -> Any:
        found = stock(self, batch, classes)
        seen.append((batch, classes, found))
        return found

    monkeypatch.setattr(kind, "targets", spy)
    encoder, original = load_encoder(clip), load_encoder(clip)
    finetune(encoder, images_of(folder, method), FinetuneSettings(method, RECIPE.changed(steps=5, lr=1e-2)))
    asked = objective_of(method, original, features="cls", class_names=["blue", "red"], templates=["a {}"])
    assert len(seen) == 6  # five steps and the held-back images
    for batch, classes, found in seen:
        for ours, theirs in zip(found, stock(asked, batch, classes), strict=True):
            assert torch.equal(ours, theirs)
        moved = stock(type(asked)(encoder, *_more(method)), batch, classes)
        assert not torch.allclose(moved[-1], found[-1], atol=1e-3)


def _more(method: str) -> tuple[Any, ...]:
    return ("cls",) if method == "fare" else (["blue", "red"], ["a {}"])


def test_the_rate_rises_over_the_warm_up_and_falls_as_a_cosine() -> None:
    recipe = load_recipe("published")
    assert (recipe.pgd_steps, recipe.pgd_step, recipe.eps) == (10, 1 / 255, 4 / 255)
    assert (recipe.lr, recipe.weight_decay, recipe.batch_size) == (1e-5, 1e-4, 128)
    assert (recipe.steps, recipe.warmup) == (20_000, 1400)
    assert rate_at(recipe, 0) == pytest.approx(1e-5 / 1400)
    assert rate_at(recipe, 699) == pytest.approx(0.5e-5)
    assert rate_at(recipe, 1400) == 1e-5
    assert rate_at(recipe, 1400 + 9300) == pytest.approx(0.5e-5)
    assert 0 < rate_at(recipe, 19_999) < 1e-12
    assert recipe.changed(steps=1000).warmup == 70


# --- stopping, resuming, sharing


class _Killed(Exception):
    pass


@pytest.mark.parametrize("rank", [None, 2])
def test_a_resumed_training_ends_at_the_same_bits(
    rank: int | None, clip: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVED_EVERY", 2)
    monkeypatch.setattr(module, "StateFile", partial(StateFile, every=0))
    settings = FinetuneSettings("tga", RECIPE.changed(steps=7), rank=rank)
    images, state = images_of(folder, "tga"), tmp_path / "state.pt"
    whole = load_encoder(clip)
    log = finetune(whole, images, settings)

    def announce(title: str, total: int) -> Any:
        def advance(done: int, what: str) -> None:
            nonlocal made
            made += done
            if made == 5:
                raise _Killed

        made = 0
        return advance

    with pytest.raises(_Killed):
        finetune(load_encoder(clip), images, settings, state=state, announce=announce)
    again = load_encoder(clip)
    steps: list[int] = []
    resumed = finetune(
        again, images, settings, state=state, resume=True, announce=lambda t, n: lambda done, what: steps.append(done)
    )
    assert steps == [4, 1, 1, 1]  # from the last save on
    assert resumed == log
    assert changed(whole.hf.state_dict(), again.hf.state_dict()) == set()

    def refused(encoder: Path, recipe: FinetuneRecipe, **more: Any) -> None:
        finetune(load_encoder(encoder), images, FinetuneSettings("tga", recipe, rank=rank), state=state, **more)

    with one_line("was begun with another eps"):
        refused(clip, RECIPE.changed(steps=7, eps=2 / 255), resume=True)
    other = tiny_checkpoints.save_clip(tmp_path / "other", seed=5)
    with one_line("was begun with another model"):
        refused(other, settings.recipe, resume=True)
    with one_line("go on with --resume, or remove it"):
        refused(clip, settings.recipe)
    state.write_bytes(state.read_bytes()[:200])
    with one_line("damaged"):
        refused(clip, settings.recipe, resume=True)


def test_another_seed_makes_another_model(clip: Path, folder: Path) -> None:
    def losses(seed: int) -> TrainingLog:
        return finetune(load_encoder(clip), images_of(folder), FinetuneSettings("fare", RECIPE, seed=seed))

    assert losses(1).losses != losses(2).losses


def _words(encoder: Path | str, images: Path, out: Path, *more: str) -> list[str]:
    words = ["finetune", str(encoder), "--images", str(images), "--out", str(out), "--preset", "scenes"]
    return [*words, "--steps", "3", "--batch-size", "4", "--device", "cpu", *more]


@pytest.mark.parametrize("rank", [(), slow(("--rank", "2"))])
def test_two_processes_share_every_batch_and_end_at_the_same_model(
    rank: tuple[str, ...], clip: Path, folder: Path, tmp_path: Path
) -> None:
    alone = Command(_words(clip, folder, tmp_path / "one", "--method", "tecoa", *rank), tmp_path / "logs")
    pair = launch(_words(clip, folder, tmp_path / "two", "--method", "tecoa", *rank), tmp_path / "logs", 2)
    for command in (alone, *pair):
        assert command.wait() == 0, command.err
    assert pair[0].err == alone.err == ""
    assert pair[1].out == ""
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=3e-4, rtol=1e-3, msg=name)
    losses = [json.loads((tmp_path / name / "training.json").read_bytes())["losses"] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# --- what comes out


def test_an_encoder_comes_out_as_a_checkpoint_that_everything_opens(folder: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "twin"
    code, said, err = cli(*_words("tiny-clip", folder, out, "--method", "fare", "--features", "tokens"))
    assert (code, err) == (0, "")
    assert "attacked" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["twin"]  # no state is left
    _, info = CLIPModel.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    twin, base = load_any(out), load_any("tiny-clip")
    batch = base.pixels([Image.open(folder / "red/0.png")])
    assert twin.canvas(Image.new("RGB", (60, 60))) == base.canvas(Image.new("RGB", (60, 60)))
    apart = float((twin.features(batch) - base.features(batch)).detach().abs().max())
    assert apart > 1e-3
    model = load_model("tiny-llava", tower=out)
    torch.testing.assert_close(model.features(batch), twin.features(batch))
    log = json.loads((out / "training.json").read_bytes())
    assert log["settings"]["features"] == "tokens"
    assert log["images"]["trained_on"] == 18
    assert len(log["losses"]) == 3
    card = (out / "README.md").read_text()
    for words in (
        "arXiv 2402.12336",
        "eps 4/255",
        "patch tokens",
        "| steps | 3 of 4 images |",
        "| preset, seed | scenes, 0 |",
    ):
        assert words in card


def test_a_language_model_comes_out_as_a_stock_checkpoint(llava: Path, folder: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "robust"
    code, _, err = cli(*_words(llava, folder, out, "--method", "fare", "--scope", "shallow", "--dtype", "float16"))
    assert (code, err) == (0, "")
    hf, info = LlavaForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert hf.dtype == torch.float16
    ours, base = load_file(out / "model.safetensors"), load_file(llava / "model.safetensors")
    moved = changed({k: v.half() for k, v in base.items()}, ours)
    assert moved
    assert all("embeddings." in n or "pre_layrnorm" in n or "layers.0." in n for n in moved)
    model, stock = load_model(out), load_model(llava)
    batch = stock.pixels([Image.open(folder / "red/0.png")])
    assert model.generate(batch, ["what is this"]) is not None
    assert model.text.prompt("what is this", 16) == stock.text.prompt("what is this", 16)


def test_bare_towers_and_siglip_are_trained_too(folder: Path, tmp_path: Path) -> None:
    for kind in ("clip", "siglip"):
        encoder = load_encoder(tiny_checkpoints.save_vision(tmp_path / kind, kind))
        log = finetune(encoder, images_of(folder), FinetuneSettings("fare", RECIPE, features="tokens"))
        assert all(map(math.isfinite, log.losses))
    siglip = load_encoder(tiny_checkpoints.save_siglip(tmp_path / "whole"))
    for rank in (None, 2):
        log = finetune(siglip, images_of(folder, "tecoa"), FinetuneSettings("tecoa", RECIPE, rank=rank))
        assert all(map(math.isfinite, log.losses))
    with one_line("has no projection of its patches"):
        finetune(siglip, images_of(folder, "tga"), FinetuneSettings("tga", RECIPE))
    with one_line("without a projection"):
        finetune(load_encoder(tmp_path / "clip"), images_of(folder), FinetuneSettings("fare", RECIPE))


def test_half_precision_autocast_stays_near(clip: Path, folder: Path) -> None:
    logs = [
        finetune(load_encoder(clip), images_of(folder), FinetuneSettings("fare", RECIPE, bf16=bf16))
        for bf16 in (False, True)
    ]
    assert logs[0].losses != logs[1].losses
    assert logs[0].losses == pytest.approx(logs[1].losses, rel=0.2)


# --- mistakes


def test_a_diverging_loss_stops_with_advice_and_leaves_nothing_to_go_on_from(
    clip: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVED_EVERY", 1)
    monkeypatch.setattr(module, "StateFile", partial(StateFile, every=0))
    settings = FinetuneSettings("fare", RECIPE.changed(lr=100.0, steps=20))
    saved: list[bool] = []

    def announce(title: str, total: int) -> Any:
        return lambda done, what: saved.append((tmp_path / "state").exists())

    with one_line("training diverges: .* lower --lr than 100"):
        finetune(load_encoder(clip), images_of(folder), settings, state=tmp_path / "state", announce=announce)
    assert any(saved)
    assert list(tmp_path.iterdir()) == []


def test_processes_must_share_a_batch_evenly(clip: Path, folder: Path) -> None:
    three = SingleProcess()
    three.size = 3
    with one_line("a batch of 4 does not divide among 3 processes"):
        finetune(load_encoder(clip), images_of(folder), FinetuneSettings("fare", RECIPE), processes=three)


def _empty(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


def _unreadable(root: Path) -> Path:
    (root / "bad").mkdir()
    for i in range(3):
        (root / "bad" / f"{i}.png").write_bytes(b"no image")
    return root / "bad"


MISTAKES: dict[str, tuple[list[str], Any, str]] = {
    "empty image folder": (["--method", "fare"], _empty, "holds no images"),
    "no image can be opened": (["--method", "fare"], _unreadable, "none of the 3 images"),
    "no such folder": (["--method", "fare"], lambda root: root / "none", "is no folder"),
    "too few for a batch": (
        ["--method", "fare", "--batch-size", "40"],
        None,
        "18 images are too few for a batch of 40",
    ),
    "no classes": (["--method", "tecoa"], lambda root: _empty(root).parent, "holds no images"),
    "unknown method": (["--method", "fair"], None, "'fair' is not one of"),
    "unknown scope": (["--method", "fare", "--scope", "deep"], None, "scope 'deep' is neither"),
    "rank of whole weights": (["--method", "fare", "--rank", "999"], None, "--rank must be from 1 to"),
    "rank of no layer": (["--method", "fare", "--scope", "head", "--rank", "2"], None, "finds no linear layer"),
    "unknown preset": (["--method", "fare", "--preset", "publish"], None, "did you mean 'published'"),
    "eps": (["--method", "fare", "--eps", "4"], None, "eps must be in (0, 1]"),
    "rate": (["--method", "fare", "--lr", "-1"], None, "field lr"),
    "features of tecoa": (["--method", "tecoa", "--features", "cls"], None, "--features is FARE's"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_line_with_nothing_written(
    mistake: str, clip: Path, folder: Path, tmp_path: Path, cli: Cli
) -> None:
    words, make, said = MISTAKES[mistake]
    out = tmp_path / "out" / "twin"
    images = folder if make is None else make(tmp_path)
    assert said in cli.refused(*_words(clip, images, out), *words)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_tuned_so_are_refused_in_one_line(
    llava: Path, clip: Path, folder: Path, tmp_path: Path, cli: Cli
) -> None:
    robust = load_encoder(clip)
    robustify(robust, RAdaptConfig())
    with one_line("has R-Adapt in it"):
        finetune(robust, images_of(folder), FinetuneSettings("fare", RECIPE))
    for words, said in (
        (["--method", "tecoa"], "has no texts to classify by"),
        (["--method", "fare", "--features", "cls"], "reads patch tokens, no image embedding"),
    ):
        assert said in cli.refused(*_words(llava, folder, tmp_path / "out"), *words)


def test_a_stopped_command_goes_on_and_an_unfinished_one_is_not_begun_anew(
    clip: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    from lvlm_radapt.utils.errors import Stopped

    out = tmp_path / "twin"
    words = _words(clip, folder, out, "--method", "fare")
    monkeypatch.setattr(module, "SAVED_EVERY", 1)
    stock, calls = module.Work.step, 0

    def stopped(self: Any, *batch: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stopped(15)
        stock(self, *batch)

    monkeypatch.setattr(module.Work, "step", stopped)
    code, _, err = cli(*words)
    assert code == 143
    assert "go on with: lvlm-radapt finetune" in err
    assert err.rstrip().endswith("--resume")
    assert not out.exists()
    assert "twin.training holds training that was stopped: go on with --resume" in cli.refused(*words)
    code, _, err = cli(*words, "--resume")
    assert (code, err) == (0, "")
    assert calls == 4
    assert [p.name for p in tmp_path.iterdir()] == ["twin"]


def test_unreadable_images_are_left_out_and_named(clip: Path, folder: Path, tmp_path: Path, cli: Cli) -> None:
    some = tmp_path / "some"
    shutil.copytree(folder, some)
    (some / "red" / "bad.png").write_bytes(b"no image")
    code, _, err = cli(*_words(clip, some, tmp_path / "twin", "--method", "tecoa"))
    assert code == 0
    assert "1 unreadable image left out: red/bad.png" in err
    assert json.loads((tmp_path / "twin" / "training.json").read_bytes())["images"]["trained_on"] == 18
    # texts were asked about on the way, which leaves no trace in the tokenizer
    tokenizers = [json.loads((folder / "tokenizer.json").read_bytes()) for folder in (clip, tmp_path / "twin")]
    assert tokenizers[0] == tokenizers[1]
