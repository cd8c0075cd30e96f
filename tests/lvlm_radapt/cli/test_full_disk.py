"""A disk that fills up ends a command in one line, and what was finished is kept."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.helpers.commands import Command
from tests.helpers.data_sets import scenes_folder

data = scenes_folder(count=6)


def _resize(point: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(point)], check=True)


def _advised(command: Command) -> list[str]:
    """The words of the command that the one line advises."""
    assert len(command.err.splitlines()) == 1, command.err
    return shlex.split(command.err.split("go on with: lvlm-radapt ")[1].split("; ")[0])


@pytest.mark.slow
def test_training_that_ended_is_kept_where_the_model_finds_no_room(data, mounted, tmp_path):
    words = ["finetune", "tiny-clip", "--method", "fare", "--images", str(data / "val2014"), "--steps", "2"]
    words += ["--batch-size", "2", "--device", "cpu", "--out"]
    whole = Command([*words, str(tmp_path / "whole")], tmp_path / "logs")
    assert whole.wait(300) == 0, whole.err
    _resize(mounted, "20m")  # the state of the training takes 15 of them, the model 8
    command = Command([*words, str(mounted / "out")], tmp_path / "logs")
    assert command.wait(300) == 2
    assert "make room and go on with: lvlm-radapt finetune " in command.err
    assert [path.name for path in mounted.iterdir()] == ["out.training"]
    _resize(mounted, "64m")
    again = Command(_advised(command), tmp_path / "logs", {"largest_batch": 0})
    assert again.wait(300) == 0, again.err
    assert [path.name for path in mounted.iterdir()] == ["out"]
    for name in ("model.safetensors", "training.json"):
        assert (mounted / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        "finetune tiny-clip --method fare --images DATA/val2014 --steps 2 --batch-size 2 --out OUT",
        "robustify tiny-llava --export --out OUT",
        "robustify tiny-qwen --fold --out OUT",
        "robustify tiny-clip --anchor learned --images DATA/val2014 --learn-steps 1 --learn-batch 2 --export --out OUT",
    ],
)
def test_a_disk_that_has_no_room_for_the_weights_is_told_before_any_work(words, data, mounted, tmp_path):
    words = words.replace("DATA", str(data)).replace("OUT", str(mounted / "out"))
    command = Command([*words.split(), "--device", "cpu"], tmp_path / "logs")
    assert command.wait(300) == 2
    assert len(command.err.splitlines()) == 1, command.err
    assert list(mounted.iterdir()) == []
    if "--export --out" not in words or "llava" in words:
        assert "it takes at least" in command.err


def test_an_exported_model_is_there_whole_or_not_at_all(tmp_path):
    command = Command(
        ["robustify", "tiny-llava", "--export", "--device", "cpu", "--out", str(tmp_path / "out")],
        tmp_path / "logs", {"largest_file": 1_000_000},
    )  # fmt: skip
    assert command.wait(300) == 2
    assert len(command.err.splitlines()) == 1, command.err
    assert "File too large; make room" in command.err
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@pytest.mark.slow
def test_an_audit_that_cannot_be_written_is_on_the_screen(data, tmp_path):
    words = ["audit", "tiny-llava", "--task", "vqav2", "--data", str(data), "--samples", "2", "--steps", "1"]
    command = Command(
        [*words, "--device", "cpu", "--out", str(tmp_path / "out")], tmp_path / "logs", {"largest_file": 5000}
    )
    assert command.wait(300) == 2
    assert len(command.err.splitlines()) == 1, command.err
    assert "File too large; make room" in command.err
    assert "verdict: " in command.out
    assert "gradient" in command.out
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
