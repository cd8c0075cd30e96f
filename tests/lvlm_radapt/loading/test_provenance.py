"""What a run and an adapter know of where a model came from and how it was opened."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import scan_cache_dir
from typer.testing import CliRunner

from lvlm_radapt import load_model, robustify
from lvlm_radapt.cli import app
from lvlm_radapt.cli.placing import place_flags, place_of
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.loading.adapter import load_adapter
from lvlm_radapt.loading.load import load_encoder, stored_dtype
from lvlm_radapt.models.conversations import CONVERSATIONS
from lvlm_radapt.saving.adapter import save_adapter
from tests.helpers import tiny_checkpoints
from tests.helpers.failures import one_line

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def in_cache(cache: Path, name: str, folder: Path) -> Path:
    """`folder` as the hub's library caches the repository `name`: blobs, and a snapshot of links to them."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = root / "snapshots" / COMMIT, root / "blobs"
    for made in (snapshot, blobs, root / "refs"):
        made.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = blobs / f"{number:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def test_the_hub_s_commit_is_recorded(cache: Path, tmp_path: Path) -> None:
    snapshot = in_cache(cache, "someone/llava", tiny_checkpoints.save_llava(tmp_path / "llava"))
    in_cache(cache, "someone/clip", tiny_checkpoints.save_clip(tmp_path / "clip"))
    revisions = {repo.repo_id: [r.commit_hash for r in repo.revisions] for repo in scan_cache_dir(cache).repos}
    assert revisions == {"someone/llava": [COMMIT], "someone/clip": [COMMIT]}  # the library sees it as we do
    model = load_model("someone/llava")
    assert model.revision == load_model(snapshot).revision == load_encoder("someone/clip").revision == COMMIT
    save_adapter(robustify(model), tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "radapt.json").read_text())["base"]["revision"] == COMMIT
    assert load_model(tmp_path / "adapter").revision == COMMIT
    assert load_model(tmp_path / "llava").revision is None


def test_run_json_has_it(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval_tasks.data import Sample
    from eval_tasks.run.options import EvalOptions, run_document
    from eval_tasks.tasks.make_task import make_task

    in_cache(cache, "someone/qwen", tiny_checkpoints.save_qwen(tmp_path / "qwen"))
    model = load_model("someone/qwen", max_pixels=10_000)
    asked = [Sample("1", Path("absent.png"), "what is it?", ("a pig",) * 10)]
    run = make_task("vqav2", "scenes").bind(model, asked, asked, batch_size=1)
    written = run_document(run, None, EvalOptions(data=tmp_path), "")["model"]
    assert (written["revision"], written["max_pixels"]) == (COMMIT, 10_000)


def test_an_adapter_remembers_precision_and_conversation(tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_llava(tmp_path / "llava")
    model = load_model(folder, dtype=torch.bfloat16, conversation="mistral_instruct")
    save_adapter(robustify(model), tmp_path / "half")
    again = load_model(tmp_path / "half")
    assert again.dtype == torch.bfloat16 == place_of("cpu", "auto", None, None, model=str(tmp_path / "half"))["dtype"]
    assert again.text.conversation == CONVERSATIONS["mistral_instruct"]
    assert load_model(tmp_path / "half", dtype=torch.float32).dtype == torch.float32
    assert load_model(tmp_path / "half", conversation="qwen").text.conversation == CONVERSATIONS["qwen"]
    save_adapter(robustify(load_model(folder)), tmp_path / "whole")
    assert load_model(tmp_path / "whole").dtype == torch.float32
    assert load_adapter(tmp_path / "whole").text.conversation is None
    for name, wanted in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        assert place_of("cpu", name, None, None, model=str(tmp_path / "half"))["dtype"] == wanted


def test_an_adapter_of_before_opens_as_it_did(tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_llava(tmp_path / "llava")
    save_adapter(robustify(load_model(folder)), tmp_path / "adapter")
    path = tmp_path / "adapter" / "radapt.json"
    kept = json.loads(path.read_text())
    del kept["conversation"], kept["max_pixels"]
    path.write_text(json.dumps(kept))
    assert load_model(tmp_path / "adapter").text.conversation is None
    path.write_text(json.dumps(kept | {"max_pixels": 0}))
    with one_line("max_pixels"):
        load_model(tmp_path / "adapter")


def test_the_next_command_opens_it_alike(tmp_path: Path) -> None:
    assert place_flags("auto", "auto") == ""
    assert place_flags("auto", "bfloat16", "4bit", "auto") == (" --device-map auto --dtype bfloat16 --quantize 4bit")
    words: list[Any] = ["robustify", "tiny-llava", "--out", tmp_path / "out", "--dtype", "bfloat16", "--device", "cpu"]
    said = CliRunner().invoke(app, [str(word) for word in words])
    assert said.exit_code == 0, said.output
    assert "--eps 4/255 --device cpu --dtype bfloat16 --out RUN" in said.stdout


def test_robustify_s_flags_are_kept_and_eval_s_open_the_model(tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_qwen(tmp_path / "qwen")
    flags = ["--conversation", "qwen3", "--max-pixels", "10000", "--device", "cpu"]
    done = CliRunner().invoke(app, ["robustify", str(folder), "--out", str(tmp_path / "adapter"), *flags])
    assert done.exit_code == 0, done.output
    kept = json.loads((tmp_path / "adapter" / "radapt.json").read_text())
    assert (kept["conversation"]["name"], kept["max_pixels"]) == ("qwen3", 10_000)
    write_scenes(tmp_path / "scenes", count=2)
    words = ["eval", str(folder), "--task", "coco", "--data", str(tmp_path / "scenes"), "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*words, "--samples", "2", "--device", "cpu", "--max-pixels", "10000"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]["max_pixels"] == 10_000


def test_auto_is_as_stored_on_a_gpu_and_float32_elsewhere(tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_llava(tmp_path / "llava")
    config = json.loads((folder / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        (folder / "config.json").write_text(
            json.dumps({k: v for k, v in config.items() if k != "dtype"} | {key: "float16"})
        )
        assert stored_dtype(folder, "cuda") == torch.float16
        assert stored_dtype(folder) == torch.float32
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "int8"}))
    assert stored_dtype(folder, "cuda") == torch.float32
    assert stored_dtype("tiny-llava", "cuda") == torch.float32
    save_adapter(robustify(load_model(folder, dtype=torch.bfloat16)), tmp_path / "adapter")
    assert stored_dtype(tmp_path / "adapter", "cuda") == torch.bfloat16
