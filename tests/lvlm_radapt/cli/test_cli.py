"""The command line as a user meets it: every mistake ends in one line and exit code 2, nothing half-written."""

import json
from pathlib import Path

import pytest

from eval_tasks.run.records import read_run
from tests.helpers.data_sets import scenes_folder
from tests.helpers.tiny_checkpoints import save_llava

data = scenes_folder(count=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


def test_robustify_then_eval_then_report(cli, tmp_path, data, checkpoint):
    adapter = tmp_path / "adapter"
    cli.done("robustify", checkpoint, "--out", adapter, "--cutoff", "30", "--alpha", "0.5")
    assert "not empty" in cli.refused("robustify", checkpoint, "--out", adapter)

    common = [
        "--task", "vqav2", "--data", data, "--attack", "e2e", "--eps", "8/255", "--steps", "2", "--samples", "999",
        "--preset", "scenes",
    ]  # fmt: skip
    for threat in ("adaptive", "transfer"):
        out = cli.done("eval", adapter, *common, "--threat", threat, "--out", tmp_path / threat)
        assert "all of them are used" in out
        run = read_run(tmp_path / threat)
        assert run.settings["model"]["radapt"]["cutoff"] == 30
        assert run.settings["attack"]["threat"] == threat
        assert (tmp_path / threat / "report.html").is_file()

    before = (tmp_path / "adaptive" / "run.json").read_bytes()
    assert "already holds a run" in cli.refused("eval", adapter, *common, "--out", tmp_path / "adaptive")
    assert (tmp_path / "adaptive" / "run.json").read_bytes() == before

    html = tmp_path / "both.html"
    out = cli.done("report", tmp_path / "adaptive", tmp_path / "transfer", "--out", html, "--format", "markdown")
    row = next(line for line in out.splitlines() if "cutoff 30" in line)
    values = [
        json.loads((tmp_path / t / "metrics.json").read_text())["adversarial"]["vqa_accuracy"]
        for t in ("transfer", "adaptive")
    ]
    assert all(f"{v:.1f}" in row for v in values)
    assert "Transfer" in out
    assert "Adaptive" in out
    assert html.is_file()


def test_eval_opens_quantised_and_spread_models(cli, tmp_path, data):
    pytest.importorskip("bitsandbytes")
    common = ["eval", "tiny-llava", "--task", "vqav2", "--data", data, "--attack", "e2e", "--steps", 1, "--samples", 2]
    for name, flags, quantised in (
        ("quantised", ["--quantize", "4bit", "--dtype", "bfloat16"], "4bit"),
        ("spread", ["--device-map", "auto"], None),
    ):
        out = cli.done(*common, *flags, "--out", tmp_path / name)
        assert "adaptive" in out.lower()
        run = read_run(tmp_path / name)
        assert run.settings["model"]["quantize"] == quantised


@pytest.mark.parametrize("what", ["models", "tasks", "attacks", "presets"])
def test_list_names_everything(what, cli):
    out = cli.done("list", what)
    named = {"models": "tiny-llava", "tasks": "textvqa", "attacks": "embedding", "presets": "fare"}
    assert named[what] in out
    assert "None" not in out


@pytest.mark.parametrize("command", ["", "robustify", "eval", "report", "list", "demo", "data", "chat"])
def test_help_is_there(command, cli):
    out = cli.done(*([command] if command else []), "--help")
    assert "Usage" in out
