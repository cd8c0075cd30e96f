"""The processes that `accelerate launch`, torchrun or srun start for one command, and how they share its work.

They meet in torch.distributed's key-value store and nowhere else: nothing here waits for all of them at once, so
that one that dies holds up no other.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from lvlm_radapt.utils.errors import NoRoom, Unfinished, UserError

PULSE = 2.0  # seconds between a process's signs of life
PATIENCE = 60.0  # seconds without one after which it counts as dead
MEETING = 300.0  # seconds for all processes to come up
_GLANCE = 0.1  # seconds between two looks at the store

_LAUNCH = "start with accelerate launch or torchrun"
_KINDS: dict[str, type[Exception]] = {"room": NoRoom, "user": UserError, "unfinished": Unfinished}
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ


def local_rank() -> int:
    """This process's number among those on its machine. UserError where the environment has none."""
    return _number("LOCAL_RANK", least=0)


def restarted() -> bool:
    """Whether a launcher with --max-restarts started the command anew after a failure."""
    return _number("TORCHELASTIC_RESTART_COUNT", least=0) > 0


def join() -> Group:
    """The group that the environment names, this process alone where it names none.

    Raises UserError for an environment that is not whole, and Unfinished when the others do not come.
    """
    if not launched():
        return Group()
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise UserError(f"RANK is set but not {', '.join(missing)}: {_LAUNCH}")
    size = _number("WORLD_SIZE", least=1)
    _number("RANK", least=0, most=size - 1)  # an unknown rank would wait for the others for ever
    _number("MASTER_PORT", least=1, most=65535)
    # read when torch is first imported: of a lost store it logs, in pages, what Unfinished says in a line
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=MEETING)))
    except (RuntimeError, ValueError) as error:
        raise Unfinished(f"the processes did not meet at {where}: {_first_line(error)}") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    # torchrun's agent holds the store and outlives us; elsewhere the first process does
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return Group(rank, size, PrefixStore(f"lvlm-radapt/{attempt}", store), hosts=hosts)


class Group:
    """This process among `size`; `store` is a torch.distributed.Store that all of them see, None for one alone.

    hosts: this process must stay until the others are gone, as the store is its own.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, *, hosts: bool = False) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._hosts = hosts
        self._seen: dict[int, tuple[bytes | None, float]] = {}
        self.gone = threading.Event()
        if store is not None:
            self._set(f"alive/{rank}", "0")
            threading.Thread(target=self._live, name="signs of life", daemon=True).start()

    @property
    def first(self) -> bool:
        """Whether this process is the one that creates, merges, reports and prints."""
        return self.rank == 0

    def work(self, name: str) -> Work:
        """Work under a name that all processes use for the same; its own claims and results."""
        return Work(self, _digest(name)[:16])

    def alive(self, rank: int) -> bool:
        """Whether that process has given a sign of life within PATIENCE, by this process's own clock."""
        if self._get(f"left/{rank}") is not None:
            return False
        sign, now = self._get(f"alive/{rank}"), time.monotonic()
        last, since = self._seen.get(rank, (None, now))
        if rank not in self._seen or sign != last:
            self._seen[rank] = (sign, now)
            return True
        return now - since < PATIENCE

    def once(self, text: str) -> bool:
        """True in one process alone, of all that ask with this text: who may say it to the user."""
        if self._store is None:
            return True
        try:
            return self._claim(f"said/{_digest(text)}") == self.rank
        except Unfinished:
            return True

    def fail(self, error: Exception) -> None:
        """Tell the others that the work cannot go on; they end with the same error when they next look."""
        if self._store is None:
            return
        kind = next((name for name, one in _KINDS.items() if isinstance(error, one)), "unfinished")
        known = isinstance(error, UserError | Unfinished)
        text = str(error) if known else f"process {self.rank} failed: {type(error).__name__}"
        try:
            self._ask(lambda: self._store.compare_set("failed", "", json.dumps([kind, text])))
        except Unfinished:
            return  # nobody left to be told

    def check(self) -> None:
        """Raise the error that a process has told of by `fail`."""
        told = self._get("failed")
        if told is not None:
            kind, text = json.loads(told)
            raise _KINDS[kind](text)

    def leave(self) -> None:
        """End this process's part: it counts as gone from now on. The store's host waits for the others to go."""
        if self._store is None or self.gone.is_set():
            return
        try:
            until = time.monotonic() + PATIENCE
            while self._hosts and time.monotonic() < until and any(map(self.alive, range(1, self.size))):
                time.sleep(_GLANCE)
            self._set(f"left/{self.rank}", "1")
        except Unfinished:
            pass  # the store is gone, and with it who might ask
        self.gone.set()

    def _live(self) -> None:
        beats = 0
        while not self.gone.wait(PULSE):
            beats += 1
            try:
                self._set(f"alive/{self.rank}", str(beats))
            except Unfinished:
                return

    def _get(self, key: str) -> bytes | None:
        if self._store is None:
            return None
        found: bytes | None = self._ask(lambda: self._store.get(key) if self._store.check([key]) else None)
        return found

    def _set(self, key: str, value: str) -> None:
        if self._store is not None:
            self._ask(lambda: self._store.set(key, value))

    def _claim(self, key: str) -> int:
        """The rank that holds this key, which is the one that asked first."""
        if self._store is None:
            return self.rank
        return int(self._ask(lambda: self._store.compare_set(key, "", str(self.rank))))

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except RuntimeError as error:  # torch's network and time-out errors among them
            raise Unfinished(
                f"process {self.rank} has lost the others ({_first_line(error)}): what is done is saved, continue "
                "with --resume"
            ) from error


class Work:
    """Numbered pieces of one job, each done by the process that claims it first."""

    def __init__(self, group: Group, name: str) -> None:
        self.group = group
        self._name = name
        self._results: dict[int, Mapping[str, Any]] = {}

    def lead(self, what: str, do: Callable[[], Any]) -> Any:
        """What `do()` gives, a JSON value, done by the first process alone; its error is everybody's error."""
        group, key = self.group, f"{self._name}/led/{what}"
        if group.first:
            try:
                made = do()
            except Exception as error:
                group.fail(error)
                raise
            group._set(key, json.dumps(made))
            return made
        while (made := group._get(key)) is None:
            group.check()
            if not group.alive(0):
                raise Unfinished("the first process is gone: what is done is saved, continue with --resume")
            time.sleep(_GLANCE)
        return json.loads(made)

    def claim(self, number: int) -> bool:
        """Whether this piece is this process's to do; raises what another process has failed with."""
        self.group.check()
        return self.group._claim(f"{self._name}/claim/{number}") == self.group.rank

    def done(self, number: int, result: Mapping[str, Any]) -> None:
        """The piece is done and safe; `result`, a JSON object, is what `results` says of it."""
        self._results[number] = result
        self.group._set(f"{self._name}/done/{number}", json.dumps(result))

    def results(self, count: int) -> dict[int, Mapping[str, Any]]:
        """What is known of pieces 0 ... count - 1, by number, whoever did them."""
        for number in range(count) if self.group.size > 1 else ():
            if number not in self._results:
                told = self.group._get(f"{self._name}/done/{number}")
                if told is not None:
                    self._results[number] = json.loads(told)
        return self._results

    def wait(self, numbers: list[int], tell: Callable[[], None]) -> dict[int, int]:
        """Wait for these pieces, all of them claimed; pieces whose process died, with its rank. `tell` is called
        all along."""
        owners = {number: self.group._claim(f"{self._name}/claim/{number}") for number in numbers}
        while True:
            # who is alive is asked first: a process may do its last piece and go between two questions
            alive = {rank: rank == self.group.rank or self.group.alive(rank) for rank in set(owners.values())}
            known = self.results(max(numbers, default=-1) + 1)
            tell()
            left = {number: rank for number, rank in owners.items() if number not in known}
            if not any(alive[rank] for rank in left.values()):
                return left
            self.group.check()
            time.sleep(_GLANCE)


def _number(name: str, *, least: int, most: int | None = None) -> int:
    """The environment's variable as a number, 0 where it is not set; UserError for anything else."""
    text = os.environ.get(name, "0")
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least or (most is not None and number > most):
        wanted = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"the environment says {name}={text!r}, which must be {wanted}: {_LAUNCH}")
    return number


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _digest(text: str) -> str:
    """Of a text that may hold a name that is not UTF-8."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
