"""The run folder: written so that a killed run loses at most the line being written, read with checks.

run.json        schema version, settings, environment, hash of the selected ids
parts/          while running: one append-only file a process
answers.jsonl   of a model behind an API: what it answered, as it came (`answers`)
samples.jsonl   when finished: a line a sample, in the order of the selected ids
metrics.json    written last; a run is finished when it is there
images/ID.png   the attacked images, the ones that were scored
clean/ID.png    the first samples' clean images on the same canvas, for the report

Every line, metrics.json and every image has its SHA-256, so that what was changed afterwards is refused (`checksums`).
Of an image it is that of the PNG file: it is had without decoding, and `sha256sum` shows the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval_tasks.config.validation import first_problem, read_bytes
from eval_tasks.data.selection import ids_digest
from eval_tasks.run.checksums import bytes_sum, document_sum, file_sum, sealed, settings_key, unsealed
from eval_tasks.run.documents import SCHEMA, own_file, read_metrics, read_settings
from eval_tasks.run.environment import environment
from lvlm_radapt.utils.atomic_folder import check_writable
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.images import open_image, png_bytes
from lvlm_radapt.utils.leftovers import is_own, sweep
from lvlm_radapt.utils.writing import RUN, sync_folder, write_whole, writing

SAMPLES = "samples.jsonl"
NO_CHECKSUMS = (
    "this run is of an earlier version and has no checksums: a change of its records or images is not noticed"
)
# Entries of run.json that may differ when a run is resumed; all others must be equal. What follows from others is here,
# so that a run that was begun before it was written down can be resumed; so are threads: a resumed run takes them over.
INFORMATIONAL = frozenset(
    {"attack.eps_8bit", "command", "created", "data", "determinism", "environment", "left_out", "processes", "resumed"}
    | {"schema", "threads", "usage"}
)


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Scored(_Model):
    """An answer and its score in the metric's unit (None: no score, as CIDEr of a single image)."""

    output: str
    score: float | None


class Attacked(Scored):
    """The answer to the attacked image, with the attack's loss (None: it has none, as noise) and the 8-bit
    image's distances from the clean canvas in [0, 1] pixel units; `zero_grad` marks an all-zero gradient.

    failed: why the attack ended early; the image is then the best one it had. success: of a targeted attack, whether
    the answer contains the target. stage, broken: of an ensemble, the stage that made the image ("clean": none), and
    whether it brought the score, on the model it was made on, under the threshold; of attacks on classifiers, the one
    that made that model wrong about the image, and whether one did. rounded_back: it was wrong before the rounding to
    8 bits only. steps: gradient steps spent on it, those of a library not counted. remarks: signs of a broken
    evaluation, said of the sample's batch. image_sha256: of the PNG file.
    """

    loss: float | None
    steps: Annotated[int, Field(ge=0)] | None = None
    linf: Annotated[float, Field(ge=0)]
    l2: Annotated[float, Field(ge=0)]
    zero_grad: bool = False
    failed: str | None = None
    success: bool | None = None
    stage: str | None = None
    broken: bool | None = None
    rounded_back: bool = False
    remarks: Annotated[tuple[str, ...], Field(strict=False)] = ()
    image_sha256: str | None = None


class SampleRecord(_Model):
    """One line of samples.jsonl. NaN and wrong types raise pydantic's ValidationError (a ValueError).

    image: the `image_key` of the sample's image, equal for samples that share it; None in runs of earlier versions.
    clean_sha256: of the PNG file of the clean image, where it is kept.
    """

    id: Annotated[str, Field(min_length=1)]
    image: str | None = None
    question: str | None
    references: Annotated[tuple[str, ...], Field(strict=False)]
    clean: Scored
    adversarial: Attacked | None
    seconds: Annotated[float, Field(ge=0)]
    clean_sha256: str | None = None

    @property
    def kept(self) -> dict[str, str]:
        """The SHA-256 of this sample's images by their folder, where there is one."""
        sums = {"images": self.adversarial.image_sha256 if self.adversarial else None, "clean": self.clean_sha256}
        return {under: one for under, one in sums.items() if one is not None}


Part = Literal["clean", "adversarial"]


@dataclass(frozen=True)
class Run:
    """A finished run as read from its folder; `samples` are in the order of the selected ids."""

    path: Path
    settings: dict[str, Any]
    metrics: dict[str, Any]
    samples: list[SampleRecord]

    def scores(self, part: Part) -> dict[str, float]:
        """The score of each sample that has one there, by its id, in the metric's unit."""
        answers = [(sample.id, getattr(sample, part)) for sample in self.samples]
        return {own: answer.score for own, answer in answers if answer is not None and answer.score is not None}

    @property
    def remark(self) -> str | None:
        """What a reader has to know of the folder."""
        return NO_CHECKSUMS if self.settings["schema"] == 1 else None

    def check_images(self) -> None:
        """UserError naming the sample of the first image, attacked or clean, that is not the run's own any more.
        One that is not there is no such image."""
        for record in self.samples:
            for under, wanted in record.kept.items():
                path = image_path(self.path, under, record.id)
                if path.is_file():
                    _check_sum(path, record.id, wanted)


def images_of(records: Iterable[SampleRecord]) -> list[str] | None:
    """The image of each record; None where a record names none, so that intervals are over samples."""
    images = [record.image for record in records]
    return None if None in images else [image for image in images if image is not None]


def image_name(sample_id: str) -> str:
    """`ID.png`, with everything but letters, digits, `_`, `-`, `.` and `~` percent-encoded; distinct ids get
    distinct names, and no name leaves the folder or is hidden."""
    name = quote(sample_id, safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > 120:
        # "%-" is never produced by percent-encoding, so a shortened name cannot meet a whole one.
        name = name[:60] + "%-" + hashlib.sha256(sample_id.encode()).hexdigest()
    return name + ".png"


def image_path(run: Path, under: str, sample_id: str) -> Path:
    """Where a run's image is, or would be. UserError where links lead out of the run folder, which may come from
    somebody else and must not show other files."""
    return own_file(run, under, image_name(sample_id))


class RunFolder:
    """The writer of a run folder. Every process of a run opens its own; one calls `create` and `finish`.

    rank: the process's number in its run; process ids alone may be equal on two machines.
    """

    def __init__(self, path: str | os.PathLike[str], rank: int = 0) -> None:
        self.path = Path(path)
        self._rank = rank
        self._ids: list[str] | None = None
        self._part: int | None = None
        self._owner: int | None = None

    @property
    def finished(self) -> bool:
        """True once metrics.json is there, which is written last."""
        return (self.path / "metrics.json").is_file()

    def check(self, *, resume: bool) -> bool:
        """Whether a run was begun in the folder, to be continued with `resume`. UserError, as for `create`, where none
        can be written there."""
        check_writable(self.path)
        with writing(self.path):
            there = (
                sorted(entry.name for entry in self.path.iterdir() if not is_own(entry)) if self.path.exists() else []
            )
        if RUN in there and not resume:
            raise UserError(f"{self.path} already holds a run: use --resume to continue it or another --out")
        if there and RUN not in there:
            raise UserError(f"{self.path} holds other files ({there[0]}, ...): choose an empty folder as --out")
        return RUN in there

    def create(self, settings: Mapping[str, Any], ids: Sequence[str], *, resume: bool = False) -> RunFolder:
        """Start a run with these settings over these ids, or continue it when `resume`.

        `settings` are JSON values; entries in INFORMATIONAL may differ on resume. With `resume`, an
        empty or absent folder starts a run. Raises UserError when the folder holds another run or other
        files, is no folder, or cannot be written.
        """
        if len(set(ids)) != len(ids):
            raise ValueError("the selected ids are not distinct")
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": environment(),
            **settings,
            "ids": {"n": len(ids), "sha256": ids_digest(ids)},
        }
        # What is compared later is what JSON keeps: tuples become lists, and NaN is refused here.
        document = json.loads(json.dumps(document, allow_nan=False))
        begun = self.check(resume=resume)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            sweep(self.path)
        if begun:
            self._rejoin(document)
        else:
            write_whole(self.path / "run.json", _pretty(document))
        if self.finished:
            self.clear()  # a kill may have come between the last file and this
        else:
            with writing(self.path):
                (self.path / "parts").mkdir(exist_ok=True)
                (self.path / "images").mkdir(exist_ok=True)
        self._ids = list(ids)
        return self

    def append(self, record: SampleRecord) -> None:
        """Add a sample's line to this process's part file, on disk when this returns."""
        line = self.line(record)
        if self._part is None or self._owner != os.getpid():  # a forked child must not share its parent's file
            self._part, self._owner = self._open_part(), os.getpid()
        try:
            with writing(self.path):
                written = 0
                while written < len(line):
                    written += os.write(self._part, line[written:])
                os.fsync(self._part)
        except UserError:
            # A line may be half written now; opening the file again cuts it off.
            self.close()
            raise

    def close(self) -> None:
        """Close this process's part file; `append` opens it again."""
        if self._part is not None and self._owner == os.getpid():
            os.close(self._part)
        self._part = self._owner = None

    def done_ids(self) -> set[str]:
        """Ids that have a whole record; a line torn by a kill does not count."""
        return set(self._records())

    def unsound_images(self) -> list[str]:
        """Ids that have a record of an attacked image which is missing or damaged, by the checksums in the PNG file.
        UserError for a sound file that is another image than the record's."""
        unsound = []
        for record in self._records().values():
            path = image_path(self.path, "images", record.id)
            if record.adversarial is None:
                continue
            if not _is_sound(path):
                unsound.append(record.id)
            else:
                _check_sum(path, record.id, record.adversarial.image_sha256)
        return unsound

    def records(self) -> list[SampleRecord]:
        """The records there are, in the order of the selected ids; UserError for damaged files and foreign records."""
        records = self._records()
        order = self._selected()
        foreign = sorted(records.keys() - set(order))
        if foreign:
            raise UserError(f"{self.path} holds a record of sample {foreign[0]!r}, which this run did not select")
        return [records[sample_id] for sample_id in order if sample_id in records]

    def finish(self, metrics: Mapping[str, Any], records: Sequence[SampleRecord] | None = None) -> None:
        """Merge the parts into samples.jsonl and write metrics.json; UserError when samples are missing.

        records: what `self.records()` gives, where it is known."""
        records = self.records() if records is None else records
        order = self._selected()
        if len(records) < len(order):
            missing = len(order) - len(records)
            raise UserError(f"{self.path} lacks {missing} of {len(order)} samples: continue it with --resume")
        self.close()
        write_whole(self.path / SAMPLES, b"".join(map(self.line, records)))
        whole = json.loads(json.dumps(metrics, allow_nan=False))
        write_whole(self.path / "metrics.json", _pretty(whole | {"checksum": document_sum(whole, self.key)}))
        self.clear()

    def clear(self) -> None:
        """Remove what a finished run needs no more."""
        with writing(self.path):
            for part in self._parts():
                part.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a file of somebody else's in there stays
                (self.path / "parts").rmdir()
            sweep(self.path)

    def save_image(self, sample_id: str, x: torch.Tensor | np.ndarray, *, under: str = "images") -> str:
        """Write a uint8 [3, H, W] image as images/ID.png (or in the folder `under`), whole or not at all; the SHA-256
        of the file."""
        content = png_bytes(x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x)
        with writing(self.path):
            (self.path / under).mkdir(exist_ok=True)
        write_whole(self.path / under / image_name(sample_id), content)
        return bytes_sum(content)

    def tell(self, **entries: Any) -> None:
        """Put entries into run.json that are no part of the run's identity. ValueError for others."""
        if not entries.keys() <= INFORMATIONAL:
            raise ValueError(f"{sorted(entries)} are not all informational")
        write_whole(self.path / RUN, _pretty({**read_settings(self.path), **entries}))

    def load_image(self, sample_id: str, sha256: str | None = None) -> torch.Tensor:
        """The saved image, uint8 [3, H, W]; UserError when it is missing or damaged, or has another SHA-256."""
        path = image_path(self.path, "images", sample_id)
        if path.is_file():
            _check_sum(path, sample_id, sha256)
        pixels = np.array(open_image(path))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    @property
    def has_no_checksums(self) -> bool:
        """Whether an earlier version began this run."""
        return bool(read_settings(self.path)["schema"] == 1)

    @cached_property
    def key(self) -> bytes:
        """What seals the lines of this run alone."""
        return settings_key(_identity(read_settings(self.path)))

    def line(self, record: SampleRecord) -> bytes:
        """The record as it stands in a part file and in samples.jsonl: JSON, sealed by its checksum."""
        return sealed(record.model_dump_json().encode(), self.key) + b"\n"

    def _rejoin(self, document: dict[str, Any]) -> None:
        old = read_settings(self.path)
        before, now = _identity(old), _identity(document)
        changed = [key for key in sorted(before.keys() | now.keys()) if _on(before.get(key)) != _on(now.get(key))]
        if changed:
            shown = "; ".join(f"{key} was {_short(before.get(key))}, now {_short(now.get(key))}" for key in changed[:3])
            more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
            raise UserError(f"{self.path} cannot be resumed with other settings: {shown}{more}")
        if old.get("environment") != document["environment"]:
            # The samples still to come are made with something else than the first ones: keep a trace of it.
            resumed = [*old.get("resumed", []), {key: document[key] for key in ("created", "environment")}]
            write_whole(self.path / "run.json", _pretty({**old, "resumed": resumed}))

    def _selected(self) -> list[str]:
        if self._ids is None:
            raise ValueError("create() tells the folder which ids are selected: call it first")
        return self._ids

    def _open_part(self) -> int:
        path = self.path / "parts" / f"part-{self._rank}-{os.getpid()}.jsonl"
        with writing(path):
            if path.exists():  # an earlier process with the same number, perhaps killed while writing
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            sync_folder(path.parent)
        return handle

    def _parts(self) -> list[Path]:
        return list((self.path / "parts").glob("part-*.jsonl"))

    def _records(self) -> dict[str, SampleRecord]:
        settings = read_settings(self.path)
        if self.finished:
            return {record.id: record for record in _read_lines(self.path, SAMPLES, settings=settings)}
        # A redone chunk may repeat an id: the last one written goes with the image on disk.
        parts = sorted(self._parts(), key=lambda part: (part.stat().st_mtime_ns, part.name))
        return {
            record.id: record
            for part in parts
            for record in _read_lines(self.path, "parts", part.name, settings=settings, torn_tail=True)
        }


def read_run(path: str | os.PathLike[str]) -> Run:
    """A finished run, checked: UserError when it is no run, unfinished, damaged or of another schema."""
    folder = Path(path)
    settings = read_settings(folder)
    if not (folder / "metrics.json").is_file():
        done = len(RunFolder(folder).done_ids())
        total = settings["ids"]["n"]
        raise UserError(f"run {folder} is not finished ({done} of {total} samples): continue it with --resume")
    samples = _read_lines(folder, SAMPLES, settings=settings)
    if ids_digest(record.id for record in samples) != settings["ids"]["sha256"]:
        raise UserError(f"{folder / SAMPLES} does not hold the samples that run.json names: run it again")
    metrics = read_metrics(folder)
    own = metrics.pop("checksum", None)
    if settings["schema"] > 1 and own != document_sum(metrics, settings_key(_identity(settings))):
        raise UserError(_changed(f"{folder / 'metrics.json'} was"))
    return Run(folder, settings, metrics, samples)


def _read_lines(run: Path, *names: str, settings: Mapping[str, Any], torn_tail: bool = False) -> list[SampleRecord]:
    # Split on the newline byte alone: texts may hold characters that str.splitlines takes for line ends.
    *lines, tail = read_bytes(own_file(run, *names)).split(b"\n")
    path = run.joinpath(*names)
    if tail and not torn_tail:
        raise UserError(f"{path}: the last line is cut off")
    key = settings_key(_identity(settings))
    records = []
    for number, line in enumerate(lines, start=1):
        body, right = unsealed(line, key)
        try:
            records.append(SampleRecord.model_validate_json(body))
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: {first_problem(error)}") from error
        if not right and settings["schema"] > 1:
            raise UserError(_changed(f"the record of sample {records[-1].id} in {path}, line {number}, was"))
    return records


def _check_sum(path: Path, sample_id: str, wanted: str | None) -> None:
    if wanted is not None and file_sum(path) != wanted:
        raise UserError(
            f"the image of sample {sample_id}, {path}, is not the one that this run made and scored: put that one "
            "back, or run it again"
        )


def _changed(what: str) -> str:
    return f"{what} changed after the run, or run.json was: its checksum is wrong; put back what it was, or run again"


def _identity(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings that must not change, flat: `attack.eps` -> value."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if prefix + key in INFORMATIONAL:
            continue
        if isinstance(value, dict) and value:
            flat.update(_identity(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _on(value: object) -> object:
    """The value, None for false: a setting that is off is left out by some versions and written by others."""
    return None if value is False else value


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _pretty(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _is_sound(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except Exception:  # Pillow's decoders raise many kinds, from OSError to struct.error
        return False
    return True
