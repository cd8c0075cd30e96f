"""The learned anchor: what gradients reach, what one step does, how it stops, goes on, and is kept."""

import dataclasses
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lvlm_radapt import RAdaptConfig, robustify
from lvlm_radapt.defences.radapt.anchor import white_anchor
from lvlm_radapt.defences.radapt.hooks import inject, injected_anchor, injected_mix, is_injected
from lvlm_radapt.loading.load import load_any
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.training import learned_anchor
from lvlm_radapt.training.images import image_files
from lvlm_radapt.training.learned_anchor import LearnedAnchor, LearnSettings, learn_anchor, read_features
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints
from tests.helpers.cli import Cli
from tests.helpers.failures import one_line
from tests.helpers.slow import slow

SHORT = LearnSettings(steps=5, batch=4, attack_steps=2)
LEARNED = RAdaptConfig(anchor="learned")
SAVERS: dict[str, Callable[[Path], Path]] = {
    "clip": tiny_checkpoints.save_clip,
    "siglip": tiny_checkpoints.save_siglip,
    "tower": lambda folder: tiny_checkpoints.save_vision(folder, "clip"),
    "llava": tiny_checkpoints.save_llava,
    "llava-next": tiny_checkpoints.save_llava_next,
    "qwen2.5": tiny_checkpoints.save_qwen,
    "qwen3": tiny_checkpoints.save_qwen3,
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shelf")
    for name, save in SAVERS.items():
        save(root / name)
    rng = np.random.default_rng(0)
    for i in range(14):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        (root / "images").mkdir(exist_ok=True)
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(root / "images" / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def _few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_anchor, "PROBES", 2)
    monkeypatch.setattr(learned_anchor, "PROBE_STEPS", 2)


def _learn(shelf: Path, name: str = "clip", settings: LearnSettings = SHORT, **more: Any) -> LearnedAnchor:
    config = more.pop("config", LEARNED)
    return learn_anchor(load_any(shelf / name), image_files(shelf / "images"), config, settings, **more)


def _same(one: LearnedAnchor, other: LearnedAnchor) -> bool:
    return torch.equal(one.anchor.values, other.anchor.values) and (
        one.alpha,
        one.history,
        one.probes,
        one.undefended,
    ) == (other.alpha, other.history, other.probes, other.undefended)


@pytest.mark.parametrize("name", SAVERS)
def test_only_the_anchor_changes_and_its_shape_is_the_white_ones(shelf: Path, name: str) -> None:
    model = load_any(shelf / name)
    batch = model.pixels([Image.new("RGB", (64, 64), "teal")])
    before = {key: value.clone() for key, value in model.hf.state_dict().items()}
    features = read_features(model, batch)
    start = white_anchor(model.hf, model.image_mean, model.image_std)
    found = learn_anchor(model, image_files(shelf / "images"), LEARNED, dataclasses.replace(SHORT, steps=2))
    after = model.hf.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None and not p.requires_grad for p in model.hf.parameters())
    assert not is_injected(model.hf)
    assert torch.equal(read_features(model, batch), features)
    assert (found.anchor.grid, found.anchor.prefix_tokens) == (start.grid, start.prefix_tokens)
    assert found.anchor.values.shape == start.values.shape
    assert (found.anchor.values != start.values).any(0).all()
    assert not found.anchor.values.requires_grad
    assert found.alpha == 1.0


@pytest.mark.parametrize("mix", ["interpolate", "add"])
@pytest.mark.parametrize("name", ["clip", "llava", "qwen2.5", "qwen3"])
def test_gradients_of_anchor_and_alpha_against_finite_differences(shelf: Path, name: str, mix: Any) -> None:
    model = load_any(shelf / name)
    model.hf.double()
    start = white_anchor(model.hf, model.image_mean, model.image_std)
    # Qwen3's rows of one grid are interpolated to the image's: 96 x 64 px are 6 x 4 patches
    batch = model.pixels([Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 64, 3), dtype=np.uint8))])
    with torch.no_grad():
        clean = read_features(model, batch)
    inject(model.hf, RAdaptConfig(cutoff=30, alpha=0.7, mix=mix), start)
    part: Any = injected_mix(model.hf)
    anchor, alpha = start.values.double(), torch.tensor(0.7, dtype=torch.float64)

    def distance(values: Tensor, weight: Tensor) -> Tensor:
        part.anchor, part.alpha = values, weight
        return (read_features(model, batch) - clean).square().sum()

    slopes = torch.autograd.grad(distance(anchor.requires_grad_(), alpha.requires_grad_()), [anchor, alpha])
    anchor, alpha = anchor.detach(), alpha.detach()
    rng = np.random.default_rng(2)
    # Qwen's rotations and norms are computed in float32 whatever the weights are
    step, near = (2e-3, {"rtol": 5e-3, "atol": 1e-2}) if "qwen" in name else (1e-5, {"rtol": 1e-5, "atol": 1e-7})
    with torch.no_grad():
        for _ in range(4):
            way = torch.from_numpy(rng.standard_normal(tuple(anchor.shape)))
            rise = (distance(anchor + step * way, alpha) - distance(anchor - step * way, alpha)) / (2 * step)
            torch.testing.assert_close((slopes[0] * way).sum(), rise, **near)
        rise = (distance(anchor, alpha + step) - distance(anchor, alpha - step)) / (2 * step)
        torch.testing.assert_close(slopes[1], rise, **near)
    assert all(p.grad is None for p in model.hf.parameters())


def _embedding(tower: Any, projection: Tensor, pixels: Tensor, anchor: Tensor | None, alpha: Tensor | float) -> Tensor:
    """CLIP's image embedding from the tower's modules one by one, the anchor mixed in by hand."""
    states = tower.pre_layrnorm(tower.embeddings(pixels))
    for number, block in enumerate(tower.encoder.layers):
        said = block.self_attn(block.layer_norm1(states), attention_mask=None)[0]
        if number == 0 and anchor is not None:
            said = (1 - alpha) * said + alpha * anchor
        states = states + said
        states = states + block.mlp(block.layer_norm2(states))
    return tower.post_layernorm(states[:, 0]) @ projection.T


@pytest.mark.parametrize("learn_alpha", [False, True])
def test_one_step_by_hand(shelf: Path, monkeypatch: pytest.MonkeyPatch, learn_alpha: bool) -> None:
    model = load_any(shelf / "clip")
    batches: list[Tensor] = []
    asked: list[dict[str, Any]] = []

    def shifted(loss_fn: Any, x: Tensor, **how: Any) -> Any:
        batches.append(x)
        asked.append(how)
        return SimpleNamespace(x_adv=(x + 0.03).clamp(0, 1), failed=[None] * len(x))

    monkeypatch.setattr(learned_anchor, "pgd", shifted)
    settings = LearnSettings(steps=1, batch=4, attack_steps=2, eps=8 / 255, rate=0.1, learn_alpha=learn_alpha)
    config = RAdaptConfig(cutoff=None, alpha=0.6, anchor="learned")
    found = learn_anchor(model, image_files(shelf / "images"), config, settings)
    # the undefended probe, the first one, the step, the last probe; 2 images are held back
    assert [len(x) for x in batches] == [2, 2, 4, 2]
    assert asked[2] == {"eps": 8 / 255, "step_size": 10 / 255, "steps": 2, "seed": asked[2]["seed"], "workers": 1}
    assert len(set(asked[2]["seed"])) == 4

    start = white_anchor(model.hf, model.image_mean, model.image_std).values.requires_grad_()
    alpha = torch.tensor(0.6, requires_grad=True)

    def embedding(x: Tensor, *how: Any) -> Tensor:
        return _embedding(model.hf.vision_model, model.hf.visual_projection.weight, model.normalise(x), *how)

    held = embedding(batches[0], None, 0).detach()
    unit = (held - held.mean(0)).square().sum(1).mean()
    x = batches[2]
    apart = embedding((x + 0.03).clamp(0, 1), start, alpha) - embedding(x, None, 0).detach()
    loss = apart.square().sum(1).mean() / unit
    assert math.isclose(found.history[0], float(loss.detach()), rel_tol=1e-4)
    slopes = torch.autograd.grad(loss, [start, alpha])
    size = start.detach().square().mean().sqrt()
    # Adam's first step is its rate along the sign of the gradient, whatever that one's size
    clear = slopes[0].abs() > 1e-5
    moved = found.anchor.values - start.detach()
    assert clear.float().mean() > 0.9
    torch.testing.assert_close(moved[clear], (-0.1 * size * slopes[0].sign())[clear], rtol=2e-3, atol=1e-6)
    expected = 0.6 - 0.1 * float(slopes[1].sign()) if learn_alpha else 0.6
    assert math.isclose(found.alpha, expected, rel_tol=1e-4) if learn_alpha else found.alpha == expected
    before = (embedding(batches[1], start, 0.6) - held).square().sum(1).mean() / unit
    attacked = (embedding((batches[1] + 0.03).clamp(0, 1), None, 0) - held).square().sum(1).mean() / unit
    assert math.isclose(found.probes[0].clean, float(before.detach()), rel_tol=1e-4)
    assert math.isclose(found.undefended, float(attacked.detach()), rel_tol=1e-4)


def test_attacks_go_through_the_defence_as_it_is_at_that_step(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_any(shelf / "clip")
    attack, at = learned_anchor.pgd, []

    def watched(loss_fn: Any, x: Tensor, **how: Any) -> Any:
        mix = injected_mix(model.hf)
        assert mix is not None
        at.append(mix.anchor.detach().clone())
        own = loss_fn(x, list(range(len(x))))
        with model.undefended():
            assert float(loss_fn(x, list(range(len(x)))).abs().max()) < 1e-9  # from the original's clean features
        assert at[1:] == [] or float(own.detach().min()) > 1e-3
        found = attack(loss_fn, x, **how)
        assert float((found.x_adv - x).abs().max()) <= how["eps"] + 1e-6
        return found

    monkeypatch.setattr(learned_anchor, "pgd", watched)
    learn_anchor(model, image_files(shelf / "images"), LEARNED, dataclasses.replace(SHORT, steps=3))
    assert len({tuple(one.flatten().tolist()) for one in at}) == 4  # the start's and one a step


def test_learning_brings_attacked_images_nearer_to_the_original(shelf: Path) -> None:
    found = _learn(shelf, settings=LearnSettings(steps=40, batch=8, attack_steps=3, eps=8 / 255, rate=0.1))
    first, last = found.probes[0], found.probes[-1]
    assert last.robust < 0.8 * first.robust
    assert last.clean < first.clean
    assert np.mean(found.history[-5:]) < 0.8 * np.mean(found.history[:3])
    assert [probe.step for probe in found.probes] == [0, 20, 40]
    assert len(found.history) == 40


def test_the_seed_makes_the_result(shelf: Path) -> None:
    first = _learn(shelf)
    assert _same(first, _learn(shelf))
    assert not _same(first, _learn(shelf, settings=dataclasses.replace(SHORT, seed=1)))


@pytest.mark.parametrize(("name", "at"), [slow("clip", 1), ("clip", 3), slow("clip", 5), ("qwen2.5", 2)])
def test_learning_that_was_stopped_goes_on_to_the_same_bits(shelf: Path, tmp_path: Path, name: str, at: int) -> None:
    settings = dataclasses.replace(SHORT, learn_alpha=True)
    whole = _learn(shelf, name, settings)
    state = tmp_path / "state"
    made: list[int] = []

    def stop(title: str, total: int) -> Callable[[int, str], None]:
        def advance(done: int, what: str) -> None:
            made.append(done)
            if sum(made) == at:
                raise KeyboardInterrupt

        return advance

    with pytest.raises(KeyboardInterrupt):
        _learn(shelf, name, settings, state=state, save_every=0.0, announce=stop)
    resumed: list[int] = []
    again = _learn(
        shelf,
        name,
        settings,
        state=state,
        resume=True,
        announce=lambda title, total: lambda done, what: resumed.append(done),
    )
    assert _same(whole, again)
    assert resumed[0] == at  # nothing was done twice
    assert sum(resumed) == settings.steps
    assert [path.name for path in tmp_path.iterdir()] == ["state"]  # for the caller to remove


def test_a_state_of_something_else_is_refused_by_name(shelf: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    _learn(shelf, state=state, save_every=0.0)
    with one_line("holds training that was stopped: go on with --resume, or remove it"):
        _learn(shelf, state=state)
    with one_line(r"was begun with another eps \(0.0156.*, now 0.0313"):
        _learn(shelf, state=state, resume=True, settings=dataclasses.replace(SHORT, eps=8 / 255))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with one_line(rf"another number of CPU threads .OMP_NUM_THREADS. .{threads}, now {threads + 1}."):
            _learn(shelf, state=state, resume=True)
    finally:
        torch.set_num_threads(threads)
    with one_line("was begun with another config cutoff"):
        _learn(shelf, state=state, resume=True, config=RAdaptConfig(anchor="learned", cutoff=20))
    with one_line("was begun with another tower"):
        _learn(shelf, "tower", state=state, resume=True)
    state.write_bytes(state.read_bytes()[:-100])
    with one_line("is damaged: remove it and begin anew"):
        _learn(shelf, state=state, resume=True)
    state.write_bytes(b"")
    with one_line("is damaged"):
        _learn(shelf, state=state, resume=True)


def test_a_state_that_cannot_be_written_is_one_line(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with one_line("cannot write .*state"):
        _learn(shelf, state=tmp_path / "file" / "state", save_every=0.0)


@pytest.mark.parametrize(
    ("changed", "config", "expected"),
    [
        ({"batch": 13}, LEARNED, "12 images are too few for a batch of 13"),
        ({}, RAdaptConfig(alpha=0), "alpha is 0"),
        ({"rate": 1e30}, LEARNED, "diverges"),
    ],
)
def test_what_cannot_be_learned_ends_in_one_line(
    shelf: Path, changed: Any, config: RAdaptConfig, expected: str
) -> None:
    model = load_any(shelf / "clip")
    with one_line(expected):
        learn_anchor(model, image_files(shelf / "images"), config, dataclasses.replace(SHORT, **changed))
    assert not is_injected(model.hf)


@pytest.mark.parametrize("name", ["eps", "rate", "steps", "batch", "attack_steps"])
def test_settings_out_of_range_are_named(name: str) -> None:
    for value in (0, -1) if name not in ("eps", "rate") else (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match=name.replace("_", " ")):
            LearnSettings(**{name: value})  # type: ignore[arg-type]


def test_a_loss_that_grows_stops_with_advice_and_leaves_no_state(shelf: Path, tmp_path: Path) -> None:
    settings = LearnSettings(steps=40, batch=4, attack_steps=1, eps=1 / 255, rate=50.0)
    with one_line(r"diverges, with a loss of \S+ after \S+ in the beginning.*lower --learn-rate \(now 50\)"):
        _learn(shelf, settings=settings, config=RAdaptConfig(alpha=0.1), state=tmp_path / "state", save_every=0.0)
    assert not (tmp_path / "state").exists()


def test_float16_and_defended_models_are_refused(shelf: Path) -> None:
    files = image_files(shelf / "images")
    with one_line("float32 or bfloat16"):
        learn_anchor(load_any(shelf / "clip", dtype=torch.float16), files, LEARNED, SHORT)
    with one_line("has R-Adapt in it already"):
        learn_anchor(robustify(load_any(shelf / "clip")), files, LEARNED, SHORT)


def test_bfloat16_learns_in_float32(shelf: Path) -> None:
    found = learn_anchor(load_any(shelf / "clip", dtype=torch.bfloat16), image_files(shelf / "images"), LEARNED, SHORT)
    assert found.anchor.values.dtype == torch.float32
    assert (found.anchor.values.bfloat16().float() != found.anchor.values).float().mean() > 0.5


@pytest.mark.slow
def test_memory_for_a_few_images_at_a_time_gives_the_same_anchor(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(SHORT, steps=2)
    whole = _learn(shelf, settings=settings)
    read = read_features

    def small(model: PixelModel, batch: Any) -> Tensor:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(model, batch)

    monkeypatch.setattr(learned_anchor, "read_features", small)
    pieces = _learn(shelf, settings=settings)
    torch.testing.assert_close(pieces.anchor.values, whole.anchor.values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("flags", [[], ["--export"], ["--fold", "--no-filter"]])
def test_the_command_keeps_the_anchor_and_where_it_comes_from(
    flags: list[str], shelf: Path, cli: Cli, tmp_path: Path
) -> None:
    name = "qwen2.5" if flags else "clip"
    out = tmp_path / "out"
    learning = ["--learn-steps", 2, "--learn-batch", 4, "--learn-eps", "8/255", "--learn-alpha", "--seed", 3]
    words = ["robustify", shelf / name, "--anchor", "learned", "--images", shelf / "images", "--learn-images", 12]
    said = cli.done(*words, *learning, *flags, "--out", out)
    assert "held-back images" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # and no state
    if "--fold" in flags:
        assert "the learned anchor folded in" in said
        assert load_any(out).radapt is None
        return
    model = load_any(out)
    config = model.radapt
    assert config is not None
    assert config.anchor == "learned"
    assert config.alpha != 1
    files = image_files(shelf / "images", limit=12, seed=3)
    expected = learn_anchor(
        load_any(shelf / name), files, RAdaptConfig(anchor="learned"),
        LearnSettings(steps=2, batch=4, eps=8 / 255, learn_alpha=True, seed=3),
    )  # fmt: skip
    assert config.anchor_from == f"12 images ({expected.digest[:8]}), eps 8/255, 2 steps, seed 3"
    assert config.anchor_from in config.describe()
    found = injected_anchor(model.hf)
    assert found is not None
    assert torch.equal(found.values, expected.anchor.values)
    assert config.alpha == expected.alpha
    if not flags:
        notes = json.loads((out / "learned.json").read_text())
        assert notes["images_sha256"] == expected.digest
        assert notes["loss"] == list(expected.history)
        assert notes["settings"]["seed"] == 3


MISTAKES = {
    "no images given": (["--anchor", "learned"], "add --images DIR"),
    "images for another anchor": (["--images", "{images}"], "--images is for --anchor learned"),
    "alpha for another anchor": (["--learn-alpha"], "--learn-alpha is for --anchor learned"),
    "resuming another anchor": (["--resume"], "--resume is for --anchor learned"),
    "no such folder": (["--anchor", "learned", "--images", "{tmp}/nowhere"], "is no folder"),
    "an empty folder": (["--anchor", "learned", "--images", "{empty}"], "holds no images"),
    "unreadable images": (["--anchor", "learned", "--images", "{bad}"], "none of the 1 images"),
    "too few images": (["--anchor", "learned", "--images", "{images}"], "12 images are too few for a batch of 32"),
    "eps in levels": (["--anchor", "learned", "--images", "{images}", "--learn-eps", "4"], "write 4/255"),
    "no steps": (["--anchor", "learned", "--images", "{images}", "--learn-steps", "0"], "steps of the learned anchor"),
    "no rate": (["--anchor", "learned", "--images", "{images}", "--learn-rate", "nan"], "rate of the learned anchor"),
    "alpha 0": (["--anchor", "learned", "--images", "{images}", "--alpha", "0"], "--alpha 0 leaves the anchor out"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, shelf: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    places = {"images": shelf / "images", "empty": tmp_path / "empty", "bad": tmp_path / "bad", "tmp": tmp_path}
    flags, expected = MISTAKES[name]
    given = [word.format(**places) for word in flags]
    assert expected in cli.refused("robustify", shelf / "clip", *given, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stopped_command_says_how_to_go_on_and_does(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path
) -> None:
    words = ["robustify", shelf / "clip", "--anchor", "learned", "--images", shelf / "images", "--device", "cpu"]
    words += ["--learn-steps", 3, "--learn-batch", 4]
    attack, calls = learned_anchor.pgd, []

    def killed(*given: Any, **how: Any) -> Any:
        calls.append(how)
        if len(calls) == 4:  # two probes, a step: within the second step
            os.kill(os.getpid(), signal.SIGTERM)
        return attack(*given, **how)

    code, _, err = cli(*words, "--out", tmp_path / "whole")
    assert code == 0, err
    with monkeypatch.context() as patch:
        patch.setattr(learned_anchor, "pgd", killed)
        code, _, err = cli(*words, "--out", tmp_path / "out")
    state = tmp_path / "out.learning"
    assert code == 143
    assert f"what is done is saved in {state}; go on with: lvlm-radapt robustify" in err
    assert err.strip().endswith("--resume")
    assert not (tmp_path / "out").exists()
    assert torch.load(state, weights_only=True)["state"]["step"] == 1
    assert "go on with --resume" in cli.refused(*words, "--out", tmp_path / "out")
    cli.done(*words, "--out", tmp_path / "out", "--resume")
    for name in ("radapt.json", "adapter.safetensors", "learned.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not state.exists()
