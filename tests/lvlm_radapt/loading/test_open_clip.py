"""open_clip, FARE and TeCoA files as image encoders, against a plain torch retelling of open_clip's tower."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lvlm_radapt import RAdaptConfig, load_encoder, load_model, robustify
from lvlm_radapt.loading.load import load_surrogate
from lvlm_radapt.loading.open_clip import is_open_clip, load_open_clip
from lvlm_radapt.models import CLIPEncoder
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints
from tests.helpers.failures import one_line
from tests.helpers.openclip_vit import VisionTransformer


def noise(side: int, seed: int = 0) -> Image.Image:
    values = np.random.RandomState(seed).randint(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


def whole_clip(visual: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole model's state dict, with what open_clip has on the text side."""
    text = {
        "positional_embedding": torch.zeros(77, 8),
        "text_projection": torch.zeros(8, 24),
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": torch.zeros(5, 8),
        "transformer.resblocks.0.ln_1.weight": torch.zeros(8),
        "ln_final.weight": torch.zeros(8),
        "attn_mask": torch.zeros(77, 77),
    }
    return text | {f"visual.{key}": value for key, value in visual.items()}


def check_equal(encoder: CLIPEncoder, reference: VisionTransformer, side: int = 56) -> None:
    """In double precision, so that only a wrong formula or constant can differ."""
    encoder.hf.double()
    batch = encoder.pixels([noise(side, 0), noise(side, 1)])
    batch = batch.replace(batch.x.double())
    embedding, states = reference.double()(encoder.pixel_values(batch))
    torch.testing.assert_close(encoder.features(batch), states[-2][:, 1:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(encoder.image_features(batch), embedding, rtol=1e-9, atol=1e-9)


WRAPPINGS: dict[str, Any] = {
    "bare": lambda visual: visual,
    "whole": whole_clip,
    "prefixed": lambda visual: {f"visual.{key}": value for key, value in visual.items()},
    "parallel": lambda visual: {f"module.visual.{key}": value for key, value in visual.items()},
    "parallel bare": lambda visual: {f"module.{key}": value for key, value in visual.items()},
    "tecoa": lambda visual: {"vision_encoder_state_dict": visual, "epoch": 2},
    "training": lambda visual: {"epoch": 3, "name": "run", "state_dict": whole_clip(visual)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_pickles_in_every_wrapping(tmp_path: Path, wrapping: str) -> None:
    reference = VisionTransformer()
    path = tmp_path / "fare_eps_4.pt"
    torch.save(WRAPPINGS[wrapping](reference.state_dict()), path)
    encoder = load_encoder(path)
    check_equal(encoder, reference)
    assert (encoder.name, encoder.image_backend) == (str(path), "pil")
    assert not any(p.requires_grad for p in encoder.hf.parameters())


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 128, "heads": 2, "layers": 2, "patch": 16, "side": 64, "embed": 32, "hidden": 96},
        {"width": 64, "heads": 1, "layers": 12, "patch": 7, "side": 42},
        {"width": 192, "heads": 3, "layers": 1, "patch": 14, "side": 14},
    ],
)
@pytest.mark.parametrize("quick", [True, False])
def test_sizes_come_from_the_shapes(tmp_path: Path, sizes: dict[str, int], quick: bool) -> None:
    reference = VisionTransformer(quick=quick, seed=3, **sizes)
    path = tmp_path / "model.safetensors"
    save_file(reference.state_dict(), path)
    encoder = load_encoder(path, activation="quick_gelu" if quick else "gelu")
    check_equal(encoder, reference, side=sizes["side"])
    config = encoder.hf.config
    assert (config.image_size, config.patch_size) == (sizes["side"], sizes["patch"])
    assert (config.num_hidden_layers, config.num_attention_heads) == (sizes["layers"], sizes["heads"])
    assert config.layer_norm_eps == 1e-5
    assert encoder.canvas(noise(100)) == (sizes["side"], sizes["side"])


def test_the_activation_matters_and_must_be_known(tmp_path: Path) -> None:
    reference = VisionTransformer(quick=False)
    path = tmp_path / "model.pt"
    torch.save(reference.state_dict(), path)
    with pytest.raises(UserError, match=r"activation is not among the weights: pass activation=") as error:
        load_encoder(path)
    assert "\n" not in str(error.value)
    batch = load_encoder(path, activation="gelu").pixels([noise(56)])
    right, wrong = (load_encoder(path, activation=a).image_features(batch) for a in ("gelu", "quick_gelu"))
    assert not torch.allclose(right, wrong, atol=1e-3)
    with pytest.raises(UserError, match="activation 'relu' is unknown"):
        load_encoder(path, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="tells the activation, leave it out"):
        load_encoder("tiny-clip", activation="gelu")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("fare_eps_2.pt", True),
        ("FARE4-ViT-L.bin", True),
        ("clip_tecoa.pt", True),
        ("tga-2.pt", True),
        ("ViT-L-14-quickgelu.pt", True),
        ("vit_quick_gelu.pt", True),
        ("software.pt", False),
        ("welfare.pt", False),
        ("model.pt", False),
        ("fare4-clip/model.pt", True),
        ("welfare/model.pt", False),
        ("fare/run/model.pt", False),
    ],
)
def test_names_that_tell_the_activation(tmp_path: Path, name: str, known: bool) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(VisionTransformer(layers=1).state_dict(), path)
    if known:
        assert load_encoder(path).hf.config.hidden_act == "quick_gelu"
    else:
        with pytest.raises(UserError, match="activation"):
            load_encoder(path)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_folder_with_open_clip_s_config(tmp_path: Path, file: str, quick: bool) -> None:
    """The config's word counts more than a name's, and its normalisation and head width are taken."""
    reference = VisionTransformer(quick=quick, heads=4)
    folder = tmp_path / "fare"
    folder.mkdir()
    vision = {"image_size": 56, "layers": 3, "width": 64, "patch_size": 14, "head_width": 16}
    pre = {"size": [56, 56], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
    config = {
        "model_cfg": {"embed_dim": 24, "quick_gelu": quick, "vision_cfg": vision},
        "preprocess_cfg": pre | {"resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = whole_clip(reference.state_dict())
    if file.endswith("bin"):
        torch.save(weights, folder / file)
    else:
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / file)
    for opened in (folder, folder / file):
        encoder = load_encoder(opened)
        check_equal(encoder, reference)
        assert encoder.image_mean == (0.5, 0.4, 0.3)
        assert encoder.image_std == (0.2, 0.3, 0.4)


def test_without_projection_it_has_features_alone(tmp_path: Path) -> None:
    reference = VisionTransformer()
    path = tmp_path / "fare.pt"
    torch.save({key: value for key, value in reference.state_dict().items() if key != "proj"}, path)
    encoder = load_encoder(path, feature_layer=-1)
    assert type(encoder.hf) is transformers.CLIPVisionModel
    batch = encoder.pixels([noise(56)])
    _, states = reference(encoder.pixel_values(batch))
    torch.testing.assert_close(encoder.features(batch), states[-1][:, 1:], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="without a projection"):
        encoder.image_features(batch)
    with pytest.raises(UserError, match="for texts"):
        encoder.text_features(["a pig"])


def test_precision_gradients_and_the_defence(tmp_path: Path) -> None:
    path = tmp_path / "fare.pt"
    torch.save({key: value.half() for key, value in VisionTransformer().state_dict().items()}, path)
    encoder = load_encoder(path, dtype=torch.bfloat16)
    assert {p.dtype for p in encoder.hf.parameters()} == {torch.bfloat16}
    encoder = load_encoder(path)
    batch = encoder.pixels([noise(56)])
    x = batch.x.clone().requires_grad_()
    encoder.features(batch.replace(x)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    before = encoder.features(batch)
    robustify(encoder, RAdaptConfig())
    assert not torch.allclose(encoder.features(batch), before)
    with encoder.undefended():
        assert torch.equal(encoder.features(batch), before)


def test_it_serves_as_a_surrogate(tmp_path: Path) -> None:
    path = tmp_path / "fare.pt"
    torch.save(VisionTransformer().state_dict(), path)
    surrogate = load_surrogate(str(path))
    assert isinstance(surrogate, CLIPEncoder)
    assert surrogate.name == str(path)


def test_what_is_open_clip(tmp_path: Path) -> None:
    assert is_open_clip(tmp_path / "x.pt")
    assert is_open_clip("somewhere/x.safetensors")
    assert not is_open_clip(tmp_path)
    assert not is_open_clip("tiny-clip")
    assert not is_open_clip("owner/none")
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert is_open_clip(tmp_path)
    # repositories that hold both layouts are read in Hugging Face's
    tiny_checkpoints.save_clip(tmp_path)
    assert not is_open_clip(tmp_path)
    assert load_encoder(tmp_path).hf.config.model_type == "clip"


def _state(**changes: Any) -> dict[str, Any]:
    state: dict[str, Any] = dict(VisionTransformer().state_dict())
    return {key: value for key, value in (state | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([torch.zeros(3)], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"state_dict": {}}, "holds no state dict"),
        ({"a": torch.zeros(3)}, r"no vision transformer .*no visual\.conv1\.weight"),
        ({"visual.trunk.norm.weight": torch.zeros(3)}, r"no vision transformer"),
        ({"visual.trunk.stages.0.blocks.0.gamma": torch.zeros(3)}, "is a ConvNeXt: it has no attention"),
        (_state(**{"ln_pre.weight": None, "ln_pre.bias": None}), "as Delta-CLIP's and CLIPA's have none"),
        (_state(epoch=3), "no vision transformer"),
        (_state(positional_embedding=torch.zeros(16, 64)), "16 positions are no CLS token and a square"),
        (_state(positional_embedding=torch.zeros(1, 64)), "1 positions are no CLS token"),
        (_state(positional_embedding=None), "no plain ViT"),
        (_state(class_embedding=None), r"misses weights .*class_embedding"),
        (_state(**{"transformer.resblocks.1.mlp.c_fc.bias": None}), r"misses weights .*layers\.1\.mlp\.fc1\.bias"),
        (_state(**{"transformer.resblocks.1.ls_1.gamma": torch.zeros(64)}), r"unknown weights .*ls_1\.gamma"),
        (_state(**{"conv1.bias": torch.zeros(64)}), r"unknown weights conv1\.bias"),
        (_state(**{"transformer.resblocks.0.attn.in_proj_bias": torch.zeros(191)}), r"unknown weights .*in_proj_bias"),
        (
            _state(**{"transformer.resblocks.0.attn.in_proj_bias": torch.zeros(189)}),
            r"q_proj\.bias has shape \(63,\)|k_proj",
        ),
        (_state(class_embedding=torch.zeros(63)), r"class_embedding has shape \(63,\)"),
        (_state(proj=torch.zeros(63, 24)), r"visual_projection\.weight has shape \(24, 63\)"),
        (_state(**{"conv1.weight": torch.zeros(64, 3)}), "no plain ViT"),
        (_state(**{"conv1.weight": torch.zeros(64, 3, 14, 7)}), "has shape"),
        (_state(**{"conv1.weight": torch.zeros(60, 3, 14, 14)}), "number of heads of a tower of width 60"),
        (_state(**{"conv1.weight": torch.zeros(1280, 3, 1, 1)}), "number of heads of a tower of width 1280"),
    ],
)
def test_files_that_are_no_plain_tower(tmp_path: Path, content: Any, match: str) -> None:
    path = tmp_path / "fare.pt"
    torch.save(content, path)
    with one_line(match):
        load_open_clip(path)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_damaged_files(tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"fare{suffix}"
        with pytest.raises(UserError, match="no such file"):
            load_encoder(path)
        if suffix == ".pt":
            torch.save(_state(), path)
        else:
            save_file(_state(), path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(UserError, match="is cut short or damaged"):
            load_encoder(path)
    torch.save({"conv1.weight": _Evil()}, tmp_path / "fare.pt")
    with one_line("holds more than tensors, which is never opened"):  # and nothing printed
        load_encoder(tmp_path / "fare.pt")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ("{", "is no JSON file"),
        ("[1]", "is damaged: it is no JSON object"),
        ('{"model_cfg": 3}', "is damaged: field model_cfg: "),
        ('{"model_cfg": {"vision_cfg": 3}}', r"is damaged: field model_cfg\.vision_cfg: "),
        ('{"preprocess_cfg": {"mean": [0.5, 0.5]}}', r"is damaged: field preprocess_cfg\.mean"),
        ('{"preprocess_cfg": {"std": [0.5, 0, 0.5]}}', r"is damaged: field preprocess_cfg\.std"),
        ('{"model_cfg": {"quick_gelu": "yes"}}', r"is damaged: field model_cfg\.quick_gelu"),
        ('{"model_cfg": {}}', "activation is not among the weights"),
        ('{"model_cfg": {"quick_gelu": true, "vision_cfg": {"timm_model_name": "vit"}}}', "has timm_model_name"),
        ('{"model_cfg": {"quick_gelu": true, "vision_cfg": {"pool_type": "avg"}}}', "has pool_type"),
        ('{"model_cfg": {"quick_gelu": true, "vision_cfg": {"head_width": 24}}}', "number of heads"),
        ('{"model_cfg": {"quick_gelu": true, "vision_cfg": {"head_width": "64"}}}', "number of heads"),
        (
            '{"model_cfg": {"quick_gelu": true}, "preprocess_cfg": {"resize_mode": "squash"}}',
            r"preprocess_cfg\.resize_mode: Input should be 'shortest'",
        ),
        (
            '{"model_cfg": {"quick_gelu": true}, "preprocess_cfg": {"interpolation": "bilinear"}}',
            r"preprocess_cfg\.interpolation",
        ),
    ],
)
def test_configs_that_say_something_else(tmp_path: Path, config: str, match: str) -> None:
    torch.save(_state(), tmp_path / "model.pt")
    (tmp_path / "open_clip_config.json").write_text(config)
    with one_line(match):
        load_encoder(tmp_path / "model.pt")


def test_a_repository_in_the_local_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "models--owner--fare4-clip"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("a" * 40)
    folder = root / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text("{}")
    reference = VisionTransformer()
    torch.save(whole_clip(reference.state_dict()), folder / "open_clip_pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = load_encoder("owner/fare4-clip")
    assert encoder.hf.config.hidden_act == "quick_gelu"
    check_equal(encoder, reference)


def test_a_folder_without_weights_and_a_file_as_a_whole_model(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no open_clip_model\.safetensors or .* beside its open_clip_config"):
        load_encoder(tmp_path)
    torch.save(_state(), tmp_path / "fare.pt")
    with pytest.raises(UserError):
        load_model(tmp_path / "fare.pt")


def test_delta_clip_is_refused_by_name_in_the_layout_of_its_release(tmp_path: Path) -> None:
    """A hub repository of open_clip's: the config of CLIPA, whose towers have no norm before the blocks, average their
    tokens and have another activation."""
    vision = {"image_size": 56, "layers": 2, "width": 64, "head_width": 16, "patch_size": 14, "no_ln_pre": True}
    vision |= {"pool_type": "avg", "act_kwargs": {"approximate": "tanh"}}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"quick_gelu": False, "vision_cfg": vision}})
    )
    torch.save(
        whole_clip(_state(**{"ln_pre.weight": None, "ln_pre.bias": None})), tmp_path / "open_clip_pytorch_model.bin"
    )
    with one_line(r"no norm before its blocks \(ln_pre\), as Delta-CLIP's"):
        load_encoder(tmp_path)
