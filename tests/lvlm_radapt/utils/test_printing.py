"""What reaches the terminal: text as it is, with nothing in it that drives the terminal."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from rich.table import Table
from rich.text import Text

import lvlm_radapt
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.utils.printing import PlainConsole, readable
from lvlm_radapt.utils.progress import bars
from tests.helpers.cli import Cli

EVIL = "a\x1b]0;pwned\x07b\x9b31mcd\u202ee\udcff\ud800[/b][red]:x:"
SAFE = r"a\x1b]0;pwned\x07b\x9b31mcd\u202ee\xff\ud800[/b][red]:x:"


def test_characters_that_drive_a_terminal_are_escaped() -> None:
    assert readable(EVIL) == SAFE
    text = "tab\tline\nend, \u4e2d\u6587, e\u0301, \U0001f600, \u0627\u0644"
    assert readable(text) == text
    assert readable(readable(EVIL)) == SAFE


BARE = SAFE.replace(r"\x07", "")  # rich itself drops a few characters of its texts


def as_text(console: PlainConsole) -> None:
    console.print(Text(EVIL))


def as_bar(console: PlainConsole) -> None:
    with bars(console) as announce:
        announce(EVIL, 2)(1, EVIL)


def as_table(console: PlainConsole) -> None:
    table = Table(EVIL, title=EVIL, caption=EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    console.print(table)


@pytest.mark.parametrize(
    "show", [lambda console: console.print(EVIL), lambda console: console.tell(EVIL), as_text, as_bar, as_table]
)
@pytest.mark.parametrize("terminal", [True, False])
def test_all_that_is_printed_is_plain(show: Callable[[PlainConsole], None], terminal: bool) -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=400, force_terminal=terminal)
    show(console)
    said = file.getvalue()
    assert (SAFE in said or BARE in said) == (terminal or show is not as_bar)
    assert not set("\x07\x9b\u202e\udcff\ud800") & set(said)
    assert "\x1b]" not in said


def test_escapes_are_part_of_a_table_s_width() -> None:
    file = io.StringIO()
    table = Table("name", "x")
    for name in ("\x1b" * 5, "b"):
        table.add_row(name, "1")
    PlainConsole(file=file, width=80).print(table)
    assert len({len(line) for line in file.getvalue().splitlines()}) == 1


NAMES = ["x[/b] [red]y :x: z", "esc\x1b]0;pwned\x07 not utf-8 \udcff"]


def run(*words: object, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, which the system gives its words."""
    command = [sys.executable, "-m", "lvlm_radapt", *(os.fsencode(str(word)) for word in words)]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=120)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_told_as_they_are(name: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = cli.done("data", "scenes", "--out", name, "--count", 2, "--per-class", 0)
    missing = cli.refused("chat", "tiny-llava", "--image", f"{name}.png")
    assert (tmp_path / name).is_dir()
    for said in (told, missing):
        assert readable(name) in said
        assert not set("\x1b\x07\udcff") & set(said)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(name: str, tmp_path: Path) -> None:
    shown = readable(name).encode()
    done = run("data", "scenes", "--out", name, "--count", 2, "--per-class", 0, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown in done.stdout
    assert (tmp_path / name).is_dir()
    missing = run("chat", "tiny-llava", "--image", f"{name}.png", folder=tmp_path)
    assert (missing.returncode, missing.stdout, missing.stderr.count(b"\n")) == (2, b"", 1)
    assert shown in missing.stderr
    for said in (done.stdout, missing.stderr):
        assert not set(b"\x1b\x07\xff") & set(said)


@pytest.mark.slow
def test_a_run_may_have_names_that_are_not_utf_8(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data\udcff", count=2)
    words = ["tiny-llava", "--task", "coco", "--data", "data\udcff", "--attack", "none", "--preset", "scenes"]
    done = run("eval", *words, "--samples", 2, "--out", "run\udcff<b>[/b]", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"report: run\xff<b>[/b]/report.html" in done.stdout
    page = (tmp_path / "run\udcff<b>[/b]" / "report.html").read_text(encoding="utf-8")
    assert "<b>[/b]" not in page
    assert "&lt;b&gt;[/b]" in page
    again = run("eval", *words, "--samples", 2, "--out", "run\udcff<b>[/b]", "--resume", folder=tmp_path)
    assert (again.returncode, again.stderr) == (0, b"")


@pytest.mark.parametrize("of", ["class", "file"])
def test_texts_that_no_record_can_hold_are_refused_in_one_line(tmp_path: Path, of: str, cli: Cli) -> None:
    for name in ("red", "blue\udcff" if of == "class" else "blue"):
        (tmp_path / "set" / name).mkdir(parents=True)
        picture = "0\udcff.png" if of == "file" else "0.png"
        Image.new("RGB", (56, 56)).save(tmp_path / "set" / name / picture)
    data, out = tmp_path / "set", tmp_path / "run"
    said = cli.refused("eval", "tiny-clip", "--task", "imagefolder", "--data", data, "--out", out)
    assert "is not UTF-8: rename the file or its class" in said
    assert r"\xff" in said or r"\udcff" in said
    assert not (tmp_path / "run").exists()


def test_nothing_prints_past_it() -> None:
    root = Path(lvlm_radapt.__file__).parents[1]
    files = [file for package in ("lvlm_radapt", "eval_tasks", "attacks") for file in (root / package).rglob("*.py")]
    assert files
    consoles = re.compile(r"(?<!Plain)\bConsole\(|markup=True|\brich\.print\b|from rich import print")
    past = [file.name for file in files if consoles.search(file.read_text(encoding="utf-8"))]
    assert past == []
