"""How the command begins and ends: quietly, whatever becomes of its streams, and whenever it is stopped."""

import os
import signal
import subprocess
import sys
import tomllib

import pytest

from lvlm_radapt.cli.placing import device_named
from tests.helpers.failures import one_line
from tests.helpers.paths import ROOT
from tests.helpers.slow import slow

COMMAND = [sys.executable, "-m", "lvlm_radapt"]
# Ctrl-C comes when the named module is looked for.
STOPPED = """
import os, signal, sys
module = sys.argv.pop(1)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from lvlm_radapt.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["torch", *map(slow, ("lvlm_radapt.cli", "typer", "rich.console", "transformers"))])
def test_a_stop_while_modules_are_imported_is_one_line(module, tmp_path):
    words = ["robustify", "tiny-clip", "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", STOPPED, module, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_the_installed_command_begins_before_anything_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"lvlm-radapt": "lvlm_radapt.__main__:main"}
    code = "import sys; before = set(sys.modules); import lvlm_radapt.__main__; print(*sorted({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"typer", "rich", "pydantic", "torch", "lvlm_radapt.cli"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "unbuffered"), [(["--version"], ""), slow(["list", "models"], ""), slow(["list", "models"], "1")]
)
def test_a_stdout_without_room_is_one_line(words, unbuffered):
    if not os.path.exists("/dev/full"):
        pytest.skip("the system has no device that is always full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: cannot write to stdout: No space left on device\n"


@pytest.mark.parametrize("words", [slow(["list", "models"]), ["--help"]])
def test_a_reader_that_has_seen_enough_ends_it_quietly(words):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.slow
def test_a_reader_of_the_log_that_has_seen_enough_ends_it_quietly(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    words = ["tune", "tiny-llava", "--task", "coco", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run([*COMMAND, *words, "--log-json", "-"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("words", "code"), [slow("list models", 0), ("list nothing", 2)])
def test_closed_streams_change_nothing(words, code):
    closing = f"exec {' '.join(COMMAND)} {words} <&- >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", closing]).returncode == code


@pytest.mark.parametrize("name", ["mps", "meta", "xpu", "gpu", "", "cuda:-1"])
def test_devices_that_are_none_are_refused(name):
    with one_line("--device"):
        device_named(name)
