"""The command line as a user meets it: every mistake ends in one line and exit code 2, nothing half-written."""

import json
from pathlib import Path

import pytest

from eval_tasks.run.records import read_run
from lvlm_radapt.embedded.dataset import write_scenes
from tests.helpers.tiny_checkpoints import save_llava


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(out, count=4)
    return out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


def _damaged(data: Path, tmp_path: Path, change) -> Path:
    import shutil

    copy = tmp_path / "damaged"
    shutil.copytree(data, copy)
    change(copy)
    return copy


def _first_image(folder: Path) -> Path:
    return sorted((folder / "val2014").iterdir())[0]


EVAL_MISTAKES = {
    "unknown embedded model": (["tiny-lava"], {}, "did you mean tiny-llava"),
    "folder without a model": (["{data}"], {}, "config.json"),
    "unknown task": (["{model}"], {"--task": "vqa2"}, "vqav2"),
    "unknown attack": (["{model}"], {"--attack": "e2ee"}, "e2e"),
    "unknown preset": (["{model}"], {"--preset": "fair"}, "fare"),
    "eps 0": (["{model}"], {"--eps": "0"}, "eps must be in (0, 1]"),
    "eps negative": (["{model}"], {"--eps": "-1/255"}, "eps must be in (0, 1]"),
    "eps above 1": (["{model}"], {"--eps": "1.5"}, "eps must be in (0, 1]"),
    "eps in levels": (["{model}"], {"--eps": "4"}, "4/255"),
    "no steps": (["{model}"], {"--steps": "0"}, "--steps"),
    "no samples": (["{model}"], {"--samples": "0"}, "at least 1"),
    "missing data folder": (["{model}"], {"--data": "{tmp}/nowhere"}, "nowhere"),
    "empty data folder": (["{model}"], {"--data": "{empty}"}, "empty"),
    "transfer without a twin": (["{model}"], {"--threat": "transfer"}, "no undefended model"),
    "surrogate for adaptive": (
        ["{model}"],
        {"--surrogate": "{model}"},
        "--surrogate is for --threat transfer",
    ),
    "threat without attack": (["{model}"], {"--attack": "none", "--threat": "adaptive"}, "--attack"),
    "noise with a threat": (["{model}"], {"--attack": "noise", "--threat": "adaptive"}, "no threat model"),
    "L2 of nothing": (["{model}"], {"--norm": "L2", "--eps": "0"}, "write 2.0"),
    "a norm without attack": (["{model}"], {"--attack": "none", "--norm": "L2"}, "--norm needs an attack"),
    "targeted without a text": (["{model}"], {"--attack": "targeted"}, "--target TEXT"),
    "an empty target": (["{model}"], {"--attack": "targeted", "--target": " "}, "--target TEXT"),
    "a target nobody asks for": (["{model}"], {"--target": "maybe"}, "--target is for --attack targeted"),
    "a target longer than answers": (
        ["{model}"],
        {"--attack": "targeted", "--target": "no " * 50},
        "tokens long, but answers end after",
    ),
    "a target that poses as an image": (["{model}"], {"--attack": "targeted", "--target": "<image>"}, "reserved token"),
    "half of no ensemble": (["{model}"], {"--half": "float16"}, "--half is for"),
    "half of a half model": (
        ["{model}"],
        {"--attack": "ensemble", "--half": "float16", "--dtype": "bfloat16"},
        "is for models in float32",
    ),
    "an early exit of no answer": (["{model}", "--early-exit"], {"--attack": "embedding"}, "ends by a rule of its own"),
    "an early exit of nothing": (["{model}", "--early-exit"], {"--attack": "none"}, "--early-exit needs an attack"),
    "an early exit of captions": (["{model}", "--early-exit"], {}, "--early-exit is for questions"),
    "an encoder that cannot speak": (
        ["{model}"],
        {"--attack": "ensemble", "--threat": "transfer", "--surrogate": "tiny-clip"},
        "use --attack embedding",
    ),
    "an unknown surrogate": (["{model}"], {"--threat": "transfer", "--surrogate": "tiny-lava"}, "tiny-llava"),
    "no such device": (["{model}"], {"--device": "gpu9"}, "--device"),
    "a device and a map": (["{model}"], {"--device": "cpu", "--device-map": "auto"}, "exclude each other"),
    "no such tower": (["{model}"], {"--tower": "{tmp}/nowhere.pt"}, "nowhere.pt"),
    "a tower of another shape": (["{model}"], {"--tower": "tiny-clip"}, "wide"),
    "an unknown architecture": (["{foreign}"], {}, "'idefics3' is not supported, only llava"),
    "images of no run": (
        ["{model}"],
        {"--threat": "transfer", "--images-from": "{tmp}/nowhere"},
        "is not a run folder",
    ),
}


@pytest.mark.parametrize("name", EVAL_MISTAKES)
def test_a_mistake_in_eval_is_one_line(name, cli, tmp_path, data, checkpoint):
    arguments, changed, expected = EVAL_MISTAKES[name]
    (tmp_path / "empty").mkdir()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "idefics3"}')
    places = {"data": data, "model": checkpoint, "tmp": tmp_path, "empty": tmp_path / "empty", "foreign": foreign}
    flags = {
        "--task": "coco", "--data": "{data}", "--attack": "e2e", "--eps": "4/255", "--steps": "2",
        "--out": "{tmp}/run", "--preset": "scenes", **changed,
    }  # fmt: skip
    words = [*arguments, *(part for pair in flags.items() for part in pair)]
    code, out, err = cli("eval", *(w.format(**places) for w in words))
    assert code == 2, err
    assert expected in err
    assert len(err.strip().splitlines()) == 1, err
    assert out == ""
    assert not (tmp_path / "run").exists()


DATA_DAMAGE = {
    "an image that does not open": (lambda d: _first_image(d).write_bytes(b"no image"), "COCO_val2014_"),
    "an image cut off": (
        lambda d: _first_image(d).write_bytes(_first_image(d).read_bytes()[:900]), "COCO_val2014_",
    ),
    "an image that is missing": (lambda d: _first_image(d).unlink(), "1 of 4 images are missing"),
    "annotations that are no JSON": (
        lambda d: (d / "annotations" / "captions_val2014.json").write_text("{"), "Invalid JSON",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA_DAMAGE)
def test_damaged_data_is_named_before_the_run_begins(name, cli, tmp_path, data, checkpoint):
    change, expected = DATA_DAMAGE[name]
    folder = _damaged(data, tmp_path, change)
    assert expected in cli.refused(
        "eval", checkpoint, "--task", "coco", "--data", folder, "--out", tmp_path / "run", "--preset", "scenes"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--cutoff", "0"], "cutoff is 0"),
        (["--cutoff", "-3"], "cutoff is -3"),
        (["--cutoff", "nan"], "cutoff"),
        (["--alpha", "nan"], "alpha is nan"),
        (["--alpha", "inf"], "alpha is inf"),
    ],
)
def test_a_mistake_in_robustify_is_one_line(flags, expected, cli, tmp_path, checkpoint):
    assert expected in cli.refused("robustify", checkpoint, "--out", tmp_path / "new", *flags)
    assert not (tmp_path / "new").exists()


def test_robustify_then_eval_then_report(cli, tmp_path, data, checkpoint):
    adapter = tmp_path / "adapter"
    out = cli.done("robustify", checkpoint, "--out", adapter, "--cutoff", "30", "--alpha", "0.5")
    code, _, err = cli("robustify", checkpoint, "--out", adapter)
    assert code == 2
    assert "not empty" in err

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


def test_report_of_no_run_is_one_line(cli, tmp_path):
    cli.refused("report", tmp_path, "--out", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_scenes_are_not_written_over_something(cli, tmp_path, data):
    before = sorted(p.name for p in data.iterdir())
    assert "not empty" in cli.refused("data", "scenes", "--out", data, "--count", "3")
    assert sorted(p.name for p in data.iterdir()) == before


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
