"""Long work shows itself: bars with rate and time left on a terminal, a line a minute elsewhere, JSON lines for
machines."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from lvlm_radapt.utils.errors import Stopped, UserError
from lvlm_radapt.utils.signals import check_stopped
from lvlm_radapt.utils.writing import check_file

SILENT = 60.0
"""Seconds until a pipe or a file gets the next line; short work writes none."""
Announce = Callable[[str, int], Callable[[int, str], None]]
"""Called with (title, total); what it returns is told (done since the last call, remark)."""


class Pace:
    """How fast work goes; what was done before the first call is no part of it."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._made = 0
        self.rate: float | None = None
        """Pieces a second, None before the first."""

    def add(self, done: int) -> None:
        """`done` more pieces now; of the first call, before now."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = now
            return
        self._made += done
        if self._made and now > self._begun:
            self.rate = self._made / (now - self._begun)


def _opened(name: str) -> IO[str]:
    check_file(Path(name), what="log", own=_is_log)
    try:
        return open(name, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror or error}") from error


def _is_log(head: bytes) -> bool:
    """Whether a file that begins like this is one that `JsonLines` wrote."""
    first = head.split(b"\n", 1)[0]
    return first.startswith(b'{"time": ') and b', "event": "' in first


class JsonLines:
    """Events as one JSON object a line, with the time (Unix seconds) and, of chunks, the samples a second."""

    def __init__(self, file: IO[str] | None, name: str = "") -> None:
        self._file = file
        self._name = name
        self._pace = Pace()

    @classmethod
    @contextmanager
    def to(cls, name: str | None) -> Iterator[JsonLines]:
        """Appends to the file of that name; `-` is stdout, None nothing. UserError where `check_file` says so."""
        if name is None or name == "-":
            yield cls(None if name is None else sys.stdout, "stdout")
            return
        with _opened(name) as file:
            yield cls(file, name)

    def write(self, event: Mapping[str, Any]) -> None:
        """Add an event, on its way to the reader when this returns."""
        if self._file is None:
            return
        if event["event"] in ("start", "chunk"):
            self._pace.add(event.get("samples", 0))
        line = {"time": round(time.time(), 3), **event}
        if event["event"] == "chunk":
            line["rate"] = self._pace.rate
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        except BrokenPipeError:  # of stdout, whose reader has seen enough
            raise
        except OSError as error:
            raise UserError(f"cannot write to {self._name}: {error.strerror or error}") from error

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Writes the last event when its block is left: finished, stopped or failed, and by what."""
        try:
            yield
        except Stopped as stop:
            self.write({"event": "end", "status": "stopped", "signal": signal.Signals(stop.signal_number).name})
            raise
        except Exception as error:
            self.write({"event": "end", "status": "failed", "error": " ".join(str(error).split())})
            raise
        self.write({"event": "end", "status": "finished"})


class _Speed(ProgressColumn):
    """Samples a second (or a minute) and the time left."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        pace: Pace = task.fields["pace"]
        if not pace.rate:
            return Text("")
        speed = f"{pace.rate:.1f}/s" if pace.rate >= 1 else f"{60 * pace.rate:.1f}/min"
        left = task.remaining / pace.rate if task.remaining else 0
        return Text(f"{speed}, {_clock(left)} left" if left else speed)


class _Elapsed(ProgressColumn):
    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        return Text(_clock(task.elapsed or 0))


@contextmanager
def bars(console: Console, log: JsonLines | None = None) -> Iterator[Announce]:
    """Bars on a terminal, now and then a line elsewhere; yields announce(title, total). `log` gets an event an
    advance."""
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Elapsed(),
        _Speed(),
    )  # fmt: skip
    shown = Progress(*columns, console=console, disable=not console.is_terminal or console.quiet)
    said = time.monotonic()

    def say(title: str, what: str, made: int, total: int, pace: Pace) -> None:
        nonlocal said
        now = time.monotonic()
        if not console.is_terminal and now - said >= SILENT:
            said = now
            left = f", {_clock((total - made) / pace.rate)} left" if pace.rate and total > made else ""
            text = " · ".join(filter(None, (title, what)))
            console.print(f"{text}: {made} of {total}{left}", markup=False, highlight=False, soft_wrap=True)

    def announce(title: str, total: int) -> Callable[[int, str], None]:
        pace = Pace()
        task = shown.add_task(title, total=total, pace=pace)
        made = 0

        def advance(done: int, what: str) -> None:
            nonlocal made
            check_stopped()
            shown.start()  # not before there is progress: a mistake found on the way leaves one line and no bar
            pace.add(done)
            made += done
            shown.update(task, advance=done, description=" · ".join(filter(None, (title, what))))
            say(title, what, made, total, pace)
            if log is not None and done:
                log.write({"event": "progress", "title": title, "what": what, "done": made, "total": total})

        return advance

    try:
        yield announce
    finally:
        if shown.live.is_started:
            shown.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
