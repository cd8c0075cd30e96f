"""Models saved, pushed to the hub and opened from there, with a card that says what was measured."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants, hf_api
from transformers.utils import hub as hub_of_transformers

from eval_tasks.report.build_table import comparison
from lvlm_radapt import RAdaptConfig, load_model, load_pretrained, robustify
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.embedded.scenes import render, sample_scene
from lvlm_radapt.hub import model_card
from lvlm_radapt.loading.locate import embedded_models
from lvlm_radapt.models.base import LVLM, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from tests.helpers.failures import one_line
from tests.helpers.hub_server import Hub, hub
from tests.helpers.run_folders import RADAPT, Maker, attack, spread

TOKEN = "hf_a_token_of_nobody"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    robustify(load_model("tiny-llava"), RAdaptConfig()).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine; huggingface_hub asks it, with a token from the environment."""
    with hub(TOKEN) as found:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        for client in (hf_api.api, *([hub_of_transformers.hf_api()] if hasattr(hub_of_transformers, "hf_api") else [])):
            monkeypatch.setattr(client, "endpoint", found.url)  # transformers lists chat templates by one of them
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def features(model: PixelModel) -> torch.Tensor:
    return model.features(model.pixels([render(sample_scene("test", 0, 1))]))


def test_a_robust_model_is_saved_and_opened_by_its_own_methods(adapter: Path, tmp_path: Path) -> None:
    model = robustify(load_model("tiny-llava"), RAdaptConfig())
    opened = LVLM.from_pretrained(adapter)
    assert opened.radapt == model.radapt
    assert torch.equal(features(opened), features(model))
    with one_line("is a LlavaLVLM, no CLIPEncoder"):
        CLIPEncoder.from_pretrained(adapter)
    with one_line("has no R-Adapt in it"):
        load_model("tiny-llava").save_pretrained(tmp_path / "none")
    encoder = robustify(CLIPEncoder.from_pretrained("tiny-clip"), RAdaptConfig(alpha=0))
    encoder.save_pretrained(tmp_path / "encoder")
    assert torch.equal(features(CLIPEncoder.from_pretrained(tmp_path / "encoder")), features(encoder))


def test_a_model_goes_up_in_one_commit_and_comes_back(online: Hub, make: Maker, tmp_path: Path) -> None:
    model = robustify(load_model("tiny-llava"), RAdaptConfig())
    runs = [make(spread(10, 1), attacked=attack()), make(spread(30, 2), RADAPT, attack())]
    assert model.push_to_hub("me/hardened", runs, private=True) == f"{online.url}/me/hardened"
    asked = online.repos["me/hardened"]
    assert asked.get("private") or asked.get("visibility") == "private"
    assert (online.commits, sorted(online.files)) == (1, ["README.md", "adapter.safetensors", "radapt.json"])
    assert online.checked == [online.files["README.md"].decode()]  # the hub itself was asked about its metadata
    assert not any(TOKEN.encode() in content for content in online.files.values())
    back = load_pretrained("me/hardened")
    assert torch.equal(features(back), features(model))
    assert isinstance(LVLM.from_pretrained("me/hardened"), LVLM)


def test_the_card_holds_the_scores_and_says_which_are_adaptive(adapter: Path, make: Maker, cli: Any) -> None:
    runs = [
        make(spread(10, 1), attacked=attack()),
        make(spread(30, 2), RADAPT, attack()),
        make(spread(70, 2), RADAPT, attack("transfer", surrogate="tiny-llava")),
    ]
    told = cli.done("push", adapter, "me/hardened", *(run.path for run in runs), "--licence", "apache-2.0", "--dry-run")
    card = ModelCard(told)
    assert card.data.to_dict() == {
        "library_name": "lvlm-radapt",
        "license": "apache-2.0",
        "tags": ["adversarial-robustness", "lvlm-radapt"],
    }
    assert comparison(runs).to_markdown() in card.text  # n, attack, eps, steps, intervals, both threat models
    assert "**Gains under the adaptive attack**" in card.text
    transfer = model_card(adapter, "me/hardened", [runs[2]])
    assert "It is not shown to hold." in transfer
    assert "It is not shown to hold." not in told
    assert "nothing is claimed of its robustness" in model_card(adapter, "me/hardened")


def test_what_harden_writes_goes_up_with_the_runs_that_it_made(make: Maker, tmp_path: Path, cli: Any) -> None:
    weights, out = tmp_path / "weights", tmp_path / "hardened"
    shutil.copytree(embedded_models()["tiny-llava"], weights)
    (weights / "training.json").write_text(json.dumps({"base": "tiny-llava"}))
    cli.done("robustify", weights, "--alpha", 0, "--out", out, "--export")
    name = {"name": str(weights), "radapt": {**RAdaptConfig(alpha=0).to_dict()}}
    before, after = make(spread(10, 1), attacked=attack()), make(spread(70, 2), attacked=attack(), model=name)
    told = cli.done("push", out, "me/hardened", before.path, after.path, "--dry-run")
    assert comparison([before, after]).to_markdown() in told
    assert ", made from tiny-llava" in told
    other = make(spread(70, 2), attacked=attack(), model=name | {"radapt": RAdaptConfig(cutoff=20, alpha=0).to_dict()})
    assert "neither" in cli.refused("push", out, "me/hardened", other.path, "--dry-run")


def test_what_was_in_the_card_stays_and_a_second_push_changes_nothing(adapter: Path, make: Maker) -> None:
    (adapter / "README.md").write_text("---\nlicense: llama2\nlanguage: en\n---\n# Mine\n\nWords of my own.\n")
    run = make(spread(30, 2), RADAPT, attack())
    first = model_card(adapter, "me/hardened", [run])
    assert ModelCard(first).data.to_dict()["license"] == "llama2"
    assert "Words of my own." in first
    (adapter / "README.md").write_text(first)
    assert model_card(adapter, "me/hardened", [run]) == first
    (adapter / "README.md").write_text("---\na: [\n---\n")
    with one_line("has no YAML in front that can be read"):
        model_card(adapter, "me/hardened", [run])


def test_fine_tuned_weights_go_up_without_the_paths_of_this_machine(online: Hub, tmp_path: Path, cli: Any) -> None:
    shutil.copytree(embedded_models()["tiny-clip"], tmp_path / "base")
    write_scenes(tmp_path / "scenes", count=8)
    words = ["--method", "fare", "--images", tmp_path / "scenes" / "val2014", "--steps", "1", "--batch-size", "4"]
    cli.done("finetune", tmp_path / "base", *words, "--device", "cpu", "--out", tmp_path / "tuned")
    before = {file.name: file.read_bytes() for file in (tmp_path / "tuned").iterdir()}
    assert str(tmp_path).encode() in before["training.json"]
    cli.done("push", tmp_path / "tuned", "me/tuned")
    assert online.files.keys() == before.keys()
    assert [name for name, content in online.files.items() if str(tmp_path).encode() in content] == []
    assert online.files["model.safetensors"] == before["model.safetensors"]
    assert json.loads(online.files["training.json"])["base"] == "base"
    assert "Linf, eps 4/255" in online.files["README.md"].decode()  # its own card, with the scores' part behind it
    assert {file.name: file.read_bytes() for file in (tmp_path / "tuned").iterdir()} == before
    opened = CLIPEncoder.from_pretrained("me/tuned")  # plain weights, as any of the hub's
    assert torch.equal(features(opened), features(CLIPEncoder.from_pretrained(tmp_path / "tuned")))


def test_what_cannot_be_pushed_ends_in_one_line_and_nothing_is_sent(
    adapter: Path, online: Hub, make: Maker, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make(spread(30, 2), RADAPT | {"cutoff": 20}, attack()).path
    base = make(spread(10, 1), attacked=attack()).path
    (tmp_path / "empty").mkdir()
    for words, expected in (
        ((tmp_path / "empty", "me/x"), "is no model folder"),
        ((adapter, "x"), "is no name on the hub"),
        ((adapter, "me/x", tmp_path / "empty"), "is not a run folder"),
        ((adapter, "me/x", other), "which is neither"),
        ((adapter, "me/x", base), "leave its base's runs out"),
    ):
        assert expected in cli.refused("push", *words)
    (adapter / "linked.txt").symlink_to("/etc/hostname")
    assert "is a link" in cli.refused("push", adapter, "me/x")
    (adapter / "linked.txt").unlink()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the token may not do that" in cli.refused("push", adapter, "me/x")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert "there is no token" in cli.refused("push", adapter, "me/x")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in cli.refused("push", adapter, "me/x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot push to me/x" in cli.refused("push", adapter, "me/x")
    assert (online.files, online.repos) == ({}, {})


def test_an_adapter_whose_base_is_a_folder_of_this_machine_is_refused(tmp_path: Path) -> None:
    shutil.copytree(embedded_models()["tiny-llava"], tmp_path / "base")
    robustify(load_model(tmp_path / "base"), RAdaptConfig(alpha=0)).save_pretrained(tmp_path / "own")
    with one_line("which nobody else has"):
        model_card(tmp_path / "own", "me/x")
