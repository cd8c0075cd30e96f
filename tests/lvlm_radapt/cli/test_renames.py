"""Every command that writes a folder is killed where it renames a file: it goes on to the same bits, or begins anew."""

import json
import random
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from lvlm_radapt.utils.leftovers import is_own
from tests.helpers.commands import Command, Fault
from tests.helpers.data_sets import scenes_folder
from tests.helpers.slow import slow

ROWS = [
    {"name": "none"},
    {"name": "learned", "radapt": {"anchor": "learned"},
     "learn": {"set": "train", "images": 12, "steps": 2, "batch": 2}},
    {"name": "tuned", "finetune": {"method": "fare", "recipe": "scenes", "set": "train", "images": 12, "steps": 2,
                                   "batch": 2}},
]  # fmt: skip
SHORT_ROWS = [{"name": "none"}, {"name": "filter", "radapt": {"cutoff": 40, "alpha": 0}}]
COMPARISON = {
    "name": "small", "description": "few scenes", "protocol": "scenes", "samples": 2, "steps": 1, "eps": ["8/255"],
    "sets": {"test": {"split": "test"}, "train": {"split": "train"}},
    "columns": [{"title": "VQA", "task": "vqav2", "model": "tiny-llava", "set": "test", "attack": "e2e"}],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """words: of the command, given the data and a comparison's file; resume: what makes it go on. fault: what all
    its processes have."""

    words: Callable[[Path, Path], list[str]]
    resume: tuple[str, ...] = ("--resume",)
    fault: Fault = field(default_factory=dict)


def _analysis(data: Path, *more: str) -> list[str]:
    images = ["--images", str(data / "val2014"), "--image-count", "2", "--steps", "1"]
    return ["analyze", "tiny-clip", "--guide", "tiny-clip-fare", *images, *more]


SHORT = {
    "compare": Case(lambda _, own: ["compare", str(own)]),
    "tune": Case(
        lambda data, _: ["tune", "tiny-llava", "--task", "vqav2", "--data", str(data), "--cutoffs", "40", "--alphas",
                         "1", "--mixes", "interpolate", "--samples", "2", "--steps", "1"],
    ),
    "analyze": Case(lambda data, _: _analysis(data), ()),
    "demo": Case(lambda *_: ["demo", "--samples", "2", "--steps", "1"], (), {"short": True}),
    "finetune": Case(
        lambda data, _: ["finetune", "tiny-clip", "--method", "fare", "--images", str(data / "val2014"), "--steps", "3",
                         "--batch-size", "2"],
        fault={"saving": True},
    ),
    "robustify": Case(
        lambda data, _: ["robustify", "tiny-clip", "--anchor", "learned", "--images", str(data / "val2014"),
                         "--learn-steps", "2", "--learn-batch", "2"],
        fault={"saving": True},
    ),
}  # fmt: skip
LONG = SHORT | {
    "compare": Case(SHORT["compare"].words, fault={"saving": True}),
    "analyze": Case(
        lambda data, _: _analysis(data, "--task", "imagefolder", "--data", str(data / "classes"), "--samples", "2"), (),
    ),
    "demo": Case(SHORT["demo"].words, ()),
}  # fmt: skip


data = scenes_folder(count=6, per_class=1, split="validation")


def made(out: Path) -> dict[str, Any]:
    """All that a command wrote, but for when, in how long and by which words."""
    files = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            content: Any = path.read_bytes()
            if path.suffix in (".json", ".jsonl"):
                content = [_timeless(json.loads(text)) for text in _documents(path, content)]
            elif path.suffix == ".html":  # durations and dates stand in lines of their own
                lines = content.decode().replace(str(out), "OUT").replace(" --resume", "").splitlines()
                content = [line for line in lines if not re.search(r"\d\d:\d\d:\d\d|seconds|\d s\b|\bSHA", line)]
            files[path.relative_to(out).as_posix()] = content
    return files


def _documents(path: Path, content: bytes) -> list[bytes]:
    return content.splitlines() if path.suffix == ".jsonl" else [content]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        left = {"seconds", "created", "command", "resumed", "data", "checksum"}
        return {key: _timeless(one) for key, one in value.items() if key not in left}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


class Trial:
    """One command, whole once; then killed and gone on with."""

    def __init__(self, case: Case, data: Path, folder: Path) -> None:
        own = folder / "own.yaml"
        own.write_text(yaml.safe_dump({**COMPARISON, "rows": ROWS if case.fault else SHORT_ROWS}))
        self._case, self._folder, self._words = case, folder, case.words(data, own)
        self.out = folder / "out"
        counted = folder / "renames"
        assert self.run({"renames": str(counted)}) == 0
        self.renames = len(counted.read_bytes())
        self.whole = made(self.out)
        shutil.rmtree(self.out)

    def run(self, fault: Fault, *more: str) -> int:
        words = [*self._words, *more, "--out", str(self.out), "--device", "cpu"]
        self.last = Command(words, self._folder / "logs", {**self._case.fault, **fault})
        return self.last.wait(300)

    def kill(self, at: int, *, done: bool, again: bool) -> bool:
        """Whether it was killed, and had not ended before that rename."""
        code = self.run({"signal": signal.SIGKILL, "at_rename": at, "done": done}, *self._case.resume * again)
        assert code in (0, -signal.SIGKILL), self.last.err
        return code != 0

    def finish(self) -> None:
        """Go on to the end."""
        assert self.run({}, *self._case.resume) == 0, self.last.err
        self.compare()

    def compare(self) -> None:
        """The same bits, and nothing of a killed process is left."""
        assert made(self.out) == self.whole
        around = [path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if is_own(path)]
        assert around == []
        assert sorted(path.name for path in self._folder.iterdir()) == ["logs", "out", "own.yaml", "renames"]
        shutil.rmtree(self.out)


@pytest.mark.parametrize("name", [name if name == "finetune" else slow(name) for name in SHORT])
@pytest.mark.parametrize("last", [slow(False), True])
def test_a_command_killed_at_a_rename_goes_on_to_the_same_bits(name, last, data, tmp_path, survived):
    trial = Trial(SHORT[name], data, tmp_path)
    # of what is written whole at the end, the last rename makes it so
    done = last and name in ("finetune", "robustify")
    assert trial.kill(trial.renames if last else 1, done=done, again=False)
    survived("kills at renames survived")
    trial.finish()


@pytest.mark.slow
def test_a_demo_that_is_stopped_says_how_to_go_on(data, tmp_path):
    trial = Trial(SHORT["demo"], data, tmp_path)
    assert trial.run({"signal": signal.SIGTERM, "at_rename": 1}) == 128 + signal.SIGTERM
    assert len(trial.last.err.splitlines()) == 1, trial.last.err
    advised = shlex.split(trial.last.err.split("go on with: lvlm-radapt ")[1])
    again = Command(advised, tmp_path / "logs", SHORT["demo"].fault)
    assert again.wait(300) == 0, again.err
    trial.compare()


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_many_kills_at_renames_change_nothing(name, data, tmp_path, survived):
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # pytest shows it when the test fails
    draw = random.Random(seed)
    trial = Trial(LONG[name], data, tmp_path)
    killed, again = 0, False
    while killed < 20:
        # few renames a process, so that many are killed before one run is whole
        again = trial.kill(draw.randint(1, max(2, trial.renames // 6)), done=draw.random() < 0.3, again=again)
        killed += again
        if not again:
            trial.compare()
    if again:
        trial.finish()
    survived("kills at renames survived", killed)
