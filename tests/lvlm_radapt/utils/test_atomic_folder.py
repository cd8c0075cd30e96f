"""--out: every place that can be written works, what cannot is found out first, and a folder is there whole or not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eval_tasks.run.records import RunFolder
from lvlm_radapt.utils.atomic_folder import check_new_folder, check_own_folder, check_writable, claimed, new_folder
from lvlm_radapt.utils.errors import NoRoom, UserError
from lvlm_radapt.utils.leftovers import aside_of, is_own
from tests.helpers.failures import one_line


def _link(root: Path) -> Path:
    (root / "there").mkdir()
    (root / "link").symlink_to(root / "there")
    return root / "link"


def _here(root: Path) -> Path:
    (root / "here").mkdir()
    os.chdir(root / "here")
    return Path(".")


PLACES: dict[str, Callable[[Path], Path]] = {
    "missing": lambda root: root / "a" / "b",
    "empty": lambda root: (root / "empty").mkdir() or root / "empty",  # type: ignore[func-returns-value]
    "a link to an empty folder": _link,
    "the current folder": _here,
}


@pytest.mark.parametrize("name", PLACES)
def test_a_folder_is_filled_wherever_it_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = PLACES[name](tmp_path)
    _filled(out)
    assert out.is_symlink() == (name == "a link to an empty folder")


def test_a_mount_point_is_filled(mounted):
    _filled(mounted)


def _filled(out: Path) -> None:
    before = out.stat().st_ino if out.exists() else None
    with new_folder(out) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("deep")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == ["config.json", "deep", "deep/file"]
    assert before in (None, out.stat().st_ino)  # the folder itself is kept
    with one_line("is not empty"), new_folder(out):
        pass


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_nothing(there, tmp_path):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with pytest.raises(KeyError), new_folder(out) as folder:  # noqa: PT012
        shutil.copy(__file__, folder)
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["out"] * there


KILLED = """
import os, sys
from pathlib import Path
from lvlm_radapt.utils.atomic_folder import new_folder
number, whole = int(sys.argv[2]), os.rename
def killed(*words):
    global number
    number -= 1
    if number == 0:
        os._exit(9)
    whole(*words)
os.rename = os.replace = killed
with new_folder(sys.argv[1]) as folder:
    for name in "abc":
        (folder / name).write_text(name)
"""


@pytest.mark.parametrize(
    ("there", "number", "whole"), [(False, 1, False), (True, 1, False), (True, 2, True), (True, 4, True)]
)
def test_a_killed_process_leaves_all_or_nothing(there, number, whole, tmp_path):
    out = tmp_path / "out"
    if there:
        out.mkdir()
    assert subprocess.run([sys.executable, "-c", KILLED, str(out), str(number)]).returncode == 9
    assert any(map(is_own, [*tmp_path.iterdir(), *(out.iterdir() if there else [])]))
    if whole:  # what had begun to move is all there when it is next looked at
        with one_line("is not empty"):
            check_new_folder(out)
        assert sorted(path.name for path in out.iterdir()) == ["a", "b", "c"]
    else:
        with new_folder(out) as folder:
            (folder / "d").write_text("d")
        assert [path.name for path in out.iterdir()] == ["d"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    out = tmp_path / "out"
    with new_folder(out) as first:
        (first / "file").write_text("first")
        other = aside_of(out).with_name(first.name.replace(f".{os.getpid()}.", ".1."))
        first.rename(other)  # as if it were another process's; its lock goes with it
        with new_folder(out) as second:
            (second / "file").write_text("second")
        assert (other / "file").read_text() == "first"
        other.rename(first)
        shutil.rmtree(out)
    assert (out / "file").read_text() == "first"


def test_names_that_only_look_like_ours_are_a_users(tmp_path):
    names = [".notes.tmp", ".12.tmp", ".12.thesis.tex.tmp", "12.0123456789abcdef.tmp", ".my.lock"]
    for name in names:
        (tmp_path / name).write_text("mine")
    with one_line("holds other files"):
        check_own_folder(tmp_path, {"runs"})
    with claimed(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_what_a_killed_process_left_is_removed_under_the_lock(tmp_path):
    out = tmp_path / "out"
    (out / "runs" / "a").mkdir(parents=True)
    left = [aside_of(out / "plan.json"), aside_of(out / "runs" / "a" / "run.json"), aside_of(out / "data")]
    left[0].write_text("half")
    left[1].write_text("half")
    left[2].mkdir()
    check_own_folder(out, {"runs"})
    with claimed(out):
        with one_line("is in use by process"), claimed(out):
            pass
        assert not any(path.exists() for path in left)
    assert sorted(path.name for path in out.rglob("*")) == ["a", "runs"]


def test_a_claim_under_which_nothing_is_made_leaves_no_folder(tmp_path):
    with pytest.raises(UserError), claimed(tmp_path / "out"):
        raise UserError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_the_room_is_found_out_first(mounted):
    with one_line(r"it takes at least 5\.0 MB, and 2\.\d MB are free there; make room"):
        check_new_folder(mounted / "out", room=5_000_000)
    (mounted / "file").write_bytes(bytes(2**21))
    with pytest.raises(NoRoom, match="No space left on device; make room"):
        check_writable(mounted / "out")
    assert [path.name for path in mounted.iterdir()] == ["file"]


def test_a_disk_that_fills_up_is_one_line_whatever_writes(mounted):
    import torch
    from safetensors.torch import save_file

    big = {"a": torch.zeros(2_000_000)}
    for write in (lambda path: save_file(big, path), lambda path: torch.save(big, path)):
        with pytest.raises(NoRoom, match=r"cannot write .*; make room"), new_folder(mounted / "out") as folder:
            write(folder / "weights")
        assert list(mounted.iterdir()) == []


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a file": (lambda root: (root / "file").write_text("mine") and root / "file", "file is a file: choose another"),
    "below a file": (lambda root: (root / "file").write_text("mine") and root / "file" / "out", "file is a file"),
    "a link to nothing": (
        lambda root: (root / "link").symlink_to(root / "gone" / "x") or root / "link" / "out",  # type: ignore[func-returns-value]
        "link is a link that leads nowhere",
    ),
    "a system's folder": (lambda root: Path("/proc/lvlm-radapt"), "cannot write /proc/lvlm-radapt: "),
    "a name that is too long": (lambda root: root / ("x" * 300), "File name too long"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_one_line_at_once(name, tmp_path):
    make, expected = REFUSED[name]
    out = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with one_line(expected):
        check_writable(out)
    with one_line(expected):
        RunFolder(out).check(resume=True)
    assert sorted(tmp_path.rglob("*")) == before
