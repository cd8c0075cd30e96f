"""One launch at a time in a run folder: its processes share it, others are refused, and no death blocks it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eval_tasks import locking
from eval_tasks.locking import LOCK, RunLock
from lvlm_radapt.errors import UserError


def test_another_launch_is_refused_in_one_line(tmp_path: Path) -> None:
    with RunLock(tmp_path / "new" / "run") as first:
        first.claim()
        with (
            pytest.raises(
                UserError, match=rf"run is in use by process {os.getpid()} on \S+: wait until it ends"
            ) as caught,
            RunLock(tmp_path / "new" / "run") as second,
        ):
            second.claim()
        assert "\n" not in str(caught.value)
        assert (tmp_path / "new" / "run" / LOCK).is_file()  # a refused launch takes nothing with it
    assert list((tmp_path / "new" / "run").iterdir()) == []
    with RunLock(tmp_path / "new" / "run") as third:
        third.claim()


def test_a_folder_is_in_use_until_the_last_process_of_a_launch_has_left(tmp_path: Path) -> None:
    first, other, late = (RunLock(tmp_path) for _ in range(3))
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
    first = RunLock(tmp_path)
    first.claim()
    first.release()
    os.close(os.open(tmp_path / LOCK, os.O_CREAT | os.O_RDWR))
    handle = os.open(tmp_path / LOCK, os.O_RDWR)
    locking.fcntl.flock(handle, locking.fcntl.LOCK_EX)
    with pytest.raises(UserError, match="in use by another process"):
        RunLock(tmp_path).share()
    os.close(handle)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_blocks_nothing(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import sys, time\nfrom eval_tasks.locking import RunLock\n"
        f"RunLock({str(tmp_path)!r}).claim()\nprint('mine', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mine\n"
        with pytest.raises(UserError, match=f"in use by process {process.pid} on "):
            RunLock(tmp_path).claim()
        process.send_signal(number)
    assert (tmp_path / LOCK).exists()
    with RunLock(tmp_path) as lock:
        lock.claim()
    assert not (tmp_path / LOCK).exists()


def test_many_at_once_take_turns(tmp_path: Path) -> None:
    """Each adds one to a file that it reads and writes; a lock that two hold would lose some."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom eval_tasks.locking import RunLock\n"
        "from lvlm_radapt.errors import UserError\n"
        f"folder = Path({str(tmp_path)!r})\ndone = 0\n"
        "while done < 50:\n"
        "    try:\n"
        "        with RunLock(folder / 'run') as lock:\n"
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
    with RunLock(tmp_path / "file" / "run") as lock:  # whoever writes the run says what is wrong
        lock.claim()
        lock.share()
    monkeypatch.setattr(locking, "fcntl", None)
    with RunLock(tmp_path / "run") as first, RunLock(tmp_path / "run") as second:
        first.claim()
        second.claim()
        second.share()
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, kind: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locking.fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    with RunLock(tmp_path) as lock:
        lock.claim()
        lock.share()
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before
