"""Curves and scores in the trackers that people have, read back from where each of them keeps them."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.trackers import TRACKERS, Tracker, curves, send_scores
from lvlm_radapt.training.finetune import Probe, TrainingLog
from tests.helpers.failures import one_line
from tests.helpers.run_folders import Maker, attack, spread

Values = dict[str, list[tuple[int, float]]]
"""By name, each step with its number."""


def of_tensorboard(place: Path) -> Values:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {file.parent for file in (place / "tensorboard").rglob("events*") if not file.parent.name[0].isdigit()}
    found = EventAccumulator(str(folder)).Reload()
    return {name: [(one.step, one.value) for one in found.Scalars(name)] for name in found.Tags()["scalars"]}


def of_mlflow(place: Path) -> Values:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"file:{place / 'mlruns'}")
    (run,) = client.search_runs([client.get_experiment_by_name("lvlm-radapt").experiment_id])
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(one.step, one.value) for one in found] for name, found in history.items()}


def of_trackio(place: Path) -> Values:
    with sqlite3.connect(place / "trackio" / "lvlm-radapt.db") as opened:
        rows = opened.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    found: Values = {}
    for step, metrics in rows:
        for name, value in json.loads(metrics).items():
            found.setdefault(name, []).append((step, value))
    return found


def of_wandb(place: Path) -> Values:
    """An offline run is a log in LevelDB's format: 7 bytes before the first record, and 7 before each."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service writes the file's end
    (file,) = place.glob("wandb/offline-run-*/*.wandb")
    data, at, whole = file.read_bytes(), 7, b""
    found: Values = {}
    while at + 7 <= len(data):
        size, part = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if -at % 32768 < 7:
            at += -at % 32768
        if part not in (1, 4):  # the last part of a record
            continue
        record, whole = Record.FromString(whole), b""
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name in items.keys() - {"_step", "_runtime", "_timestamp"}:
            found.setdefault(name, []).append((int(items["_step"]), items[name]))
    return found


READERS: dict[str, Callable[[Path], Values]] = {
    "tensorboard": of_tensorboard, "mlflow": of_mlflow, "trackio": of_trackio, "wandb": of_wandb
}  # fmt: skip


needs_tensorboard = pytest.mark.skipif(
    find_spec("tensorboard") is None, reason="the library tensorboard is not installed"
)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where every tracker keeps what it gets, without a server or a key."""
    (tmp_path / "kept").mkdir()
    monkeypatch.chdir(tmp_path / "kept")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'kept' / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept" / "trackio"))
    return tmp_path / "kept"


def close(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> bool:
    return [step for step, _ in found] == [step for step, _ in wanted] and [one for _, one in found] == pytest.approx(
        [one for _, one in wanted]
    )


@pytest.mark.parametrize("name", TRACKERS)
def test_every_tracker_gets_each_step_once(name: Any, kept: Path) -> None:
    if find_spec(name) is None:
        pytest.skip(f"the library {name} is not installed")
    log = TrainingLog("scores", losses=[3.0, 2.0], rates=[0.1, 0.2], probes=[Probe(0, 1.0, 0.25)])
    tracker = Tracker(
        name, kept / "tuned", {"method": "fare", "none": None, "recipe": {"eps": 4 / 255, "texts": ["a"]}}
    )
    watch = curves(tracker)
    watch(log)  # as a run that is resumed begins
    watch(log)
    log.losses.append(1.0)
    log.rates.append(0.3)
    log.probes.append(Probe(3, 0.5, 0.75))
    watch(log)
    tracker.finish()
    found = READERS[name](kept)
    assert close(found["loss"], [(1, 3.0), (2, 2.0), (3, 1.0)])
    assert close(found["rate"], [(1, 0.1), (2, 0.2), (3, 0.3)])
    assert close(found["held_back/clean"], [(0, 1.0), (3, 0.5)])
    assert close(found["held_back/attacked"], [(0, 0.25), (3, 0.75)])


@needs_tensorboard
def test_finetune_and_eval_report_what_they_write(kept: Path, cli: Any) -> None:
    write_scenes(kept / "scenes", count=8, per_class=1)
    words = ["--method", "fare", "--images", kept / "scenes" / "val2014", "--steps", "3", "--batch-size", "4"]
    cli.done("finetune", "tiny-clip", *words, "--device", "cpu", "--out", kept / "tuned", "--report-to", "tensorboard")
    written = json.loads((kept / "tuned" / "training.json").read_text())
    found = of_tensorboard(kept)
    assert close(found["loss"], list(enumerate(written["losses"], start=1)))
    assert close(found["held_back/attacked"], [(one["step"], one["robust"]) for one in written["probes"]])
    (kept / "tensorboard").rename(kept / "first")
    words = ["--task", "imagefolder", "--data", kept / "scenes" / "classes", "--samples", "4", "--device", "cpu"]
    words += ["--attack", "apgd-ce", "--steps", "1", "--out", kept / "run", "--report-to", "tensorboard"]
    cli.done("eval", "tiny-clip", *words)
    metrics = json.loads((kept / "run" / "metrics.json").read_text())
    scores = of_tensorboard(kept)
    assert close(scores["clean"], [(0, metrics["clean"]["accuracy"])])
    assert close(scores["adaptive"], [(0, metrics["adversarial"]["accuracy"])])
    assert close(scores["adaptive_high"], [(0, metrics["adversarial"]["ci95"][1])])


@needs_tensorboard
def test_a_transfer_score_is_called_one(kept: Path) -> None:
    run = Maker(kept)(spread(10, 1), attacked=attack("transfer"))
    send_scores("tensorboard", run)
    assert {"transfer", "transfer_low"} <= of_tensorboard(kept).keys()
    assert "adaptive" not in of_tensorboard(kept)


@pytest.mark.parametrize("command", ["eval", "finetune"])
def test_a_missing_library_is_told_before_anything_is_opened(
    command: str, kept: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept / "wandb").mkdir()  # as wandb itself leaves it: no library
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(kept), *(one for one in sys.path if not (Path(one) / "wandb").is_dir())])
    more = {"eval": ["--task", "coco", "--data", "no"], "finetune": ["--method", "fare", "--images", "no"]}[command]
    said = cli.refused(command, "no-such-model", *more, "--out", kept / "out", "--report-to", "wandb")
    assert said == "error: --report-to wandb needs the library wandb: pip install wandb\n"
    assert not (kept / "out").exists()


@needs_tensorboard
def test_a_tracker_that_fails_is_told_once_and_stops_no_work(kept: Path) -> None:
    told: list[str] = []
    tracker = Tracker("tensorboard", kept / "tuned", {}, told.append)
    for step in range(2):
        tracker.log({"loss": {"of": "no number"}}, step)  # type: ignore[dict-item]
    tracker.log({"loss": 1.0}, 2)
    assert len(told) == 1
    assert told[0].startswith("note: tensorboard takes no more, the work goes on without it: ")


@needs_tensorboard
def test_a_tracker_that_cannot_begin_is_one_line(kept: Path) -> None:
    (kept / "tensorboard").write_text("a file in its place")
    with one_line("--report-to tensorboard: "):
        Tracker("tensorboard", kept / "out", {})
