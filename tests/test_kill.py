"""A real process, killed for real: what `--resume` gives is what an undisturbed run gives."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_checkpoints import save_llava

from eval_tasks.records import read_run
from lvlm_radapt.tiny.dataset import write_scenes


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("kill")
    write_scenes(root / "scenes", count=6)
    save_llava(root / "llava")
    return [
        sys.executable, "-m", "lvlm_radapt.cli", "eval", str(root / "llava"), "--task", "coco", "--preset", "scenes",
        "--data", str(root / "scenes"), "--attack", "e2e", "--eps", "8/255", "--steps", "10", "--chunk-size", "2",
        "--batch-size", "2",
    ]  # fmt: skip


def _run(command: list[str], out: Path, *, resume: bool = False) -> subprocess.Popen[bytes]:
    extra = ["--out", str(out), *(["--resume"] if resume else [])]
    return subprocess.Popen([*command, *extra], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _lines(out: Path) -> int:
    return sum(part.read_bytes().count(b"\n") for part in out.glob("parts/*.jsonl"))


def _compare(command: list[str], tmp_path: Path, kills: list[int]) -> None:
    """Kill once a run has `kills[i]` samples on disk (and a little later), resume, and compare the end."""
    whole = _run(command, tmp_path / "whole")
    assert whole.wait(120) == 0, whole.stderr.read()
    for number, (after, delay) in enumerate(zip(kills, (0.0, 0.02, 0.1) * len(kills), strict=False)):
        process = _run(command, tmp_path / "cut", resume=number > 0)
        while process.poll() is None and _lines(tmp_path / "cut") < after:
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = _run(command, tmp_path / "cut", resume=True)
    assert last.wait(120) == 0, last.stderr.read()
    whole_run, cut_run = read_run(tmp_path / "whole"), read_run(tmp_path / "cut")
    assert [r.model_copy(update={"seconds": 0.0}) for r in cut_run.samples] == [
        r.model_copy(update={"seconds": 0.0}) for r in whole_run.samples
    ]
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("whole", "cut")]
    assert {**metrics[0], "seconds": 0} == {**metrics[1], "seconds": 0}


def test_a_killed_run_is_resumed_to_the_same_numbers(command, tmp_path):
    _compare(command, tmp_path, [3])


@pytest.mark.torture
def test_many_kills_change_nothing(command, tmp_path):
    draw = random.Random(0)
    _compare(command, tmp_path, [draw.randint(0, 5) for _ in range(20)])
