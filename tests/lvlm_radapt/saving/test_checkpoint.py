"""Adapter folders: a robustified model comes back bit for bit, and nothing else passes for it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from lvlm_radapt import RAdaptConfig, load_model, robustify
from lvlm_radapt.defences.radapt.hooks import injected_anchor, injected_config, injected_white
from lvlm_radapt.loading.adapter import load_adapter
from lvlm_radapt.loading.adapter_files import is_adapter
from lvlm_radapt.models import LVLM
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.towers.fingerprint import tower_fingerprints
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints

PROMPTS = ["What is this?", "how many"]
TARGETS = ["a pig", "two large blue squares"]
SAVERS: dict[str, Callable[..., Path]] = {
    "llava": tiny_checkpoints.save_llava,
    "qwen2.5": tiny_checkpoints.save_qwen,
    "qwen3": tiny_checkpoints.save_qwen3,
}


def _images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (84, 56, 3), dtype=np.uint8)) for _ in PROMPTS]


def _answers(model: LVLM) -> tuple[torch.Tensor, list[str]]:
    batch = model.pixels(_images())
    with torch.no_grad():
        return model.loss(batch, PROMPTS, TARGETS), model.generate(batch, PROMPTS, max_new_tokens=8)


@pytest.fixture(scope="module", params=sorted(SAVERS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVERS[request.param](tmp_path_factory.mktemp("base"))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    """(base folder, adapter folder) of a LLaVA, to be damaged."""
    folder = tiny_checkpoints.save_llava(tmp_path / "base")
    save_adapter(robustify(load_model(folder)), tmp_path / "adapter")
    return folder, tmp_path / "adapter"


def _edit(adapter: Path, **changes: Any) -> None:
    path = adapter / "radapt.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "config",
    [RAdaptConfig(), RAdaptConfig(cutoff=21.5, boundary="periodic", alpha=0.3, mix="add"), RAdaptConfig(alpha=0)],
    ids=["default", "all-set", "no-anchor"],
)
def test_round_trip_is_bit_equal(base: Path, tmp_path: Path, config: RAdaptConfig) -> None:
    model = robustify(load_model(base), config)
    save_adapter(model, tmp_path / "deep" / "adapter")
    back = load_model(tmp_path / "deep" / "adapter")
    assert type(back) is type(model)
    assert injected_config(back.hf) == back.radapt == config
    loss, text = _answers(model)
    again, again_text = _answers(back)
    assert torch.equal(loss, again)
    assert text == again_text
    ours, theirs = injected_anchor(model.hf), injected_anchor(back.hf)
    if config.alpha == 0:
        assert theirs is None
    else:
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours.values, theirs.values)
        assert (ours.grid, ours.prefix_tokens) == (theirs.grid, theirs.prefix_tokens)
    # the defence is not idle, or equal answers would say nothing
    with back.undefended():
        assert not torch.equal(_answers(back)[0], loss)


def test_a_folder_of_two_small_files(base: Path, tmp_path: Path) -> None:
    save_adapter(robustify(load_model(base)), tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == ["adapter.safetensors", "radapt.json"]
    assert sum(p.stat().st_size for p in (tmp_path / "adapter").iterdir()) < 20_000
    assert is_adapter(tmp_path / "adapter")
    assert not is_adapter(base)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_written_files_say_what_is_in_them(saved: tuple[Path, Path]) -> None:
    base, adapter = saved
    settings = json.loads((adapter / "radapt.json").read_text())
    assert settings["format"] == "lvlm-radapt adapter"
    assert settings["version"] == 1
    assert settings["config"] == RAdaptConfig().to_dict()
    assert settings["base"]["name"] == str(base.resolve())
    assert settings["geometry"] == "stock"
    assert settings["anchor"] == {"grid": [4, 4], "prefix_tokens": 1}
    tensors = load_file(adapter / "adapter.safetensors")
    anchor = injected_anchor(robustify(load_model(base)).hf)
    assert anchor is not None
    assert torch.equal(tensors["anchor"], anchor.values)


def test_an_anchor_of_every_grid_is_kept_as_its_white_pixel(tmp_path: Path) -> None:
    base = tiny_checkpoints.save_qwen3(tmp_path / "base")
    processor = json.loads((base / "preprocessor_config.json").read_text())
    odd = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.7, 0.3, 0.9]}
    (base / "preprocessor_config.json").write_text(json.dumps(processor | odd))
    model = robustify(load_model(base))
    save_adapter(model, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "radapt.json").read_text())
    assert settings["anchor"] is None
    assert settings["white"] == pytest.approx([0.9 / 0.7, 0.8 / 0.3, 0.7 / 0.9])
    assert load_file(tmp_path / "adapter" / "adapter.safetensors") == {}
    back = load_model(tmp_path / "adapter")
    assert injected_white(back.hf) == injected_white(model.hf)
    for size in [(64, 64), (200, 70), (84, 150)]:
        batch = model.pixels([Image.new("RGB", size, (10, 200, 90))])
        assert torch.equal(model.features(batch), back.features(batch))
    save_adapter(back, tmp_path / "again")
    for name in ("radapt.json", "adapter.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()
    half = load_model(tmp_path / "adapter", dtype=torch.bfloat16)
    assert injected_white(half.hf) == injected_white(model.hf)
    for changes, message in [
        ({"white": [1.0, 1.0]}, r"field white\.2"),
        ({"white": None}, "alpha is 1 and there is no anchor"),
        ({"anchor": {"grid": None, "prefix_tokens": 0}}, "adapter.safetensors is damaged: it holds nothing"),
    ]:
        _edit(tmp_path / "adapter", **{**settings, **changes})
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / "adapter")


def test_the_anchor_is_read_from_the_file(saved: tuple[Path, Path]) -> None:
    base, adapter = saved
    tensors = {"anchor": load_file(adapter / "adapter.safetensors")["anchor"] + 1}
    save_file(tensors, adapter / "adapter.safetensors")
    _edit(adapter, tensors_sha256=hashlib.sha256((adapter / "adapter.safetensors").read_bytes()).hexdigest())
    assert not torch.equal(_answers(load_model(adapter))[0], _answers(robustify(load_model(base)))[0])


def test_geometry_is_kept_unless_asked_otherwise(tmp_path: Path) -> None:
    base = tiny_checkpoints.save_llava(tmp_path / "base")
    save_adapter(robustify(load_model(base, geometry="pad")), tmp_path / "adapter")
    assert load_model(tmp_path / "adapter").geometry == "pad"
    assert load_model(tmp_path / "adapter", geometry="stock").geometry == "stock"
    assert load_model(base).geometry == "stock"


def test_a_loaded_adapter_can_be_saved_again(saved: tuple[Path, Path], tmp_path: Path) -> None:
    _, adapter = saved
    save_adapter(load_model(adapter), tmp_path / "again")
    for name in ("radapt.json", "adapter.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (adapter / name).read_bytes()


def test_the_base_is_found_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    tiny_checkpoints.save_llava(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    save_adapter(robustify(load_model("base")), "adapter")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_model("../adapter").radapt == RAdaptConfig()


@pytest.mark.parametrize(
    ("saved_in", "opened_in"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
    ],
)
def test_precisions(tmp_path: Path, saved_in: torch.dtype, opened_in: torch.dtype) -> None:
    base = tiny_checkpoints.save_llava(tmp_path / "base")
    save_adapter(robustify(load_model(base, dtype=saved_in)), tmp_path / "adapter")
    back = load_model(tmp_path / "adapter", dtype=opened_in)
    assert back.dtype == opened_in
    assert back.radapt == RAdaptConfig()


def test_precisions_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    base = tiny_checkpoints.save_llava(tmp_path / "base")
    save_adapter(robustify(load_model(base, dtype=torch.bfloat16)), tmp_path / "adapter")
    with pytest.raises(UserError, match="saved from a model in bfloat16: open it in that dtype"):
        load_model(tmp_path / "adapter", dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_tower_is_refused(saved: tuple[Path, Path], dtype: torch.dtype) -> None:
    base, adapter = saved
    weights = load_file(base / "model.safetensors")
    key = next(k for k in weights if k.endswith("layers.0.self_attn.q_proj.bias") and "vision" in k)
    weights[key][0] += 0.5
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="other weights than the one that the adapter") as caught:
        load_model(adapter, dtype=dtype)
    assert "\n" not in str(caught.value)


def test_another_language_model_is_not_the_towers_business(saved: tuple[Path, Path]) -> None:
    base, adapter = saved
    weights = load_file(base / "model.safetensors")
    key = next(k for k in weights if "language_model" in k and k.endswith("q_proj.weight"))
    weights[key] += 0.5
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert load_model(adapter).radapt == RAdaptConfig()


def test_fingerprints_by_hand() -> None:
    module = nn.Linear(3, 2)
    digest = hashlib.sha256()
    for name in ("bias", "weight"):  # sorted
        values = dict(module.named_parameters())[name].detach()
        digest.update(f"{name}{list(values.shape)}".encode() + values.numpy().astype("<f4").tobytes())
    before = tower_fingerprints(module, ["float32", "bfloat16"])
    assert before["float32"] == digest.hexdigest()
    assert before["bfloat16"] == tower_fingerprints(module.to(torch.bfloat16), ["bfloat16"])["bfloat16"]
    renamed = nn.ModuleDict({"x": nn.Linear(3, 2)})
    renamed["x"].load_state_dict(nn.Linear(3, 2).state_dict())
    assert len({*before.values(), *tower_fingerprints(renamed, ["float32"]).values()}) == 3
    flat = nn.ParameterDict({"w": torch.arange(6.0).view(2, 3)})
    tall = nn.ParameterDict({"w": torch.arange(6.0).view(3, 2)})
    assert tower_fingerprints(flat, ["float32"]) != tower_fingerprints(tall, ["float32"])


def _no_json(adapter: Path) -> None:
    (adapter / "radapt.json").write_text("{")


def _json_list(adapter: Path) -> None:
    (adapter / "radapt.json").write_text("[]")


def _lost_field(adapter: Path) -> None:
    settings = json.loads((adapter / "radapt.json").read_text())
    del settings["base"]
    (adapter / "radapt.json").write_text(json.dumps(settings))


def _flip_byte(adapter: Path) -> None:
    path = adapter / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _garbage_with_its_checksum(adapter: Path) -> None:
    (adapter / "adapter.safetensors").write_bytes(b"garbage")
    _edit(adapter, tensors_sha256=hashlib.sha256(b"garbage").hexdigest())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_json, "radapt.json is damaged: it is no JSON file"),
        (_json_list, "radapt.json is damaged: it is no JSON object"),
        (_lost_field, "field base: Field required"),
        (lambda a: _edit(a, format="other"), "does not say that it is"),
        (lambda a: _edit(a, version=2), "has format version 2, this program reads 1: update it"),
        (lambda a: _edit(a, surprise=1), "field surprise"),
        (lambda a: _edit(a, geometry="crop"), "field geometry"),
        (lambda a: _edit(a, config={"cutoff": -1}), "cutoff is -1"),
        (lambda a: _edit(a, config={"colour": 1}), "unknown R-Adapt setting colour"),
        (lambda a: _edit(a, anchor={"grid": [-2, -8], "prefix_tokens": 1}), "field anchor.grid"),
        (lambda a: _edit(a, anchor={"grid": [5, 4], "prefix_tokens": 1}), "17 rows does not fit grid"),
        (lambda a: _edit(a, white=[1.0, 1.0, 1.0]), "there is an anchor and a white pixel"),
        (lambda a: _edit(a, anchor=None), "it holds \\['anchor'\\]"),
        (lambda a: (a / "adapter.safetensors").unlink(), "cannot read .*adapter.safetensors: No such file"),
        (_flip_byte, "adapter.safetensors is damaged: its checksum"),
        (_garbage_with_its_checksum, "adapter.safetensors is damaged: it is no safetensors file"),
    ],
)
def test_damage_is_told_in_one_line(saved: tuple[Path, Path], damage: Callable[[Path], None], message: str) -> None:
    _, adapter = saved
    damage(adapter)
    with pytest.raises(UserError, match=message) as caught:
        load_model(adapter)
    assert "\n" not in str(caught.value)


def test_an_anchor_is_never_made_up(tmp_path: Path) -> None:
    base = tiny_checkpoints.save_llava(tmp_path / "base")
    save_adapter(robustify(load_model(base), RAdaptConfig(alpha=0)), tmp_path / "adapter")
    _edit(tmp_path / "adapter", config=RAdaptConfig().to_dict())
    with pytest.raises(UserError, match="alpha is 1 and there is no anchor"):
        load_model(tmp_path / "adapter")


def test_a_lost_base_is_named(saved: tuple[Path, Path]) -> None:
    base, adapter = saved
    base.rename(base.with_name("moved"))
    with pytest.raises(UserError, match=r"cannot open the base model of the adapter .*: .*no such folder"):
        load_model(adapter)


def test_an_adapter_is_no_base(saved: tuple[Path, Path]) -> None:
    _, adapter = saved
    settings = json.loads((adapter / "radapt.json").read_text())
    _edit(adapter, base=settings["base"] | {"name": str(adapter)})
    with pytest.raises(UserError, match=r"cannot open the base model .* no config\.json"):
        load_model(adapter)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*radapt.json: No such file"):
        load_adapter(tmp_path / "nothing")


def test_only_a_robustified_model_is_saved(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no R-Adapt in it: call robustify"):
        save_adapter(load_model(base), tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_overwritten(base: Path, tmp_path: Path) -> None:
    model = robustify(load_model(base))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="full is not empty: name a new folder"):
        save_adapter(model, tmp_path / "full")
    with pytest.raises(UserError, match="file is a file"):
        save_adapter(model, tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot write .*file is a file"):
        save_adapter(model, tmp_path / "file" / "below")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "mine.txt"]
    (tmp_path / "empty").mkdir()
    save_adapter(model, tmp_path / "empty")
    assert is_adapter(tmp_path / "empty")


def test_nothing_half_written_stays(saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = saved
    model = robustify(load_model(base))
    write_text = Path.write_text

    def full_disk(self: Path, *args: Any, **kwargs: Any) -> int:
        assert (self.parent / "adapter.safetensors").is_file()  # the first file is there already
        assert not (tmp_path / "out").exists()
        write_text(self, "{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*out: No space left on device"):
        save_adapter(model, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


def test_unsupported_precision_is_refused(saved: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = saved
    model = robustify(load_model(base, dtype=torch.float64))
    with pytest.raises(UserError, match=r"opened in torch\.float64"):
        save_adapter(model, tmp_path / "out")


def test_loading_shows_no_bar(saved: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    import transformers

    _, adapter = saved
    assert transformers.utils.logging.is_progress_bar_enabled()
    capfd.readouterr()
    load_model(adapter)
    assert capfd.readouterr().err == ""
    assert transformers.utils.logging.is_progress_bar_enabled()
