"""Hostile cases as a table holds them: the words of a command over files that are wrong, and the line it ends in."""

import io
import json
import os
import pickle
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from eval_tasks.config.presets import load_protocol
from lvlm_radapt import RAdaptConfig, robustify
from lvlm_radapt.loading.load import load_model
from lvlm_radapt.saving.adapter import save_adapter
from tests.helpers.cli import Cli
from tests.helpers.data_sets import MAKERS, change, write
from tests.helpers.records import finished
from tests.helpers.tiny_checkpoints import save_llava

DEEP = b"[" * 100_000


@dataclass(frozen=True)
class Place:
    """What a case may use: an empty folder of its own, a good data folder (COCO, two images), a small checkpoint and
    its adapter; `out` must not exist, or be unchanged, afterwards."""

    tmp: Path
    data: Path
    model: Path
    adapter: Path

    @classmethod
    def of(cls, shared: Path, tmp: Path) -> "Place":
        return cls(tmp, shared / "data", shared / "model", shared / "adapter")

    @property
    def out(self) -> Path:
        return self.tmp / "out"


Words = list[Any]
Case = tuple[Callable[[Place], Words], str]


def make_shared(folder: Path) -> Path:
    """The data folder, the checkpoint and its adapter that a `Place` points to."""
    make, _ = MAKERS["coco"]
    make(folder / "data")
    save_llava(folder / "model")
    save_adapter(robustify(load_model(folder / "model"), RAdaptConfig()), folder / "adapter")
    return folder


# --- how cases are made


def data_check(task: str, name: str | None, content: Callable[[Any], Any] | bytes, words: str) -> Case:
    """`data check` of a task whose file `name` (None: its annotations) is changed or replaced."""

    def arrange(at: Place) -> Words:
        folder = made_folder(task, at)
        path = folder / (name or MAKERS[task][1])
        write(path, content if isinstance(content, bytes) else content(json.loads(path.read_bytes())))
        return ["data", "check", task, "--data", folder]

    return arrange, words


def made_folder(task: str, at: Place) -> Path:
    make, _ = MAKERS[task]
    make(at.tmp / "set")
    return at.tmp / "set"


def field(task: str, where: list[Any], value: Any, words: str) -> Case:
    return data_check(task, None, lambda content: change(content, where, value), words)


def image(put: Callable[[Path], object], words: str) -> Case:
    """`data check` where one of COCO's two images is what `put` puts there."""

    def arrange(at: Place) -> Words:
        shutil.copytree(at.data, at.tmp / "set")
        path = at.tmp / "set" / "val2014" / "COCO_val2014_000000000009.jpg"
        path.unlink()
        put(path)
        return ["data", "check", "coco", "--data", at.tmp / "set"]

    return arrange, words


def holding(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def encoded(made: Image.Image, form: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    made.save(stream, format=form, **how)
    return stream.getvalue()


def png(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header claims this size, with nothing but `extra` chunks behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rest = b"".join(chunk(kind, body) for kind, body in extra)
    return b"\x89PNG\r\n\x1a\n" + head + rest + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


NOISE = Image.frombytes("RGB", (40, 40), bytes(range(256)) * 18 + bytes(192))


def evaluated(changed: dict[str, Any], words: str, *more: Any) -> Case:
    """`eval` of the small checkpoint with these flags changed; a Path in a value is taken inside the case's folder."""

    def arrange(at: Place) -> Words:
        flags = {
            "--task": "coco", "--data": at.data, "--attack": "e2e", "--eps": "4/255", "--steps": "2", "--out": at.out,
            "--preset": "scenes",
        } | {name: at.tmp / value if isinstance(value, Path) else value for name, value in changed.items()}  # fmt: skip
        return ["eval", at.model, *(part for pair in flags.items() for part in pair), *more]

    return arrange, words


def preset(content: bytes | dict[str, Any], words: str) -> Case:
    """`eval` with a preset file: FARE's with these fields changed (or without them, ...), or this text."""

    def arrange(at: Place) -> Words:
        path = at.tmp / "mine.yaml"
        fare = load_protocol("fare").model_dump(exclude_none=True) | {"name": "mine"}
        if isinstance(content, dict):
            fields = {key: value for key, value in (fare | content).items() if value is not ...}
            path.write_text(json.dumps(fields))  # JSON is YAML
        else:
            path.write_bytes(content)
        return ["eval", at.model, "--task", "coco", "--data", at.data, "--out", at.out, "--preset", path]

    return arrange, words


def run_folder(put: Callable[[Path], object], words: str) -> Case:
    """`report` of a finished run in which `put` changed something."""

    def arrange(at: Place) -> Words:
        finished(at.tmp / "run").close()
        put(at.tmp / "run")
        return ["report", at.tmp / "run", "--out", at.out]

    return arrange, words


def file(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def json_file(name: str, edit: Callable[[Any], Any]) -> Callable[[Path], object]:
    return lambda folder: write(folder / name, edit(json.loads((folder / name).read_bytes())))


def lines_of(folder: Path, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    path = folder / "samples.jsonl"
    path.write_bytes(b"\n".join(edit(path.read_bytes().split(b"\n"))))


def _changed(command: str, of: Callable[[Place], Path], put: Callable[[Path], object], words: str) -> Case:
    def arrange(at: Place) -> Words:
        shutil.copytree(of(at), at.tmp / "changed")
        put(at.tmp / "changed")
        data = ["--task", "coco", "--data", at.data] if command == "eval" else []
        return [command, at.tmp / "changed", *data, "--out", at.out]

    return arrange, words


def adapter(put: Callable[[Path], object], words: str) -> Case:
    """`eval` of the small checkpoint's adapter in which `put` changed something."""
    return _changed("eval", lambda at: at.adapter, put, words)


def checkpoint(put: Callable[[Path], object], words: str) -> Case:
    """`robustify` of the small checkpoint in which `put` changed something."""
    return _changed("robustify", lambda at: at.model, put, words)


def evaluated_checkpoint(put: Callable[[Path], object], words: str) -> Case:
    """`eval` of the small checkpoint in which `put` changed something."""
    return _changed("eval", lambda at: at.model, put, words)


def tower(content: Callable[[Place], bytes], words: str) -> Case:
    """`robustify --tower` with a weight file of this content."""

    def arrange(at: Place) -> Words:
        (at.tmp / "tower.pt").write_bytes(content(at))
        return ["robustify", at.model, "--tower", at.tmp / "tower.pt", "--out", at.out]

    return arrange, words


class _Shell:
    """A pickle that, opened carelessly, leaves a file where the test looks for it."""

    def __init__(self, at: Place) -> None:
        self._command = f"touch {at.out}"

    def __reduce__(self) -> Any:
        return os.system, (self._command,)


def malicious(at: Place) -> bytes:
    return pickle.dumps({"visual.proj": _Shell(at)})


def torch_bytes(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def simple(*words: str, expected: str) -> Case:
    return lambda at: [word.format(at=at) for word in words], expected


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every path below the folder with its content (of what can be read without waiting)."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
    }


def assert_refused(case: Case, at: Place, cli: Cli) -> str:
    """The command ends with exit code 2 and one line, the expected one, and every file is as it was. What it said."""
    arrange, expected = case
    words = arrange(at)
    before = listing(at.tmp)
    code, out, err = cli(*words)
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert len(err) < 2000
    assert re.search(expected, err), err
    assert listing(at.tmp) == before
    return out + err
