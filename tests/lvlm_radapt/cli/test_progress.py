"""How long work shows itself: rate and time left, JSON lines, silence; and how it is stopped."""

import io
import json
import os
import signal
import threading

import pytest
from rich.console import Console

from eval_tasks.run.progress import Running, tally
from eval_tasks.run.records import Attacked, SampleRecord, Scored
from lvlm_radapt.utils import progress
from lvlm_radapt.utils import signals as stopping
from lvlm_radapt.utils.errors import Stopped, UserError
from lvlm_radapt.utils.progress import JsonLines, Pace, bars
from lvlm_radapt.utils.signals import check_stopped, stoppable


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until told."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def go(seconds):
        now[0] += seconds

    return go


def test_the_pace_leaves_out_what_was_done_before(clock):
    pace = Pace()
    pace.add(500)
    assert pace.rate is None
    clock(4)
    pace.add(2)
    assert pace.rate == 0.5
    clock(4)
    pace.add(6)
    assert pace.rate == 1.0


def _shown(terminal: bool, clock, **console) -> str:
    written = io.StringIO()
    with bars(Console(file=written, force_terminal=terminal, width=160, **console)) as announce:
        advance = announce("tiny · coco", 20)
        advance(4, "done before")
        clock(60)
        advance(6, "clean 98.4, attacked 12.3")
    return written.getvalue()


def test_a_terminal_sees_stage_score_rate_and_time_left(clock):
    shown = _shown(True, clock)
    for part in ("tiny · coco · clean 98.4, attacked 12.3", "10/20", "6.0/min", "0:01:40 left"):
        assert part in shown


def test_elsewhere_a_line_a_minute_is_shown(clock, monkeypatch):
    monkeypatch.setattr(progress, "SILENT", 60.0)
    line = "tiny · coco · clean 98.4, attacked 12.3: 10 of 20, 0:01:40 left\n"
    assert _shown(False, clock) == line
    monkeypatch.setattr(progress, "SILENT", 61.0)  # work that is over before
    assert _shown(False, clock) == ""
    assert _shown(True, clock, quiet=True) == ""


def test_nothing_is_shown_before_there_is_progress():
    written = io.StringIO()
    with bars(Console(file=written, force_terminal=True)) as announce:
        announce("tiny", 3)
    assert written.getvalue() == ""


def test_json_lines_have_time_rate_and_an_end(tmp_path, clock):
    path = tmp_path / "log.jsonl"
    for error in (None, UserError("image 3\nis damaged"), Stopped(signal.SIGTERM)):
        try:
            with JsonLines.to(str(path)) as log, log.ended():
                log.write({"event": "start", "done": 4, "total": 8})
                clock(2)
                log.write({"event": "chunk", "samples": 1, "done": 5, "total": 8})
                if error is not None:
                    raise error
        except (UserError, Stopped):
            pass
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", "chunk", "end"] * 3
    assert all(e["rate"] == 0.5 for e in events[1::3])
    assert all(e["time"] > 1.7e9 for e in events)
    assert [(e["status"], e.get("error"), e.get("signal")) for e in events[2::3]] == [
        ("finished", None, None), ("failed", "image 3 is damaged", None), ("stopped", None, "SIGTERM"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="cannot write"), JsonLines.to(str(tmp_path)):
        pass


def test_json_lines_of_bars_count_and_none_are_written_nowhere(capsys):
    with JsonLines.to("-") as log, bars(Console(file=io.StringIO()), log) as announce:
        advance = announce("audit", 2)
        advance(1, "gradients")
        advance(0, "noise")
        advance(1, "")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(e["event"], e["title"], e["done"], e["total"]) for e in events] == [
        ("progress", "audit", 1, 2), ("progress", "audit", 2, 2),
    ]  # fmt: skip
    with JsonLines.to(None) as log, log.ended():
        log.write({"event": "start"})
    assert capsys.readouterr().out == ""


def _record(clean, adversarial) -> SampleRecord:
    attacked = None
    if adversarial is not None:
        attacked = Attacked(output="no", score=adversarial, loss=1.0, linf=0.0, l2=0.0)
    return SampleRecord(
        id="1", question=None, references=("a",), clean=Scored(output="a", score=clean), adversarial=attacked, seconds=1
    )


def test_the_score_so_far_is_the_mean_over_all_chunks_known():
    told, events = [], []
    running = Running(5, 3, lambda done, text: told.append((done, text)), events.append)
    running.begin({2: tally([_record(50.0, 10.0)])})
    chunk = tally([_record(100.0, 0.0), _record(None, 40.0)])
    running.take({0: chunk, 2: tally([_record(50.0, 10.0)])})
    running.take({0: chunk})  # known already
    running.stage("e2e")
    score = "clean 75.0, attacked 16.7"
    assert told == [(1, "done before"), (2, score), (0, f"e2e · {score}")]
    assert events[0] == {"event": "start", "done": 1, "total": 5, "clean": 50.0, "adversarial": 10.0}
    assert [(e["chunk"], e["samples"], e["done"], e["total"]) for e in events[1:]] == [(0, 2, 3, 5)]
    clean = Running(1, 1, lambda done, text: told.append((done, text)), events.append)
    clean.begin({})
    clean.take({0: tally([_record(30.0, None)])})
    assert told[-2:] == [(0, ""), (1, "clean 30.0")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_once_and_its_echo_does_nothing(number):
    before = signal.getsignal(number)
    with stoppable():
        with pytest.raises(Stopped) as caught:
            os.kill(os.getpid(), number)
        assert caught.value.signal_number == number
        os.kill(os.getpid(), number)  # a launcher passes on what the terminal has sent already
        with pytest.raises(Stopped):  # where the first exception got lost, the next step raises it again
            check_stopped()
        in_thread: list[BaseException] = []
        thread = threading.Thread(target=lambda: in_thread.append(_raised(check_stopped)))
        thread.start()
        thread.join()
        assert in_thread == [None]
    assert signal.getsignal(number) is before
    check_stopped()


def _raised(do) -> BaseException | None:
    try:
        do()
    except BaseException as error:
        return error
    return None


def test_a_second_signal_ends_at_once(monkeypatch):
    ended = []
    monkeypatch.setattr(stopping.os, "_exit", ended.append)
    monkeypatch.setattr(stopping, "ECHO", -1.0)
    with stoppable():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert ended == [130]


def test_a_stop_before_anything_was_begun_says_so(monkeypatch, cli, tmp_path):
    import eval_tasks.api

    def stop(*_args, **_more):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(eval_tasks.api, "run_evaluation", stop)
    assert cli("eval", "tiny-llava", "--task", "coco", "--data", "d", "--out", tmp_path / "a run") == (
        130,
        "",
        "stopped; nothing was begun; go on with: lvlm-radapt eval tiny-llava --task coco --data d --out "
        f"'{tmp_path}/a run' --resume\n",
    )
