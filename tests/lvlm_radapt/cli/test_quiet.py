"""The commands print no warning, neither ours nor a library's.

Real processes: one that has imported before hides some.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.slow import slow

ATTACK = ["--attack", "e2e", "--eps", "4/255", "--steps", "2", "--samples", "2", "--device", "cpu"]
COMMANDS = {
    "robustify": ["robustify", "tiny-llava", "--out", "OUT", "--device", "cpu"],
    "robustify --export": ["robustify", "tiny-qwen", "--out", "OUT", "--device", "cpu", "--export"],
    "eval": ["eval", "tiny-qwen", "--task", "vqav2", "--data", "SCENES", *ATTACK, "--out", "OUT"],
    "chat": ["chat", "tiny-llava", "--image", "IMAGE", "--device", "cpu"],
    "finetune": [
        *("finetune", "tiny-clip", "--method", "fare", "--images", "SCENES/val2014", "--out", "OUT"),
        *("--steps", "2", "--batch-size", "4", "--device", "cpu"),
    ],
}
"""OUT, SCENES and IMAGE stand for paths."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lvlm_radapt.embedded.dataset import write_scenes

    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, count=12)
    return folder


@pytest.mark.parametrize("name", [name if name == "eval" else slow(name) for name in COMMANDS])
def test_no_command_prints_a_warning(name: str, scenes: Path, tmp_path: Path) -> None:
    image = sorted((scenes / "val2014").iterdir())[0]
    paths = {"OUT": tmp_path / "out", "SCENES": scenes, "IMAGE": image, "SCENES/val2014": scenes / "val2014"}
    words = [str(paths.get(word, word)) for word in COMMANDS[name]]
    done = subprocess.run(
        [sys.executable, "-m", "lvlm_radapt", *words],
        input="what is this\n/attack eps=4/255 steps=1\n" if name == "chat" else "",
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"},
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
