"""Faults on purpose, in real processes: nothing is lost, nothing counts twice, and the exit code tells."""

import json
import random
import shlex
import shutil
import signal
import statistics
import time
from pathlib import Path

import pytest

from eval_tasks.run.records import RunFolder, image_name, read_run
from tests.helpers.commands import Command, contents, evaluation
from tests.helpers.data_sets import scenes_folder
from tests.helpers.slow import slow

FLUSHES = 47  # of an undisturbed run: where it can be killed


data = scenes_folder(count=8)


@pytest.fixture(scope="module")
def whole(data) -> Path:
    """An undisturbed run."""
    out = data.parent / "whole"
    command = Command(evaluation("tiny-llava", data, out), data.parent / "logs")
    assert command.wait() == 0, command.err
    assert command.err == ""  # quiet: no terminal, no bar
    return out


def _finish(words: list[str], logs: Path, out: Path, whole: Path) -> None:
    """Resume without faults, and compare with the undisturbed run."""
    last = Command([*words, "--resume"], logs)
    assert last.wait() == 0, last.err
    assert contents(out) == contents(whole)


def _survive_kills(kills: int, draw: random.Random, data: Path, whole: Path, tmp_path: Path, survived) -> None:
    """SIGKILL at random flushes and after random times, resumed each time; a run that ends is compared, and another
    is begun."""
    out, killed = tmp_path / "cut", 0
    safe: set[str] = set()
    words = evaluation("tiny-llava", data, out)
    while killed < kills:
        by_flush = draw.random() < 0.6
        fault = {"signal": signal.SIGKILL, "at_fsync": draw.randint(1, FLUSHES)} if by_flush else {}
        command = Command([*words, "--resume"], tmp_path / "logs", fault)
        if not by_flush:
            time.sleep(draw.uniform(0, 6))
            command.kill()
        code = command.wait()
        assert code in (0, -signal.SIGKILL), command.err
        killed += code != 0
        if (out / "run.json").exists():
            folder = RunFolder(out)
            lost = safe - folder.done_ids() | set(folder.unsound_images())  # whose line is there, its image is
            survived("samples lost", len(lost))
            assert not lost
            safe = folder.done_ids()
        if code == 0:
            assert contents(out) == contents(whole)
            shutil.rmtree(out)
            safe = set()
    _finish(words, tmp_path / "logs", out, whole)
    survived("kills survived", killed)


def test_a_run_killed_anywhere_is_resumed_to_the_same_bits(data, whole, tmp_path, survived):
    _survive_kills(1, random.Random(2), data, whole, tmp_path, survived)


@pytest.mark.slow
def test_many_kills_change_nothing(data, whole, tmp_path, survived):
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")  # pytest shows it when the test fails
    _survive_kills(20, random.Random(seed), data, whole, tmp_path, survived)


@pytest.mark.parametrize(("number", "code"), [slow(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(data, whole, tmp_path, number, code):
    out, log = tmp_path / "run", tmp_path / "log.jsonl"
    words = evaluation("tiny-llava", data, out, "--log-json", str(log))
    command = Command(words, tmp_path / "logs", {"signal": number, "at_fsync": 24})
    assert command.wait() == code, command.err
    assert len(command.err.splitlines()) == 1, command.err
    assert f"stopped; {len(RunFolder(out).done_ids())} of 8 samples are saved" in command.err
    assert 0 < len(RunFolder(out).done_ids()) < 8
    again = Command(shlex.split(command.err.split("go on with: lvlm-radapt ")[1]), tmp_path / "logs")
    assert again.wait() == 0, again.err
    assert contents(out) == contents(whole)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    ends = [(e["status"], e.get("signal")) for e in events if e["event"] == "end"]
    assert ends == [("stopped", number.name), ("finished", None)]
    chunks = [e for e in events if e["event"] == "chunk"]
    assert sorted(e["chunk"] for e in chunks) == [0, 1, 2, 3]
    assert (chunks[-1]["done"], chunks[-1]["total"]) == (8, 8)
    assert chunks[-1]["adversarial"] == pytest.approx(read_run(out).metrics["adversarial"]["vqa_accuracy"])
    assert all(e["rate"] > 0 for e in chunks)


@pytest.mark.slow
def test_a_second_launch_of_a_running_run_is_refused(data, whole, tmp_path):
    out = tmp_path / "run"
    words = [*evaluation("tiny-llava", data, out), "--resume"]
    first = Command(words, tmp_path / "logs", {"slow": 0.1})
    while not (out / "run.json").exists():
        time.sleep(0.01)
    second = Command(words, tmp_path / "logs")
    assert second.wait() == 2
    assert len(second.err.splitlines()) == 1, second.err
    assert f"{out} is in use by process " in second.err
    assert first.wait() == 0, first.err
    assert contents(out) == contents(whole)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_full_disk_is_one_line_and_resumable(data, whole, tmp_path):
    out = tmp_path / "run"
    words = evaluation("tiny-llava", data, out)
    room = int(statistics.median(path.stat().st_size for path in (whole / "images").iterdir()))
    command = Command(words, tmp_path / "logs", {"largest_file": room})
    assert command.wait() == 2
    assert len(command.err.splitlines()) == 1, command.err
    assert "File too large; make room and go on with: lvlm-radapt eval " in command.err
    assert len(RunFolder(out).done_ids()) < 8
    _finish(words, tmp_path / "logs", out, whole)


@pytest.mark.slow
def test_memory_for_one_image_at_a_time_gives_the_same_results(data, whole, tmp_path):
    out = tmp_path / "run"
    command = Command(evaluation("tiny-llava", data, out), tmp_path / "logs", {"largest_batch": 1})
    assert command.wait() == 0, command.err
    made, wanted = contents(out), contents(whole)
    assert made["metrics"]["adversarial"] == wanted["metrics"]["adversarial"]
    for one, other in zip(made["samples"], wanted["samples"], strict=True):
        assert one["id"] == other["id"]
        assert one["adversarial"]["output"] == other["adversarial"]["output"]
        # another batch size is another order of sums, and signs of gradients near zero may turn
        assert one["adversarial"]["loss"] == pytest.approx(other["adversarial"]["loss"], rel=0.02)


@pytest.mark.slow
def test_memory_for_no_image_at_all_is_one_line(data, tmp_path):
    command = Command(evaluation("tiny-llava", data, tmp_path / "run"), tmp_path / "logs", {"largest_batch": 0})
    assert command.wait() == 1
    assert len(command.err.splitlines()) == 1, command.err
    size = "a canvas of 112x112 px, 64 image tokens"
    assert f"out of memory, even for one image ({size}); 0 of 8 samples are saved" in command.err
    assert "--max-pixels" in command.err


@pytest.mark.slow
def test_losses_that_are_no_numbers_are_counted(data, whole, tmp_path):
    out = tmp_path / "run"
    question = read_run(whole).samples[-1].question
    hit = {record.id for record in read_run(whole).samples if question in record.question}
    assert not hit >= {record.id for record in read_run(whole).samples[:2]}  # a first chunk of failures ends a run
    command = Command(evaluation("tiny-llava", data, out), tmp_path / "logs", {"not_a_number": question})
    assert command.wait() == 0, command.err
    run = read_run(out)
    assert {record.id for record in run.samples if record.adversarial.failed} == hit
    assert (run.metrics["failed"], run.metrics["n"]) == (len(hit), 8)
    assert f"{len(hit)} samples failed" in command.out


@pytest.mark.slow
def test_an_image_damaged_midway_is_named_and_nothing_counts_twice(data, whole, tmp_path):
    from eval_tasks.data import load_task

    last = read_run(whole).samples[-1].id
    path = next(s.image for s in load_task("vqav2", data) if s.id == last)
    good, out = path.read_bytes(), tmp_path / "run"
    words = evaluation("tiny-llava", data, out)
    command = Command(words, tmp_path / "logs", {"slow": 0.05})
    while not (out / "run.json").exists():
        time.sleep(0.01)
    path.write_bytes(good[: len(good) // 2])
    try:
        assert command.wait() == 2
        assert len(command.err.splitlines()) == 1, command.err
        assert str(path) in command.err
        assert 0 < len(RunFolder(out).done_ids()) < 8
    finally:
        path.write_bytes(good)
    _finish(words, tmp_path / "logs", out, whole)


@pytest.mark.slow
def test_a_saved_image_damaged_midway_is_named_and_made_again(data, whole, tmp_path):
    out = tmp_path / "run"
    words = evaluation("tiny-llava", data, out)
    stopped = Command(words, tmp_path / "logs", {"signal": signal.SIGKILL, "at_fsync": 35})
    assert stopped.wait() == -signal.SIGKILL
    first = read_run(whole).samples[0].id
    image = out / "images" / image_name(first)
    good = image.read_bytes()
    image.write_bytes(good[:-20] + bytes([good[-20] ^ 1]) + good[-19:])
    again = Command([*words, "--resume"], tmp_path / "logs")
    assert again.wait() == 0, again.err
    made, wanted = contents(out), contents(whole)
    notes, usual = made["metrics"].pop("notes"), wanted["metrics"].pop("notes")
    remade = f"1 saved images were damaged or missing, and made again (first: sample {first})"
    assert sorted(notes) == sorted([*usual, remade])
    assert made == wanted
