"""answers.jsonl: what an endpoint answered in a run, a line each, on disk before the next step.

A run that is killed loses no answer that is in it, and pays for none twice. The lines are sealed as records are. The
salt is on disk before a sample is asked for: what was on its way at a kill is sent under the same key once more.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval_tasks.config.validation import first_problem, read_bytes
from eval_tasks.run.checksums import sealed, unsealed
from eval_tasks.run.documents import own_file
from eval_tasks.run.records import RunFolder
from lvlm_radapt.models.endpoint import Reply
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.writing import RUN, sync_folder, writing

FILE = "answers.jsonl"


class _Line(BaseModel):
    """An answer by the key of what was asked, or the keys of answers that count no more. salt: the one from now on."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    key: str = ""
    reply: Reply | None = None
    drop: Annotated[tuple[str, ...], Field(strict=False)] = ()
    salt: str = ""


class AnswerFile:
    """The `AnswerStore` of a run folder. Safe to use from threads. UserError for a damaged file.

    What comes before `open` is written then, so that a run which is refused leaves nothing behind."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._waiting: list[_Line] = []
        self._known: dict[str, Reply] = {}
        self.paid: list[Reply] = []
        self._size = 0
        self.salt = ""
        if (folder.path / RUN).is_file() and (folder.path / FILE).exists():
            self._read()
        if not self.salt:
            self._write(_new_salt())

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Reply:
        return self._known[key]

    def __setitem__(self, key: str, reply: Reply) -> None:
        with self._lock:
            self._write(_Line(key=key, reply=reply))

    def drop(self, keys: Iterable[str]) -> None:
        """Count these answers no more; they stay among the paid ones."""
        with self._lock:
            self._write(_new_salt(drop=tuple(keys)))

    def open(self) -> None:
        """Write from now on: the folder is there."""
        if not self.paid:
            return  # nothing is asked of an endpoint
        path = own_file(self._folder.path, FILE)
        with self._lock, writing(path):
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.truncate(path, self._size)  # of a line that a kill tore
            sync_folder(path.parent)
            waiting, self._waiting = self._waiting, []
            for line in waiting:
                self._append(line)

    def close(self) -> None:
        """End writing."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _write(self, line: _Line) -> None:
        if self._handle is None:
            self._waiting.append(line)
        else:
            self._append(line)
        self._take(line)

    def _take(self, line: _Line) -> None:
        if line.reply is not None:
            self._known[line.key] = line.reply
            self.paid.append(line.reply)
        for key in line.drop:
            self._known.pop(key, None)
        self.salt = line.salt or self.salt

    def _append(self, line: _Line) -> None:
        assert self._handle is not None
        content = sealed(line.model_dump_json(exclude_defaults=True).encode(), self._folder.key) + b"\n"
        with writing(self._folder.path / FILE):
            written = 0
            while written < len(content):
                written += os.write(self._handle, content[written:])
            os.fsync(self._handle)

    def _read(self) -> None:
        path = own_file(self._folder.path, FILE)
        content = read_bytes(path)
        self._size = content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._size].split(b"\n")[:-1], start=1):
            body, right = unsealed(line, self._folder.key)
            try:
                found = _Line.model_validate_json(body)
            except ValidationError as error:
                raise UserError(f"{path}, line {number}: {first_problem(error)}") from error
            if not right:
                raise UserError(f"{path}, line {number}, was changed after it was written: put back what it was")
            self._take(found)


def _new_salt(drop: tuple[str, ...] = ()) -> _Line:
    return _Line(drop=drop, salt=secrets.token_hex(8))


def usage_notes(usage: Mapping[str, Any]) -> list[str]:
    """What a reader of the scores has to know of `ApiModel.usage`."""
    cost = f", {usage['cost']:.4g} dollars" if "cost" in usage else ""
    tokens = f"{usage['prompt_tokens']:,} tokens in and {usage['completion_tokens']:,} out"
    said = [f"{usage['requests']:,} requests, {tokens}{cost}; {usage['sent_again']:,} were sent again"]
    if usage["filtered"]:
        said.append(f"{usage['filtered']} answers were cut off or refused by the endpoint's own filter")
    if usage["drawn"]:
        said.append("the endpoint takes no temperature: its answers are drawn, and differ from run to run")
    if len(usage["answered_as"]) > 1:
        said.append(f"the endpoint answered as {' and '.join(usage['answered_as'])}: these may be several models")
    return said
