"""What a stopped command says about going on, and its progress until then."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from lvlm_radapt.cli.app import progress_console
from lvlm_radapt.utils.errors import NoRoom, Stopped, Unfinished, with_notes
from lvlm_radapt.utils.progress import Announce, JsonLines, bars


@contextmanager
def resumable(again: str, saved: Callable[[], str] = lambda: "what is done is saved") -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM tell how to go on; so do a full disk, and memory too small for one image."""
    from attacks.auto_batch import out_of_memory

    try:
        yield
    except Stopped as stop:
        stop.advice = f"{saved()}; go on with: {again}"
        raise
    except NoRoom as error:
        raise NoRoom(f"{error} and go on with: {again}; {saved()}") from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        what = with_notes("out of memory, even for one image", error)
        less = "--max-pixels (Qwen), --dtype bfloat16 or --quantize 4bit take less in a new run"
        raise Unfinished(f"{what}; {saved()}; {less}; free some and go on with: {again}") from error


def progress(log: JsonLines | None = None) -> AbstractContextManager[Announce]:
    return bars(progress_console, log)


@contextmanager
def resumable_progress(log_json: str | None) -> Iterator[Announce]:
    """Progress of work that --resume goes on with, in the file of --log-json too."""
    with JsonLines.to(log_json) as log, resumable(command_line("--resume")), log.ended(), progress(log) as announce:
        yield announce


def command_line(*more: str) -> str:
    arguments = sys.argv[1:]
    return shlex.join(["lvlm-radapt", *arguments, *(one for one in more if one not in arguments)])


def saved_in(out: Path) -> Callable[[], str]:
    """Says how many samples a run folder holds."""

    def saved() -> str:
        from eval_tasks.run.records import RunFolder

        try:
            total = json.loads((out / "run.json").read_bytes())["ids"]["n"]
            return f"{len(RunFolder(out).done_ids())} of {total} samples are saved in {out}"
        except (OSError, ValueError, KeyError, TypeError):  # stopped before the folder was there
            return "nothing was begun"

    return saved
