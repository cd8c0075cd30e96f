"""The demonstration on the embedded models, with one task and one budget."""

import threading
from pathlib import Path

import pytest
import torch

from eval_tasks.run.records import RunFolder
from lvlm_radapt.experiments import demo, engine
from lvlm_radapt.utils.errors import UserError


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "TASKS", ("vqav2",))
    monkeypatch.setattr(demo, "BUDGETS", (4,))


def quiet(_title, _total):
    return lambda _done, _what: None


@pytest.mark.slow
def test_every_model_is_scored_stock_and_protected_and_a_second_call_does_nothing_again(tmp_path, small):
    out = tmp_path / "demo"
    threads = torch.get_num_threads()
    told: dict[str, int] = {}

    def announce(title, _total):
        def advance(done, _what):
            told[title] = told.get(title, 0) + done

        return advance

    runs = demo.run_demo(out, samples=4, steps=1, announce=announce)
    assert torch.get_num_threads() == threads
    assert told == {"tiny-llava": 4 * 6, "tiny-qwen": 4 * 4}
    seen = {
        (base, model["radapt"] is not None, attack["name"], attack["threat"])
        for run in runs
        for model, attack in [(run.settings["model"], run.settings["attack"])]
        for base in demo.MODELS
        if base in run.path.name
    }
    rows = [(False, "noise", None), (False, "e2e", "adaptive"), (True, "e2e", "transfer"), (True, "e2e", "adaptive")]
    assert seen == {(model, *row) for model in demo.MODELS for row in rows}
    assert len(runs) == len(seen) + 2  # the hardened one is the filter over other weights
    hardened = [run for run in runs if run.path.name.startswith("tiny-llava-hardened-")]
    assert {run.settings["attack"]["threat"] for run in hardened} == {"transfer", "adaptive"}
    assert {run.settings["model"]["radapt"]["alpha"] for run in hardened} == {0}
    assert {run.settings["model"]["tuned_from"] for run in hardened} == {"tiny-llava"}
    assert {run.metrics["n"] for run in runs} == {4}
    by_name = {run.path.name: run for run in runs}
    for model in demo.MODELS:
        stock = by_name[f"{model}-stock-vqav2-e2e-adaptive-4"]
        transfer = by_name[f"{model}-radapt-vqav2-e2e-transfer-4"]
        images = [RunFolder(run.path).load_image(sample.id) for run in (stock, transfer) for sample in run.samples]
        assert all(torch.equal(a, b) for a, b in zip(images[:4], images[4:], strict=True))
    assert (out / "report.html").is_file()

    before = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/samples.jsonl")}
    assert len(before) == len(runs)
    again = demo.run_demo(out, samples=4, steps=1, announce=quiet)
    assert [run.metrics for run in again] == [run.metrics for run in runs]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_where_one_model_fails_the_other_ends_soon(tmp_path, small, monkeypatch):
    whole = engine.evaluate
    failed = threading.Event()
    finished = []

    def evaluation(model, *args, **kwargs):
        if model.name == "tiny-qwen":
            failed.set()
            raise UserError("tiny-qwen is ill")
        assert failed.wait(60)
        run = whole(model, *args, **kwargs)
        finished.append(model.name)
        return run

    monkeypatch.setattr(engine, "evaluate", evaluation)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    with pytest.raises(UserError, match="tiny-qwen is ill"):
        demo.run_demo(tmp_path / "demo", samples=4, steps=1, announce=quiet)
    for thread in threading.enumerate():
        if thread.name.startswith("demo"):
            thread.join(60)
            assert not thread.is_alive()
    assert len(finished) <= 1  # at most what was in hand, of four runs


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex"):
        demo.run_demo(tmp_path, samples=4, steps=1, announce=quiet)
    assert [Path(path).name for path in tmp_path.iterdir()] == ["thesis.tex"]
    file = tmp_path / "thesis.tex"
    with pytest.raises(UserError, match="is a file"):
        demo.run_demo(file, samples=4, steps=1, announce=quiet)
    assert file.read_text() == "years of work"
