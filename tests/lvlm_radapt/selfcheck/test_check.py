"""`lvlm-radapt check`: what is right passes, and each check fails on what is wrong in its own place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lvlm_radapt import RAdaptConfig, export_model, load_encoder, load_model, robustify
from lvlm_radapt.defences.radapt.modules import AnchorMix, GaussianFilter
from lvlm_radapt.experiments import models
from lvlm_radapt.models import LVLM
from lvlm_radapt.models.text import PromptEncoder
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.selfcheck.run import self_check
from tests.helpers import original_llava, released, tiny_checkpoints
from tests.helpers.cli import Cli
from tests.helpers.families import FAMILIES, FEW

LANGUAGE = (
    "files and layout", "pixels", "torchvision", "gradient", "finite differences", "filter", "anchor",
    "taken out again", "batch", "answers in a batch", "one attack step", "prompt tokens", "logits", "answers",
)  # fmt: skip
try:
    transformers.AutoImageProcessor.from_pretrained("absent")
except ImportError:  # of the oldest versions, without torchvision
    UNREADABLE = {"pixels", "prompt tokens", "logits", "answers"}
except OSError:
    UNREADABLE = set()
reads_processors = pytest.mark.skipif(bool(UNREADABLE), reason="this transformers needs torchvision for processors")
ENCODER = (*LANGUAGE[:11], "features", "embeddings")


def verdicts(name: Path | str, **place: Any) -> dict[str, str]:
    found = list(self_check(str(name), place))
    for one in found:
        assert "\n" not in one.line()
        json.dumps(one.to_dict())
    return {one.name: one.verdict for one in found}


def failed(name: Path | str, **place: Any) -> set[str]:
    return {check for check, verdict in verdicts(name, **place).items() if verdict == "fail"}


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    return released.write("llava", tmp_path / "llava")


@pytest.mark.parametrize("name", FEW)
def test_every_family_passes(name: str, tmp_path: Path) -> None:
    found = verdicts(released.write(name, tmp_path / "model"))
    assert tuple(found) == LANGUAGE
    assert "fail" not in found.values()
    skipped = {check for check, verdict in found.items() if verdict == "skipped"}
    processor = getattr(transformers, FAMILIES[name].processor, None)
    lacking = {"prompt tokens", "logits", "answers"} if getattr(processor, "is_dummy", False) else set()
    assert skipped <= {"torchvision", "finite differences"} | UNREADABLE | lacking


@pytest.mark.parametrize("save", [tiny_checkpoints.save_clip, tiny_checkpoints.save_siglip])
def test_encoders_pass_the_checks_that_fit_them(save: Callable[[Path], Path], tmp_path: Path) -> None:
    found = verdicts(save(tmp_path / "model"))
    assert tuple(found) == ENCODER
    allowed = {"torchvision", "answers in a batch", "finite differences"}
    allowed |= {"pixels", "features", "embeddings"} if UNREADABLE else set()
    assert {check for check, verdict in found.items() if verdict != "pass"} <= allowed


def test_a_robustified_model_is_checked_with_its_own_defence(llava: Path, tmp_path: Path) -> None:
    model = robustify(load_model(llava), RAdaptConfig(cutoff=20, alpha=0.5, mix="add"))
    save_adapter(model, tmp_path / "adapter")
    found = {one.name: one for one in self_check(str(tmp_path / "adapter"), {})}
    assert {one.verdict for one in found.values()} <= {"pass", "skipped"}
    assert "cutoff 20" in found["files and layout"].said
    assert found["filter"].numbers["cutoff"] == 20
    assert "alpha 0.5, add" in found["anchor"].said
    assert found["logits"].verdict == ("skipped" if UNREADABLE else "pass")  # of the undefended model inside


def test_what_transformers_does_not_open_is_skipped_with_the_reason(llava: Path, tmp_path: Path) -> None:
    export_model(robustify(load_model(llava)), tmp_path / "export")
    original = original_llava.write_original(tmp_path / "original", original_llava.stock_llava(), tower=True, shards=1)
    for folder, why in ((tmp_path / "export", "code, which is never run"), (original, "LLaVA's original layout")):
        found = {one.name: one for one in self_check(str(folder), {})}
        assert not [one.line() for one in found.values() if one.verdict == "fail"]
        for check in ("pixels", "prompt tokens"):
            assert found[check].verdict == "skipped"
            assert why in found[check].said
        assert found["filter"].verdict == "pass"


@reads_processors
def test_settings_of_the_user_s_own_are_not_held_against_the_model(tmp_path: Path) -> None:
    qwen = released.write("qwen2.5", tmp_path / "qwen")
    for place, why in (
        ({"max_pixels": 20_000}, "at most 20,000 pixels"),
        ({"conversation": "qwen"}, "asked in the conversation qwen"),
    ):
        found = {one.name: one for one in self_check(str(qwen), place)}
        assert not [one.line() for one in found.values() if one.verdict == "fail"]
        assert why in found["prompt tokens"].said
        assert found["logits"].verdict == "skipped"


def test_half_precision_passes_and_says_what_it_cannot_tell(llava: Path) -> None:
    found = {one.name: one for one in self_check(str(llava), {"dtype": torch.bfloat16})}
    assert not [one.line() for one in found.values() if one.verdict == "fail"]
    assert "--dtype float32" in found["finite differences"].said


# --- damaged checkpoints


def edited(folder: Path, file: str, **values: Any) -> Path:
    released.merge(folder / file, **values)
    return folder


def test_files_that_do_not_open_are_the_only_check(llava: Path) -> None:
    (llava / "model.safetensors").write_bytes((llava / "model.safetensors").read_bytes()[:-100])
    assert verdicts(llava) == {"files and layout": "fail"}


@reads_processors
def test_another_geometry_than_transformers_fails_the_pixels(llava: Path, tmp_path: Path) -> None:
    save_adapter(robustify(load_model(llava, geometry="pad")), tmp_path / "adapter")
    assert failed(tmp_path / "adapter") >= {"pixels"}


@reads_processors
def test_another_number_of_image_tokens_fails_the_prompt(llava: Path) -> None:
    edited(llava, "processor_config.json", num_additional_image_tokens=3)
    assert failed(llava) == {"prompt tokens", "logits", "answers"}


@reads_processors
def test_generation_settings_that_we_pass_over_fail_the_answers(llava: Path) -> None:
    model = load_model(llava)
    from lvlm_radapt.selfcheck.trial import QUESTION, photo_like

    said = model.generate(model.pixels([photo_like()]), [QUESTION], 8)
    ids = model.tokenizer(said[0], add_special_tokens=False)["input_ids"]
    edited(llava, "generation_config.json", suppress_tokens=ids)
    assert failed(llava) == {"answers"}


def test_a_projector_of_zeros_fails_the_gradient(llava: Path) -> None:
    weights = load_file(llava / "model.safetensors")
    for name in weights:
        if "multi_modal_projector" in name:
            weights[name] = torch.zeros_like(weights[name])
    save_file(weights, llava / "model.safetensors", metadata={"format": "pt"})
    assert "gradient" in failed(llava)


@reads_processors
def test_encoders_that_transformers_reads_otherwise_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoints.save_clip(tmp_path / "clip")
    kind = type(load_encoder(folder))
    features, embedding = kind.features, kind.image_features
    monkeypatch.setattr(kind, "features", lambda self, batch, at="tower": 1.01 * features(self, batch, at))
    monkeypatch.setattr(kind, "image_features", lambda self, batch: embedding(self, batch) + 0.1)
    assert failed(folder) >= {"features", "embeddings"}


# --- a package that does not do what it says


def test_a_rounded_input_fails_the_finite_differences(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LVLM.loss

    def rounded(self: LVLM, batch: Any, prompts: Any, targets: Any) -> torch.Tensor:
        x = batch.x + ((batch.x * 15).round() / 15 - batch.x).detach()  # the gradient goes straight through
        return whole(self, batch.replace(x), prompts, targets)

    monkeypatch.setattr(LVLM, "loss", rounded)
    assert "finite differences" in failed(llava)


def test_a_filter_of_another_cutoff_fails(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init = GaussianFilter.__init__
    monkeypatch.setattr(GaussianFilter, "__init__", lambda self, cutoff, *more: init(self, 1.2 * cutoff, *more))
    assert failed(llava) == {"filter"}


def test_an_anchor_of_another_weight_fails(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = AnchorMix.forward
    monkeypatch.setattr(AnchorMix, "forward", lambda self, r, anchor=None: 1.02 * forward(self, r, anchor))
    assert failed(llava) == {"anchor"}


def test_a_defence_that_leaves_something_behind_fails(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "remove", lambda hf: None)
    assert "taken out again" in failed(llava)


def test_a_batch_that_mixes_its_rows_fails(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PromptEncoder.prompt
    calls = 0

    def shifting(self: PromptEncoder, prompt: Any, *image: Any) -> list[int]:
        nonlocal calls
        calls += 1
        return whole(self, prompt if calls % 2 else "no", *image)

    monkeypatch.setattr(PromptEncoder, "prompt", shifting)
    assert failed(llava) >= {"batch", "answers in a batch"}


# --- the command


def test_the_command_tells_each_check_and_writes_them_down(llava: Path, tmp_path: Path, cli: Cli) -> None:
    written = tmp_path / "check.json"
    code, out, err = cli("check", llava, "--device", "cpu", "--json", written)
    assert (code, err) == (0, "")
    *lines, last = out.splitlines()
    assert [line[:9].strip() in ("pass", "skipped") for line in lines] == [True] * len(LANGUAGE)
    assert [line[9:].partition(":")[0] for line in lines] == [*LANGUAGE]
    assert last.endswith("skipped")
    checks = json.loads(written.read_bytes())["checks"]
    assert [one["name"] for one in checks] == [*LANGUAGE]
    assert checks[10]["numbers"]["tflop"] > 0
    shutil.copy(llava / "config.json", tmp_path / "mine.json")
    assert "is no check of this program" in cli.refused("check", llava, "--json", tmp_path / "mine.json")


@reads_processors
def test_the_command_ends_with_2_where_a_check_fails(llava: Path, cli: Cli) -> None:
    edited(llava, "processor_config.json", num_additional_image_tokens=3)
    code, out, err = cli("check", llava)
    assert code == 2
    assert "fail     prompt tokens: " in out
    assert err == f"error: 3 of 14 checks of {llava} failed: prompt tokens, logits, answers\n"
    code, out, err = cli("check", "no-such-model")
    assert code == 2
    assert out.startswith("fail     files and layout: model 'no-such-model' is unknown")


def test_what_robustify_writes_of_a_model_of_the_user_s_is_to_be_checked_first(
    llava: Path, tmp_path: Path, cli: Cli
) -> None:
    for model, told in ((llava, True), ("tiny-llava", False)):
        out = tmp_path / f"out-{told}"
        said = cli.done("robustify", model, "--dtype", "bfloat16", "--out", out)
        assert (f"first: lvlm-radapt check {out} --dtype bfloat16\n" in said) == told
