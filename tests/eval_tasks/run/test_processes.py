"""Several processes, one run: each chunk once, the same bits, and no death that hangs or hides."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import HashStore

from eval_tasks.run import processes
from eval_tasks.run.processes import Group, join
from eval_tasks.run.records import RunFolder
from lvlm_radapt.utils.errors import Unfinished, UserError
from tests.helpers.commands import Command, contents, evaluation, free_port, launch
from tests.helpers.data_sets import scenes_folder
from tests.helpers.failures import one_line


@pytest.fixture
def groups(monkeypatch):
    """Three processes' groups in one process, which die after half a second of silence."""
    monkeypatch.setattr(processes, "PULSE", 0.05)
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    store = HashStore()
    made = [Group(rank, 3, store) for rank in range(3)]
    yield made
    for group in made:
        group.leave()


def _side_by_side(groups, do):
    with ThreadPoolExecutor(len(groups)) as pool:
        return [future.result() for future in [pool.submit(do, group) for group in groups]]


def test_every_piece_is_claimed_once(groups):
    start = threading.Barrier(3)

    def claim(group):
        work = group.work("run")
        start.wait()
        mine = [number for number in range(300) if work.claim(number)]
        for number in mine:
            work.done(number, {"rank": group.rank})
        return mine

    claimed = _side_by_side(groups, claim)
    assert Counter(n for mine in claimed for n in mine) == Counter(range(300))
    work = groups[0].work("run")
    assert work.wait([*range(300)], lambda: None) == {}
    assert {n: r["rank"] for n, r in work.results(300).items()} == {n: i for i, m in enumerate(claimed) for n in m}
    assert groups[1].work("another run").claim(0)


def test_what_the_first_makes_all_have_and_its_error_is_everybodys(groups):
    calls = []

    def make():
        calls.append(1)
        time.sleep(0.3)
        return {"made": [1, 2]}

    assert _side_by_side(groups, lambda group: group.work("run").lead("begin", make)) == [{"made": [1, 2]}] * 3
    assert calls == [1]

    def fail():
        raise UserError("the folder holds another run")

    def meet(group):
        with pytest.raises(UserError, match="the folder holds another run") as caught:
            group.work("run").lead("end", fail)
        return group.once(str(caught.value))

    assert sorted(_side_by_side(groups, meet)) == [False, False, True]


def test_the_pieces_of_the_dead_are_named(groups):
    works = [group.work("run") for group in groups]
    assert works[1].claim(0)
    assert works[2].claim(1)
    assert works[0].claim(2)
    works[0].done(2, {})
    groups[1].gone.set()  # no sign of life from now on
    threading.Timer(1.5, lambda: works[2].done(1, {})).start()
    told = []
    assert works[0].wait([0, 1, 2], lambda: told.append(1)) == {0: 1}
    assert set(works[0].results(3)) == {1, 2}  # the slow one was waited for
    assert told


def test_those_who_wait_for_a_dead_first_process_end(groups):
    groups[0].gone.set()
    with pytest.raises(Unfinished, match="the first process is gone"):
        groups[1].work("run").lead("begin", lambda: None)


def test_one_process_alone_needs_no_store(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    work = join().work("run")
    assert work.lead("begin", lambda: 7) == 7
    assert work.claim(3)
    work.done(3, {"samples": 2})
    assert work.results(9) == {3: {"samples": 2}}
    assert work.wait([3], lambda: None) == {}
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK is set but not MASTER_ADDR, MASTER_PORT"):
        join()


@pytest.mark.parametrize(
    "wrong",
    [
        {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "-1"}, {"WORLD_SIZE": "x"}, {"WORLD_SIZE": "2.0"}, {"RANK": "5"},
        {"RANK": "2"}, {"RANK": "-1"}, {"RANK": ""}, {"MASTER_PORT": "http"}, {"MASTER_PORT": "65536"},
    ],
    ids=str,
)  # fmt: skip
def test_a_launch_that_cannot_be_is_refused_at_once(wrong, monkeypatch):
    right = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in {**right, **wrong}.items():
        monkeypatch.setenv(name, value)
    ((name, value),) = wrong.items()
    with one_line(f"the environment says {name}='{value}'"):
        join()


def test_places_in_a_launch_that_are_no_numbers_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "first")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "-1")
    with one_line("LOCAL_RANK='first'"):
        processes.local_rank()
    with one_line("TORCHELASTIC_RESTART_COUNT='-1'"):
        processes.restarted()


data = scenes_folder(count=8)


@pytest.fixture(scope="module")
def whole(data) -> Path:
    """The run of one process."""
    command = Command(evaluation("tiny-llava", data, data.parent / "whole"), data.parent / "logs")
    assert command.wait() == 0, command.err
    return data.parent / "whole"


def _share(size: int, data: Path, whole: Path, tmp_path: Path, survived) -> None:
    # the first is slow, so that the others have their part however late they come
    commands = launch(evaluation("tiny-llava", data, tmp_path / "run"), tmp_path / "logs", size, {0: {"slow": 0.05}})
    assert [command.wait() for command in commands] == [0] * size, [command.err for command in commands]
    assert contents(tmp_path / "run") == contents(whole)
    assert "tiny-llava" in commands[0].out
    assert [command.out for command in commands[1:]] == [""] * (size - 1)
    assert [command.err for command in commands] == [""] * size
    survived("processes compared, bit for bit", size)


def test_two_processes_make_the_same_bits_as_one(data, whole, tmp_path, survived):
    _share(2, data, whole, tmp_path, survived)


@pytest.mark.slow
def test_four_processes_make_the_same_bits_as_one(data, whole, tmp_path, survived):
    _share(4, data, whole, tmp_path, survived)


@pytest.mark.slow
def test_a_death_leaves_its_chunk_to_be_resumed(data, whole, tmp_path, survived):
    words = evaluation("tiny-llava", data, tmp_path / "run")
    faults = {0: {"slow": 0.1}, 1: {"signal": signal.SIGKILL, "at_fsync": 4}}
    first, second = launch(words, tmp_path / "logs", 2, faults)
    assert (first.wait(), second.wait()) == (1, -signal.SIGKILL)
    assert len(first.err.splitlines()) == 1, first.err
    assert "process 1 is gone and left chunk " in first.err
    assert "6 of 8 samples are in" in first.err
    assert len(RunFolder(tmp_path / "run").done_ids()) == 6
    again = launch([*words, "--resume"], tmp_path / "logs", 2)
    assert [command.wait() for command in again] == [0, 0], [command.err for command in again]
    assert contents(tmp_path / "run") == contents(whole)
    survived("deaths of one process among several")


@pytest.mark.slow
def test_the_death_of_the_first_ends_the_others_with_everything_saved(data, whole, tmp_path, survived):
    words = evaluation("tiny-llava", data, tmp_path / "run")
    faults = {0: {"signal": signal.SIGKILL, "at_fsync": 8, "slow": 0.3}}
    first, second = launch(words, tmp_path / "logs", 2, faults)
    assert (first.wait(), second.wait()) == (-signal.SIGKILL, 1)
    assert len(second.err.splitlines()) == 1, second.err
    assert "continue with --resume" in second.err
    last = Command([*words, "--resume"], tmp_path / "logs")
    assert last.wait() == 0, last.err
    assert contents(tmp_path / "run") == contents(whole)
    survived("deaths of one process among several")


def test_a_mistake_is_told_once(data, tmp_path):
    commands = launch(evaluation("tiny-llava", tmp_path / "nowhere", tmp_path / "run"), tmp_path / "logs", 2)
    assert [command.wait() for command in commands] == [2, 2]
    told = "".join(command.err for command in commands)
    assert len(told.splitlines()) == 1, told
    assert "nowhere" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_starts_the_same_run(data, whole, tmp_path, survived):
    words = evaluation("tiny-llava", data, tmp_path / "run")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    ended = subprocess.run(
        [*launcher, "-m", "lvlm_radapt", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert contents(tmp_path / "run") == contents(whole)
    survived("processes compared, bit for bit", 2)
