"""What a killed command left, and what a launcher or a file system puts around a command: gone on with, or one line."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from lvlm_radapt.utils.leftovers import aside_of
from tests.helpers.cases import Case, Place, evaluated, listing
from tests.helpers.cli import Cli

SCENES = ("data", "scenes", "--count", "2", "--per-class", "0", "--out")


def scenes(put: Callable[[Path], object], words: str) -> Case:
    """`data scenes` to a place where `put` put something."""

    def arrange(at: Place) -> list[str]:
        put(at.out)
        return [*SCENES, str(at.out)]

    return arrange, words


def holding(*names: str) -> Callable[[Path], object]:
    """A folder with these files in it."""

    def put(out: Path) -> None:
        out.mkdir()
        for name in names:
            (out / name).write_text("mine")

    return put


def linked(to: str) -> Callable[[Path], object]:
    """A link to a folder with a file in it."""

    def put(out: Path) -> None:
        holding("mine")(out.parent / to)
        out.symlink_to(to)

    return put


def socketed(out: Path) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(out))


# --- after a kill

KILLED: dict[str, Case] = {
    "a folder with a user's file": scenes(holding("mine"), "is not empty"),
    "a user's file beside a killed command's": scenes(holding("mine", f".7.{'a' * 16}.tmp"), "is not empty"),
    **{
        f"a user's {name}": scenes(holding(name), "is not empty")
        for name in (".7.x.tmp", "7.0123456789abcdef.tmp", ".x.0123456789abcdef.tmp", ".7.0123456789abcdef.tmp.bak")
    },
    "a link to a folder with a user's file": scenes(linked("other"), "is not empty"),
    "a link to itself": scenes(lambda out: out.symlink_to(out.name), "is a link that leads nowhere"),
    "a file": scenes(lambda out: out.write_text("mine"), "is a file"),
    "a pipe": scenes(os.mkfifo, "is a file"),
    "a socket": scenes(socketed, "is a file"),
    "a folder in a file": (lambda at: [*SCENES, write(at.tmp / "file") / "a" / "b"], "is a file"),
    "a name that is too long": (lambda at: [*SCENES, at.tmp / ("x" * 300)], "File name too long"),
    "a folder of the system": (lambda at: [*SCENES, "/proc/self/new"], "cannot write /proc/self/new"),
    "a device": (lambda at: [*SCENES, "/dev/null"], "is a file"),
    "a run begun with other flags": (
        lambda at: [*evaluated({"--seed": "3"}, "")[0](at)[:-2], "--out", holding_run(at), "--resume"],
        "has no run.json|is damaged",
    ),
}


def write(path: Path) -> Path:
    path.write_text("mine")
    return path


def holding_run(at: Place) -> Path:
    """A run folder whose first document a full disk cut off."""
    holding("run.json")(at.tmp / "run")
    return at.tmp / "run"


LEFT: dict[str, Callable[[Path], object]] = {
    "a file of a killed command": holding(f".7.{'0' * 16}.tmp"),
    "a folder of a killed command": lambda out: (out / f".7.{'0' * 16}.tmp").mkdir(parents=True),
    "a lock": holding(".lock"),
    "what it was itself writing": lambda out: aside_of(out).mkdir(parents=True),
    "an empty folder": holding(),
    "a link to an empty folder": lambda out: [(out.parent / "real").mkdir(), out.symlink_to("real")],
    "a link to a link": lambda out: [
        (out.parent / "real").mkdir(), (out.parent / "way").symlink_to("real"), out.symlink_to("way")
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_a_killed_command_left_is_no_hindrance(name: str, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    LEFT[name](out)
    linked_before = out.is_symlink()
    code, _, err = cli(*SCENES, out)
    assert (code, err) == (0, "")
    assert out.is_symlink() == linked_before
    assert {path.name for path in out.iterdir()} >= {"annotations", "val2014"}
    assert not [path for path in listing(tmp_path) if path.endswith(".tmp") and "0" * 16 not in path]


# --- the environment

RIGHT = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
LAUNCHED: dict[str, tuple[dict[str, str], str]] = {
    f"{name}={value!r}": ({name: value}, name)
    for name, value in (
        *(("WORLD_SIZE", value) for value in ("0", "-1", "x", "2.0", "1e3")),
        *(("RANK", value) for value in ("2", "5", "-1", "x", "", "0x1")),
        *(("MASTER_PORT", value) for value in ("x", "-1", "65536", "")),
    )
}
DEVICES = ("mps", "meta", "xpu", "gpu", "cuda:99", "cuda:-1", "cpu:x", "cuda:", "", " ", "cpu\n")


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_launch_that_cannot_be_is_one_line(
    name: str, refused: Callable[[Case], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, words = LAUNCHED[name]
    for key, value in (RIGHT | changed).items():
        monkeypatch.setenv(key, value)
    case: Case = (lambda at: [*SCENES, at.out], words)
    refused(case)


SURROUNDED: dict[str, Case] = KILLED | {
    f"a device {name!r}": evaluated({"--device": name}, "--device") for name in DEVICES
}


@pytest.mark.parametrize("name", SURROUNDED)
def test_what_is_in_the_way_is_one_line(name: str, refused: Callable[[Case], str]) -> None:
    refused(SURROUNDED[name])
