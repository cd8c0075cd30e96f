"""The model-guided anchor: another encoder's answer to white, in this encoder's tokens; and what is no guide."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lvlm_radapt import RAdaptConfig, robustify
from lvlm_radapt.defences.radapt.anchor import white_anchor
from lvlm_radapt.defences.radapt.hooks import inject, injected_anchor
from lvlm_radapt.loading.export import load_export
from lvlm_radapt.loading.guides import guide_origin, guided_anchor, load_guide
from lvlm_radapt.loading.load import load_any, load_model
from lvlm_radapt.models.base import LVLM
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.saving.export import export_model
from lvlm_radapt.saving.fold import fold_model
from lvlm_radapt.towers import find_tower
from tests.helpers import tiny_checkpoints
from tests.helpers.cli import Cli
from tests.helpers.failures import one_line
from tests.helpers.openclip_vit import VisionTransformer

GUIDED = RAdaptConfig(anchor="guided", anchor_from="a twin", cutoff=None)


def _picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _first_attention(tower: Any, mean: list[float], std: list[float], side: int) -> Tensor:
    """A CLIP tower's first attention on white, [T, D], from its modules one by one."""
    white = (1 - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        states = tower.pre_layrnorm(tower.embeddings(white.view(1, 3, 1, 1).expand(1, 3, side, side)))
        block = tower.encoder.layers[0]
        return block.self_attn(block.layer_norm1(states), attention_mask=None)[0][0]


def _normalised_otherwise(folder: Path, mean: list[float], std: list[float]) -> Path:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": mean, "image_std": std}))
    return folder


def test_the_anchor_is_the_guides_answer_to_white_in_its_own_normalisation(tmp_path: Path) -> None:
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    folder = _normalised_otherwise(tiny_checkpoints.save_clip(tmp_path / "guide", seed=7), mean, std)
    model = load_model(tiny_checkpoints.save_llava(tmp_path / "llava"))
    guide = load_guide(folder, model)
    expected = _first_attention(guide.module, mean, std, 56)
    anchor = guided_anchor(guide, model)
    assert (anchor.grid, anchor.prefix_tokens) == ((4, 4), 1)
    torch.testing.assert_close(anchor.values, expected, atol=1e-6, rtol=1e-5)
    own = white_anchor(model.hf, model.image_mean, model.image_std).values
    assert (own - anchor.values).abs().max() > 0.1  # another encoder


def test_with_alpha_1_the_first_attention_says_what_the_guide_says(tmp_path: Path) -> None:
    model = load_model(tiny_checkpoints.save_llava(tmp_path / "llava"))
    anchor = guided_anchor(load_guide(tiny_checkpoints.save_clip(tmp_path / "guide", seed=7), model), model)
    robustify(model, GUIDED, anchor)
    seen: list[Tensor] = []
    find_tower(model.hf).first_attention.register_forward_hook(lambda m, a, out: seen.append(out[0]))
    with torch.no_grad():
        model.features(model.pixels([_picture(56, 56)]))
    assert torch.equal(seen[0][0], anchor.values)


def test_an_anchor_of_a_smaller_guide_is_laid_onto_the_larger_grid(tmp_path: Path) -> None:
    guide = tiny_checkpoints.save_clip(tmp_path / "guide", seed=7)
    model = load_model(tiny_checkpoints.save_llava(tmp_path / "llava", image_size=84))
    small = white_anchor(load_guide(guide, model))
    anchor = guided_anchor(load_guide(guide, model), model)
    assert anchor.grid == (6, 6)
    assert torch.equal(anchor.values[0], small.values[0])  # the CLS token has no place
    planes = small.values[1:].T.reshape(-1, 4, 4).numpy()
    pillow = [np.asarray(Image.fromarray(p).resize((6, 6), Image.Resampling.BICUBIC)) for p in planes]
    torch.testing.assert_close(
        anchor.values[1:].T.reshape(-1, 6, 6), torch.from_numpy(np.stack(pillow)), atol=1e-5, rtol=0
    )


def test_an_open_clip_file_is_a_guide(tmp_path: Path) -> None:
    reference = VisionTransformer(width=32, heads=4, seed=3)
    torch.save(reference.state_dict(), tmp_path / "fare.pt")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"quick_gelu": True, "vision_cfg": {"head_width": 8}}})
    )
    model = load_any(tiny_checkpoints.save_clip(tmp_path / "clip"))
    anchor = guided_anchor(load_guide(tmp_path / "fare.pt", model), model)
    block = reference.transformer.resblocks[0]
    white = (1 - torch.tensor(model.image_mean)) / torch.tensor(model.image_std)
    with torch.no_grad():
        states = block.ln_1(reference(white.view(1, 3, 1, 1).expand(1, 3, 56, 56))[1][0])
        expected = block.attn(states, states, states, need_weights=False)[0][0]
    torch.testing.assert_close(anchor.values, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("version", ["2", "2.5"])
def test_qwens_guide_is_a_whole_model_and_gives_one_vector(tmp_path: Path, version: str) -> None:
    model = load_model(tiny_checkpoints.save_qwen(tmp_path / "qwen", version=version))
    guide = tiny_checkpoints.save_qwen(tmp_path / "guide", version=version, seed=5)
    anchor = guided_anchor(load_guide(guide, model), model)
    assert anchor.grid is None
    torch.testing.assert_close(anchor.values, white_anchor(load_model(guide).hf).values)
    own = white_anchor(model.hf).values
    assert (own - anchor.values).abs().max() > 0.05


def test_qwen3s_guided_rows_lie_on_the_image_in_its_token_order(tmp_path: Path) -> None:
    model = load_model(tiny_checkpoints.save_qwen3(tmp_path / "qwen"))
    anchor = guided_anchor(load_guide(tiny_checkpoints.save_qwen3(tmp_path / "guide", seed=5), model), model)
    assert anchor.grid is not None
    high, wide = anchor.grid
    robustify(model, GUIDED, anchor)
    seen: list[Tensor] = []
    find_tower(model.hf).first_attention.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        model.features(model.pixels([_picture(16 * wide, 16 * high)]))
    raster = anchor.values.view(high, wide, -1)
    merged = [
        raster[y + i, x + j] for y in range(0, high, 2) for x in range(0, wide, 2) for i in (0, 1) for j in (0, 1)
    ]
    assert torch.equal(seen[0], torch.stack(merged))


def test_a_guide_is_opened_in_full_precision_whatever_the_models(tmp_path: Path) -> None:
    folder, guide = (
        tiny_checkpoints.save_clip(tmp_path / "clip"),
        tiny_checkpoints.save_clip(tmp_path / "guide", seed=7),
    )
    whole, half = load_any(folder), load_any(folder, dtype=torch.float16)
    anchors = [guided_anchor(load_guide(guide, model), model).values for model in (whole, half)]
    assert torch.equal(*anchors)


def test_the_adapter_keeps_the_anchor_and_tells_the_guide(tmp_path: Path) -> None:
    model = load_any(tiny_checkpoints.save_clip(tmp_path / "clip"))
    name = tiny_checkpoints.save_clip(tmp_path / "twin", seed=7)
    guide = load_guide(name, model)
    anchor, origin = guided_anchor(guide, model), guide_origin(name, guide)
    assert origin.startswith("twin (")  # the folder's name, not where it lies
    save_adapter(robustify(model, RAdaptConfig(anchor="guided", anchor_from=origin), anchor), tmp_path / "adapter")
    again = load_any(tmp_path / "adapter")
    found = injected_anchor(again.hf)
    assert found is not None
    assert torch.equal(found.values, anchor.values)
    assert again.radapt == model.radapt
    other = load_guide(tiny_checkpoints.save_clip(tmp_path / "other" / "twin", seed=8), model)
    assert guide_origin(tmp_path / "other" / "twin", other) != origin


def test_an_export_carries_a_guided_anchor_and_only_one_vector_folds(tmp_path: Path) -> None:
    for name, save in (("llava", tiny_checkpoints.save_llava), ("qwen", tiny_checkpoints.save_qwen)):
        model = load_model(save(tmp_path / name))
        twin = tiny_checkpoints.save_clip if name == "llava" else tiny_checkpoints.save_qwen
        anchor = guided_anchor(load_guide(twin(tmp_path / f"{name} twin", seed=7), model), model)
        robustify(model, GUIDED, anchor)
        export_model(model, tmp_path / f"{name} whole")
        again = load_export(tmp_path / f"{name} whole")
        assert again.radapt == GUIDED
        assert _said(again) == _said(model)
        if name == "llava":
            with one_line("a row for each of 17 tokens.*use --export"):
                fold_model(model, tmp_path / "folded")
        else:
            fold_model(model, tmp_path / "folded")
            torch.testing.assert_close(
                torch.tensor(_said(load_model(tmp_path / "folded"))), torch.tensor(_said(model)), atol=1e-4, rtol=1e-4
            )


def _said(model: LVLM) -> list[float]:
    with torch.no_grad():
        return model.loss(model.pixels([_picture(84, 56)]), ["what is this"], ["a pig"]).tolist()


def test_settings_that_ask_for_an_anchor_get_one_or_end_in_one_line(tmp_path: Path) -> None:
    model = load_any(tiny_checkpoints.save_clip(tmp_path / "clip"))
    with one_line("the guided anchor is not the encoder's own"):
        robustify(model, GUIDED)
    with one_line("the learned anchor is not the encoder's own"):
        inject(model.hf, RAdaptConfig(anchor="learned"))
    robustify(model, RAdaptConfig(anchor="learned", alpha=0))  # which needs none


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and what is no guide for it."""
    root = tmp_path_factory.mktemp("shelf")
    tiny_checkpoints.save_clip(root / "clip")
    tiny_checkpoints.save_clip(root / "twin", seed=7)
    tiny_checkpoints.save_siglip(root / "siglip")
    tiny_checkpoints.save_qwen(root / "qwen2", version="2")
    tiny_checkpoints.save_qwen(root / "qwen2.5")
    torch.save(VisionTransformer(width=64).state_dict(), root / "fare.pt")
    save_adapter(robustify(load_any(root / "clip")), root / "adapter")
    (root / "empty").mkdir()
    return root


NO_GUIDES = {
    "another width": ("clip", "fare.pt", "the width of its tower is 64, of the model's 32"),
    "another family": ("clip", "siglip", "the kind of its tower is siglip, of the model's clip"),
    "another generation": ("qwen2", "qwen2.5", "Qwen2_5_VisionTransformerPretrainedModel, of the model's Qwen2Vision"),
    "an encoder for Qwen": ("qwen2", "clip", "the kind of its tower is clip"),
    "something robustified": ("clip", "adapter", "has R-Adapt in it and is no guide"),
    "an empty folder": ("clip", "empty", "config.json"),
    "nothing": ("clip", "nowhere", "nowhere"),
}


@pytest.mark.parametrize("name", NO_GUIDES)
def test_what_is_no_guide_is_told_in_one_line(name: str, shelf: Path, cli: Cli, tmp_path: Path) -> None:
    model, guide, expected = NO_GUIDES[name]
    words = ["robustify", shelf / model, "--anchor", "guided", "--guide", shelf / guide, "--out", tmp_path / "out"]
    assert expected in cli.refused(*words)
    assert not (tmp_path / "out").exists()


def test_other_heads_are_no_guide(shelf: Path) -> None:
    model, guide = load_any(shelf / "clip"), load_any(shelf / "twin")
    config = guide.hf.config
    config.vision_config.num_attention_heads = 8
    guide.hf.save_pretrained(shelf / "heads")
    for file in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (shelf / "heads" / file).write_bytes((shelf / "twin" / file).read_bytes())
    with one_line("the number of heads of its tower is 8, of the model's 4"):
        load_guide(shelf / "heads", model)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--anchor", "guided"], "--anchor guided and --guide ENCODER go together"),
        (["--guide", "{twin}"], "--anchor guided and --guide ENCODER go together"),
        (["--anchor", "learned", "--guide", "{twin}"], "--anchor guided and --guide ENCODER go together"),
        (["--anchor", "guided", "--guide", "{twin}", "--alpha", "0"], "--alpha 0 leaves the anchor out"),
        (["--anchor", "taught"], "taught"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], expected: str, shelf: Path, cli: Cli, tmp_path: Path) -> None:
    given = [word.format(twin=shelf / "twin") for word in flags]
    assert expected in cli.refused("robustify", shelf / "clip", *given, "--out", tmp_path / "out")


def test_the_command_names_the_guide(shelf: Path, cli: Cli, tmp_path: Path) -> None:
    words = ["robustify", shelf / "clip", "--anchor", "guided", "--guide", shelf / "twin", "--out", tmp_path / "out"]
    out = cli.done(*words)
    assert "the guided anchor from twin (" in out
    settings = json.loads((tmp_path / "out" / "radapt.json").read_text())["config"]
    assert settings["anchor"] == "guided"
    assert settings["anchor_from"].startswith("twin (")
