"""The analysis of a tower and its robust twin: each number against its definition, and the command end to end."""

from __future__ import annotations

import csv
import itertools
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from eval_tasks.api import Evaluation, run_evaluation
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.run.records import RunFolder
from lvlm_radapt.analysis import measure
from lvlm_radapt.analysis.attention import attention_maps, evenness, moved
from lvlm_radapt.analysis.cka import cka_matrix, linear_cka
from lvlm_radapt.analysis.passes import layer_rows
from lvlm_radapt.analysis.spectrum import kernel_spectrum, mean_magnitude, radial_profile
from lvlm_radapt.experiments.mixing import Mixed
from lvlm_radapt.experiments.replacement import replacement
from lvlm_radapt.loading.load import load_any
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.saving.write_replaced import write_replaced
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.parts import patch_embedding, tower_blocks, tower_parts
from tests.helpers import tiny_checkpoints, tiny_random
from tests.helpers.cli import Cli
from tests.helpers.evaluations import evaluation, with_options
from tests.helpers.failures import one_line
from tests.helpers.families import FAMILIES, FEW
from tests.helpers.slow import slow


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends of the replacement and one step between them."""
    all_steps = Mixed.steps
    monkeypatch.setattr(
        Mixed, "steps", lambda self: [s for s in all_steps(self) if s.name in ("original", "block1", "full")]
    )


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (56, 56)) -> list[Image.Image]:
    draw = np.random.default_rng(seed)
    return [Image.fromarray(draw.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two CLIPs with different vision sides and projections, and the same texts."""
    root = tmp_path_factory.mktemp("twins")
    mine = tiny_checkpoints.save_clip(root / "mine", seed=0, layers=1)
    twin = tiny_checkpoints.save_clip(root / "twin", seed=1, layers=1)
    texts = transformers.CLIPModel.from_pretrained(mine)
    model = transformers.CLIPModel.from_pretrained(twin)
    model.text_model, model.text_projection, model.logit_scale = (
        texts.text_model,
        texts.text_projection,
        texts.logit_scale,
    )
    model.save_pretrained(twin)
    return mine, twin


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "classes"
    for number, name in enumerate(("red_circle", "green_square", "blue_circle")):
        (root / name).mkdir(parents=True)
        for i, image in enumerate(pictures(2, seed=number)):
            image.save(root / name / f"{i}.png")
    return root


# ---------------------------------------------------------------- CKA


def hsic_by_quadruples(x: torch.Tensor, y: torch.Tensor) -> float:
    """The unbiased estimator as a U-statistic: the mean of k_ij (l_ij + l_qr - 2 l_iq) over distinct i, j, q, r."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(len(x)), 4)]
    return float(torch.stack(terms).mean())


def test_cka_is_its_definition_on_small_matrices() -> None:
    draw = torch.Generator().manual_seed(3)
    x, y = (torch.randn(7, width, generator=draw, dtype=torch.float64) + 2 for width in (3, 5))
    y[:, :3] += x
    wanted = hsic_by_quadruples(x, y) / (hsic_by_quadruples(x, x) * hsic_by_quadruples(y, y)) ** 0.5
    assert linear_cka(x, y) == pytest.approx(wanted, abs=1e-10)
    matrix = cka_matrix([x, y], [y, x, x])
    assert matrix.shape == (2, 3)
    assert matrix[0, 0] == pytest.approx(wanted, abs=1e-10)
    assert matrix[1, 0] == pytest.approx(1.0)


def test_cka_sees_through_rotation_scale_and_shift_and_finds_nothing_in_noise() -> None:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(400, 8, generator=draw, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=draw, dtype=torch.float64))
    assert linear_cka(x, 1e4 * (x @ turn) - 7) == pytest.approx(1.0, abs=1e-9)
    # plain CKA of independent layers as wide as these would be near 1; the unbiased one is near 0
    wide = [torch.randn(60, 500, generator=draw) for _ in range(2)]
    assert abs(linear_cka(*wide)) < 0.05
    plain = (wide[0] - wide[0].mean(0)).T @ (wide[1] - wide[1].mean(0))
    own = [torch.linalg.norm((w - w.mean(0)).T @ (w - w.mean(0))) for w in wide]
    assert float(plain.norm() ** 2 / (own[0] * own[1])) > 0.8


def test_cka_of_a_layer_that_says_nothing_is_no_number_and_too_few_rows_are_refused() -> None:
    assert np.isnan(linear_cka(torch.ones(9, 4), torch.randn(9, 4)))
    with one_line("CKA needs layers of equally many rows, 4 or more, got 3"):
        linear_cka(torch.randn(3, 4), torch.randn(3, 4))
    with one_line("equally many rows"):
        linear_cka(torch.randn(8, 4), torch.randn(9, 4))


def test_layers_are_the_hidden_states_transformers_tells(twins: tuple[Path, Path]) -> None:
    model = load_any(twins[0])
    batch = model.pixels(pictures(3))
    rows = layer_rows(model, [batch], most=10_000)
    stock = transformers.CLIPVisionModel.from_pretrained(twins[0]).eval()
    with torch.no_grad():
        states = stock(model.pixel_values(batch), output_hidden_states=True).hidden_states
    assert len(rows) == len(states) == 2
    for mine, theirs in zip(rows, states, strict=True):
        assert torch.allclose(mine, theirs.flatten(0, 1), atol=1e-6)
    few = layer_rows(model, [batch, batch], most=8, seed=1)
    assert [len(states) for states in few] == [8] * 2
    for whole, some in zip(rows, few, strict=True):
        assert all(bool((whole - one).abs().max(-1).values.lt(1e-5).any()) for one in some)


# ---------------------------------------------------------------- attention


def attention_call(model: PixelModel, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]:
    seen: list[Any] = []
    handle = find_tower(model.hf).first_attention.register_forward_hook(
        lambda _m, args, kwargs, out: seen.append((args, kwargs, out[0] if isinstance(out, tuple) else out)),
        with_kwargs=True,
    )
    with torch.no_grad():
        model.run_tower(batch)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", FEW)
def test_the_weights_make_the_attentions_own_output(name: str, tmp_path: Path) -> None:
    model = load_any(FAMILIES[name].save(tmp_path / "m"))
    batch = model.pixels(pictures(2, size=(112, 84)))
    args, kwargs, out = attention_call(model, batch)
    tower = find_tower(model.hf)
    attention: Any = tower.first_attention
    hidden = args[0] if args else kwargs.pop("hidden_states")
    weights = tower.attention_weights(hidden, **kwargs)
    assert all(torch.allclose(one.sum(-1), torch.ones(()), atol=1e-5) for one in weights)
    with torch.no_grad():
        if hasattr(attention, "qkv"):
            value = attention.qkv(hidden).reshape(len(hidden), 3, attention.num_heads, -1)[:, 2]
            bounds = kwargs["cu_seqlens"].tolist()
            parts = [
                torch.einsum("hqk,khd->qhd", one, value[a:b]).flatten(1)
                for one, (a, b) in zip(weights, itertools.pairwise(bounds), strict=True)
            ]
            made = attention.proj(torch.cat(parts))
        else:
            names = ("out_proj", "o_proj", "projection_layer")
            project = next(getattr(attention, name) for name in names if hasattr(attention, name))
            images, (heads, _, length) = len(weights), weights[0].shape
            value = attention.v_proj(hidden).reshape(images, -1, heads, hidden.shape[-1] // heads)[:, :length]
            value = attention.v_norm(value) if hasattr(attention, "v_norm") else value
            made = project(torch.einsum("bhqk,bkhd->bqhd", torch.stack(weights), value).flatten(2))
            out = out.reshape(images, -1, out.shape[-1])[:, :length]  # without padding
    assert torch.allclose(made, out, atol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen2.5", "llava-next"])
def test_maps_lie_in_raster_order_one_an_image(name: str, tmp_path: Path) -> None:
    model = load_any(FAMILIES[name].save(tmp_path / "m"))
    batch = model.pixels(pictures(2, size=(112, 84)))
    maps = attention_maps(model, batch)
    assert len(maps) == 2
    args, kwargs, _ = attention_call(model, batch)
    tower = find_tower(model.hf)
    weights = tower.attention_weights(args[0] if args else kwargs.pop("hidden_states"), **kwargs)
    if name != "qwen2.5":
        views = len(weights) // 2
        for one, received in zip(maps, weights[::views], strict=True):
            flat = [float(received[:, :, 1 + p].mean()) * received.shape[-1] for p in range(one.numel())]
            assert torch.allclose(one.flatten(), torch.tensor(flat), atol=1e-5)
        return
    high, wide = maps[0].shape
    assert high != wide
    from lvlm_radapt.towers.qwen import token_order

    order = token_order([(1, high, wide)] * 2, tower.merge_size, tower.window).tolist()  # type: ignore[attr-defined]
    rows = [float(one[:, :, k].mean()) * one.shape[-1] for one in weights for k in range(one.shape[-1])]
    for row, patch in enumerate(order):
        image, place = divmod(patch, high * wide)
        assert float(maps[image].flatten()[place]) == pytest.approx(rows[row], abs=1e-5)


def test_measures_of_maps_on_cases_known_by_hand() -> None:
    even, one = torch.ones(4, 4), torch.zeros(4, 4)
    one[1, 2] = 3
    half = torch.zeros(4, 4)
    half[:2] = 1
    assert evenness(even) == pytest.approx(1)
    assert evenness(one) == pytest.approx(0)
    assert evenness(half) == pytest.approx(np.log(8) / np.log(16))
    assert moved(even, 5 * even) == pytest.approx(0, abs=1e-7)
    assert moved(even, half) == pytest.approx(0.5)
    assert moved(one, one.flip(0)) == pytest.approx(1)


# ---------------------------------------------------------------- spectra


def test_a_spectrum_shows_a_wave_where_its_frequency_is() -> None:
    y, x = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    wave = torch.cos(2 * torch.pi * (3 * x - 2 * y) / 14)
    spectrum = mean_magnitude(torch.stack([wave, wave])[None])
    peaks = {(int(a), int(b)) for a, b in (spectrum > 1).nonzero()}
    assert peaks == {(7 - 2, 7 + 3), (7 + 2, 7 - 3)}
    assert float(spectrum[5, 10]) == pytest.approx(7.0)  # half of 14 * 14 in either peak, over 14
    assert float(mean_magnitude(torch.ones(1, 3, 14, 14))[7, 7]) == pytest.approx(14.0)


@pytest.mark.parametrize("make", [tiny_random.clip_vision, tiny_random.siglip_vision, tiny_random.qwen2_5_vl])
def test_the_kernels_spectrum_is_the_mean_over_kernels_and_colours(make: Any) -> None:
    tower = find_tower(make())
    weight = patch_embedding(tower).weight.detach().numpy().astype(np.float64)
    if weight.ndim == 5:
        weight = weight[:, :, 0] + weight[:, :, 1]
    side = weight.shape[-1]
    made = [np.fft.fftshift(np.abs(np.fft.fft2(kernel))) / side for of_one in weight for kernel in of_one]
    assert np.allclose(kernel_spectrum(tower).numpy(), np.mean(made, axis=0))


def test_a_profile_is_the_mean_over_rings() -> None:
    spectrum = torch.zeros(9, 9, dtype=torch.float64)
    spectrum[4, 4] = 5
    spectrum[4, 5] = 8  # of the ring at distance 1: 4 neighbours at 1 and 4 at sqrt(2), which rounds to 1
    frequencies, means = radial_profile(spectrum)
    assert frequencies == pytest.approx([i / 9 for i in range(5)])
    assert means == pytest.approx([5, 1, 0, 0, 0])


# ---------------------------------------------------------------- replacement


def test_a_mix_has_both_pure_models_at_its_ends_and_gives_the_model_back(twins: tuple[Path, Path]) -> None:
    model, guide = load_any(twins[0]), load_any(twins[1])
    mixed = Mixed(model, guide)
    assert [step.name for step in mixed.steps()] == ["original", "embedding", "attention1", "block1", "full"]
    batch = model.pixels(pictures(3))
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    pure = load_any(twins[0]).image_features(batch)  # type: ignore[attr-defined]
    seen = []
    for step in mixed.steps():
        seen.append(mixed.take(step.parts).image_features(batch))  # type: ignore[attr-defined]
        assert (model.tower_name is None) == (step.name == "original")
    assert torch.equal(seen[0], pure)
    assert torch.equal(seen[-1], guide.image_features(batch))  # type: ignore[attr-defined]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(seen, 2))
    mixed.take(())
    assert model.label == str(twins[0])
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())


def test_a_twin_that_does_not_fit_is_told_before_any_work(twins: tuple[Path, Path], tmp_path: Path) -> None:
    deep = load_any(tiny_checkpoints.save_clip(tmp_path / "deep", layers=2))
    other = load_any(twins[0])
    with one_line("mine is no robust twin of .*deep: the guide has no encoder.layers.1"):
        Mixed(deep, other)
    assert Mixed(other, deep).notes == []  # what is deeper gives the blocks that are wanted
    larger = load_any(tiny_checkpoints.save_clip(tmp_path / "large", image_size=84, layers=1))
    assert Mixed(other, larger).notes == [
        "the guide's embedding is made for 84 px: its positions are interpolated to 56 px"
    ]


def settings(classes: Path) -> Evaluation:
    return evaluation(
        "imagefolder", classes, "apgd-ce", preset="native", eps="8/255", steps=2, samples=4, seed=1, batch_size=4
    )


@pytest.mark.usefixtures("few_steps")
def test_the_curve_ends_in_the_runs_of_the_two_pure_models(
    twins: tuple[Path, Path], classes: Path, tmp_path: Path
) -> None:
    asked = settings(classes)
    mixed = Mixed(load_any(twins[0]), load_any(twins[1]))
    told: list[int] = []
    score = partial(replacement, command="", announce=lambda *_: lambda done, _: told.append(done))
    curve = score(mixed, asked, tmp_path / "runs")
    assert sum(told) == 2 * 4 * len(mixed.steps())
    assert (curve["metric"], curve["n"], len(curve["rows"])) == ("accuracy", 4, 3)
    for name, path, row, folder in zip(
        ("mine", "twin"),
        twins,
        (curve["rows"][0], curve["rows"][-1]),
        ("00-original-adaptive", "02-full-adaptive"),
        strict=True,
    ):
        pure = run_evaluation(str(path), asked, tmp_path / name, announce=lambda _t, _n: lambda _d, _r: None)
        assert row["clean"]["value"] == pure.metrics["clean"]["accuracy"]
        assert row["adaptive"]["value"] == pure.metrics["adversarial"]["accuracy"]
        for record in pure.samples:
            ours = RunFolder(tmp_path / "runs" / folder).load_image(record.id)
            assert torch.equal(ours, RunFolder(pure.path).load_image(record.id))
    # transfer: the original's images, whatever is scored on them
    transferred = [tmp_path / "runs" / f"0{i}-{s.name}-transfer" for i, s in enumerate(mixed.steps())]
    for record in pure.samples:
        images = [RunFolder(folder).load_image(record.id) for folder in transferred]
        assert all(torch.equal(images[0], image) for image in images)
    told_of = json.loads((transferred[1] / "run.json").read_text())
    assert told_of["attack"]["surrogate"] == str(twins[0])
    assert told_of["model"]["name"] == f"{twins[0]} with tower mixed: embedding + block1 of {twins[1]}"
    # another time nothing is done again, and other settings are refused
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/samples.jsonl")}
    again = score(mixed, asked, tmp_path / "runs")
    assert again == curve
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/samples.jsonl")}
    with one_line("seed"):
        score(mixed, with_options(asked, seed=2), tmp_path / "runs")


# ---------------------------------------------------------------- the command


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("shifted", [False, slow(True)])
def test_the_command_leaves_numbers_figures_and_one_page(
    shifted: bool, cli: Cli, twins: tuple[Path, Path], classes: Path, tmp_path: Path
) -> None:
    words = [
        "analyze", twins[0], "--guide", twins[1], "--images", classes, "--out", tmp_path / "out",
        "--task", "imagefolder", "--data", classes, *(("--data-shifted", classes) if shifted else ()), "--samples", "3",
        "--steps", "1", "--eps", "8/255", "--device", "cpu", "--image-count", "5",
    ]  # fmt: skip
    out = cli.done(*words)
    assert "index.html" in out
    folder = tmp_path / "out"
    document = json.loads((folder / "analysis.json").read_text())
    assert document["images"]["n"] == 5
    assert document["cka"]["layers"] == ["embedding", "block 1"]
    assert np.array(document["cka"]["matrix"]).shape == (2, 2)
    shift = np.array(document["kernels"]["robust"]) - np.array(document["kernels"]["standard"])
    assert np.allclose(document["kernels"]["shift"], shift)
    assert [*document["replacement"]["curves"]] == ["runs", "runs-shifted"][: 1 + shifted]
    rows = [*csv.DictReader((folder / "replacement.csv").open())]
    assert [row["step"] for row in rows[:3]] == ["original", "block1", "full"]
    for curve, some in zip(
        document["replacement"]["curves"].values(), (rows[:3], rows[3:])[: 1 + shifted], strict=True
    ):
        for told, row in zip(curve["rows"], some, strict=True):
            assert float(row["adaptive"]) == told["adaptive"]["value"]
            assert float(row["clean_low"]) <= float(row["clean"]) <= float(row["clean_high"])
            assert (row["n"], row["metric"], row["steps"]) == ("3", "accuracy", "1")
    assert len([*csv.DictReader((folder / "attention.csv").open())]) == 5
    page = (folder / "index.html").read_text()
    assert not re.search(r'(?:src|href|srcset)="(?!data:)', page)
    for name in ("cka", "kernels", "perturbations", "attention", "replacement"):
        for kind in ("", "-dark"):
            with Image.open(folder / "figures" / f"{name}{kind}.png") as image:
                assert image.width > 700
    assert ("Shifted data" in page) == shifted
    for words_of_it in ("(transfer)", "(adaptive)", "apgd-ce", "Linf 8/255", "n = 3", "cycles"):
        assert words_of_it in page
    (folder / "runs" / "00-original-adaptive" / "report.html").unlink()
    if shifted:
        cli.done(*words)  # gone on with, not begun again
    cli.refused(*words[:-2], "--seed", "9")


@pytest.mark.parametrize("name", ["llava", "qwen2.5", "qwen3", "onevision"])
def test_every_family_is_compared_with_its_twin(name: str, tmp_path: Path) -> None:
    model = load_any(FAMILIES[name].save(tmp_path / "a"))
    guide = load_any(FAMILIES[name].save(tmp_path / "b"))
    draw = torch.Generator().manual_seed(7)  # not the seed of the weights: noise like them only scales them
    with torch.no_grad():
        for part in ("embedding", "block2"):
            for weight in tower_parts(find_tower(guide.hf))[part]:
                value = find_tower(guide.hf).module.get_parameter(weight)
                value += 0.3 * torch.randn(value.shape, generator=draw)
    files = []
    for i, image in enumerate(pictures(3, size=(84, 112))):
        files.append(tmp_path / f"{i}.png")
        image.save(files[-1])
    plan = make_attack("embedding", eps="8/255", steps=1)
    assert plan is not None
    mixed = Mixed(model, guide)
    images = measure.open_images(mixed, files, 2)
    found = measure.cka(mixed, images, seed=0, advance=lambda _d, _r: None)
    blocks = len(tower_blocks(mixed.tower))
    assert np.array(found["matrix"]).shape == (blocks + 1, blocks + 1)
    assert found["matrix"][0][0] < 0.999
    attacks = measure.attacked(mixed, images, plan, seed=0, batch_size=2, advance=lambda _d, _r: None)
    waves = measure.perturbations(images, attacks)
    assert waves["n"] == 3
    assert max(float((a.x - b.x).abs().max()) for a, b in zip(attacks.robust, images.batches, strict=True)) < 8.01 / 255
    numbers, shown = measure.attention(mixed, images, attacks)
    assert [row["image"] for row in numbers["rows"]] == ["0.png", "1.png", "2.png"]
    assert 0 < numbers["mean"]["standard_evenness"] <= 1
    assert [*shown[0]["maps"]] == ["standard, clean", "standard, attacked", "robust, clean", "robust, attacked"]
    assert not np.allclose(shown[0]["maps"]["standard, clean"], shown[0]["maps"]["robust, clean"])
    assert np.any(measure.kernels(mixed)["shift"])


def test_a_model_against_itself_shows_no_difference(twins: tuple[Path, Path], classes: Path) -> None:
    mixed = Mixed(load_any(twins[0]), load_any(twins[0]))
    images = measure.open_images(mixed, sorted(classes.rglob("*.png")), 4)
    found = measure.cka(mixed, images, seed=0, advance=lambda _d, _r: None)
    assert np.allclose(np.diag(found["matrix"]), 1)
    assert not np.any(measure.kernels(mixed)["shift"])


def test_mistakes_end_in_one_line(
    cli: Cli, twins: tuple[Path, Path], classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, twin = map(str, twins)
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    siglip = str(tiny_checkpoints.save_siglip(tmp_path / "siglip"))
    base = ["analyze", mine, "--device", "cpu", "--guide", twin, "--images", str(classes), "--out", str(tmp_path / "o")]
    capsys.readouterr()  # what saving the encoders printed
    cases: list[tuple[list[str], str]] = [
        ([*base, "--images", str(empty)], "holds no images"),
        ([*base, "--images", str(broken)], "none of the 1 images"),
        ([*base, "--guide", siglip], "is no robust twin"),
        ([*base, "--out", str(full)], "holds other files"),
        ([*base, "--task", "imagefolder"], "--task and --data go together"),
        ([*base, "--data-shifted", str(classes)], "are for scores"),
        ([*base, "--task", "imagefolder", "--data", str(classes), "--attack", "noise"], "attacks no model"),
        ([*base, "--task", "imagefolder", "--data", str(empty)], "is empty"),
        ([*base, "--eps", "0"], "eps"),
        ([*base, "--guide", "nowhere"], "unknown"),
    ]
    for words, match in cases:
        assert match in cli.refused(*words)
    assert not (tmp_path / "o").exists()


# ---------------------------------------------------------------- robustify --replace


@pytest.mark.parametrize("kind", ["clip", "llava", "qwen2"])
def test_replaced_parts_are_written_as_plain_stock_weights(kind: str, tmp_path: Path) -> None:
    save = tiny_checkpoints.save_clip if kind == "clip" else FAMILIES[kind].save
    mine = save(tmp_path / "mine")
    twin = tmp_path / "twin"
    if kind == "qwen2":
        tiny_checkpoints.save_qwen(twin, version="2", seed=4)
    else:
        tiny_checkpoints.save_clip(twin, seed=4)
    model = load_any(mine)
    write_replaced(model, twin, ["embedding", "attention1"], tmp_path / "out")
    stock = {"clip": "CLIPModel", "llava": "LlavaForConditionalGeneration", "qwen2": "Qwen2VLForConditionalGeneration"}
    opened = getattr(transformers, stock[kind]).from_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] in ("clip", "llava", "qwen2_vl")
    tower, guide, own = (find_tower(one) for one in (opened, load_any(twin).hf, load_any(mine).hf))
    taken = {name for part in ("embedding", "attention1") for name in tower_parts(own)[part]}
    for name, value in tower.module.named_parameters():
        source = guide if name in taken else own
        assert torch.equal(value, source.module.get_parameter(name)), name
    again = load_any(tmp_path / "out")
    batch = again.pixels(pictures(2))
    assert again.radapt is None
    assert torch.equal(again.features(batch), model.features(batch))
    if hasattr(again, "generate"):
        assert again.generate(batch, ["what is this?"] * 2, max_new_tokens=3) == model.generate(
            batch, ["what is this?"] * 2, max_new_tokens=3
        )


def test_replacing_by_command_and_its_mistakes(cli: Cli, twins: tuple[Path, Path], tmp_path: Path) -> None:
    mine, twin = map(str, twins)
    base = ["robustify", mine, "--device", "cpu", "--guide", twin, "--replace", "embedding, block1"]
    out = cli.done(*base, "--out", tmp_path / "a")
    assert "with embedding, block1 of" in out
    assert "no filter and no anchor" in out
    told = json.loads((tmp_path / "a" / "replaced_parts.json").read_text())
    assert told == {"model": mine, "guide": twin, "parts": ["embedding", "block1"]}
    cli.done("robustify", tmp_path / "a", "--device", "cpu", "--out", tmp_path / "b")
    cases = [
        ([*base, "--cutoff", "30", "--export"], "leave --cutoff and --export out"),
        ([*base, "--anchor", "guided"], "leave --anchor out"),
        ([*base, "--no-filter"], "leave --no-filter out"),
        (["robustify", mine, "--replace", "embedding"], "--replace needs --guide"),
        ([*base[:-1], "embeding"], "part 'embeding' is unknown"),
        ([*base[:-1], " , "], "no part is named"),
        (["robustify", str(tmp_path / "b"), "--guide", twin, "--replace", "embedding"], "is robustified"),
        ([*base, "--guide", str(tmp_path / "b")], "has R-Adapt in it"),
        (["robustify", "tiny-qwen", "--guide", twin, "--replace", "embedding"], "is no guide for tiny-qwen"),
    ]
    for words, match in cases:
        assert match in cli.refused(*words, "--out", tmp_path / "c")
    assert not (tmp_path / "c").exists()
