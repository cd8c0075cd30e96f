"""One launch at a time in a run folder: its processes share it, others are refused, and no death blocks it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lvlm_radapt.training.state import StateFile
from lvlm_radapt.utils import locking
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.locking import LOCK, Lock


def test_another_launch_is_refused_in_one_line(tmp_path: Path) -> None:
    with Lock.of_folder(tmp_path / "new" / "run") as first:
        first.claim()
        with (
            pytest.raises(
                UserError, match=rf"run is in use by process {os.getpid()} on \S+: wait until it ends"
            ) as caught,
            Lock.of_folder(tmp_path / "new" / "run") as second,
        ):
            second.claim()
        assert "\n" not in str(caught.value)
        assert (tmp_path / "new" / "run" / LOCK).is_file()  # a refused launch takes nothing with it
    assert list((tmp_path / "new" / "run").iterdir()) == []
    with Lock.of_folder(tmp_path / "new" / "run") as third:
        third.claim()


def test_a_folder_is_in_use_until_the_last_process_of_a_launch_has_left(tmp_path: Path) -> None:
    first, other, late = (Lock.of_folder(tmp_path) for _ in range(3))
    first.claim()
    other.share()
    first.release()  # it may have died
    with pytest.raises(UserError, match="in use"):
        late.claim()
    other.release()
    late.claim()
    late.release()
    assert list(tmp_path.iterdir()) == []


def test_a_launch_that_lost_its_folder_notices(tmp_path: Path) -> None:
    """Its first process died before the others came, and another launch was quicker."""
    first = Lock.of_folder(tmp_path)
    first.claim()
    first.release()
    os.close(os.open(tmp_path / LOCK, os.O_CREAT | os.O_RDWR))
    handle = os.open(tmp_path / LOCK, os.O_RDWR)
    locking.fcntl.flock(handle, locking.fcntl.LOCK_EX)
    with pytest.raises(UserError, match="in use by another process"):
        Lock.of_folder(tmp_path).share()
    os.close(handle)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_blocks_nothing(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import sys, time\nfrom lvlm_radapt.utils.locking import Lock\n"
        f"Lock.of_folder({str(tmp_path)!r}).claim()\nprint('mine', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mine\n"
        with pytest.raises(UserError, match=f"in use by process {process.pid} on "):
            Lock.of_folder(tmp_path).claim()
        process.send_signal(number)
    assert (tmp_path / LOCK).exists()
    with Lock.of_folder(tmp_path) as lock:
        lock.claim()
    assert not (tmp_path / LOCK).exists()


def test_many_at_once_take_turns(tmp_path: Path) -> None:
    """Each adds one to a file that it reads and writes; a lock that two hold would lose some."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom lvlm_radapt.utils.locking import Lock\n"
        "from lvlm_radapt.utils.errors import UserError\n"
        f"folder = Path({str(tmp_path)!r})\ndone = 0\n"
        "while done < 50:\n"
        "    try:\n"
        "        with Lock.of_folder(folder / 'run') as lock:\n"
        "            lock.claim()\n"
        "            count = int((folder / 'count').read_text())\n"
        "            time.sleep(0.0005)\n"
        "            (folder / 'count').write_text(str(count + 1))\n"
        "            done += 1\n"
        "    except UserError:\n"
        "        time.sleep(0.001)\n"
    )
    (tmp_path / "count").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "150"


def test_what_cannot_be_locked_is_no_error_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with Lock.of_folder(tmp_path / "file" / "run") as lock:  # whoever writes the run says what is wrong
        lock.claim()
        lock.share()
    monkeypatch.setattr(locking, "fcntl", None)
    with Lock.of_folder(tmp_path / "run") as first, Lock.of_folder(tmp_path / "run") as second:
        first.claim()
        second.claim()
        second.share()
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, kind: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locking.fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    with Lock.of_folder(tmp_path) as lock:
        lock.claim()
        lock.share()
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


def test_training_at_one_state_file_is_one_launch_s(tmp_path: Path) -> None:
    path = tmp_path / "out.training"
    with StateFile(path, {"seed": 0}, every=0) as first:
        first.note({"step": 1})
        with pytest.raises(UserError, match=r"out\.training is in use by process \d+"), StateFile(path, {"seed": 0}):
            pass
        # the other processes of the launch save nothing, and need no lock
        with StateFile(path, {"seed": 0}, writes=False) as other:
            assert other.begin(resume=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["out.training"]
    with StateFile(path, {"seed": 0}) as later:
        assert later.begin(resume=True) == {"step": 1}


@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link", "pipe", "folder"])
def test_what_is_no_lock_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    mine, lock = tmp_path / "thesis.tex", tmp_path / "run" / LOCK
    lock.parent.mkdir()
    if kind != "link to nothing":
        mine.write_text("years of work")
    if kind == "hard link":
        os.link(mine, lock)
    elif kind == "pipe":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(mine)
    with Lock.of_folder(lock.parent) as taken:
        if kind == "folder":  # it cannot be opened for writing, and nothing is locked
            taken.claim()
        else:
            with pytest.raises(UserError, match="is no lock of this program"):
                taken.claim()
            with pytest.raises(UserError, match="is no lock of this program"):
                taken.share()
    assert lock.is_symlink() or lock.exists()
    assert mine.exists() == (kind != "link to nothing")
    assert kind == "link to nothing" or mine.read_text() == "years of work"
