"""A run's attacked images in one file to hand on: what scores them again, and what people must know of them.

manifest.json   for people: what was attacked and how, and of each image its label, distance and SHA-256
NOTICE.txt      whose images these are
run.json, samples.jsonl, metrics.json, images/ID.png   a run folder without the clean images, checked as any other

Equal runs give equal bytes.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from eval_tasks.config.presets import load_task_config, names
from eval_tasks.run.documents import own_file
from eval_tasks.run.facts import model_label
from eval_tasks.run.records import SAMPLES, Run, image_name, image_path
from lvlm_radapt.utils.errors import NoRoom, UserError
from lvlm_radapt.utils.json_files import read_bytes
from lvlm_radapt.utils.writing import RUN, check_file, whole_file, writing

MANIFEST = "manifest.json"
_DOCUMENTS = (RUN, SAMPLES, "metrics.json")
_NAMES = re.compile(rf"{MANIFEST}|NOTICE\.txt|run\.json|samples\.jsonl|metrics\.json|images/[^/\\\0]{{1,200}}\.png")
_LARGEST = 2**30  # bytes of one file in a pack
_HERE = ("command", "data", "resumed")  # of run.json, which name the places of one machine


def write_pack(run: Run, out: Path, licence: str | None = None) -> Path:
    """Pack the run's attacked images into the zip file `out`. licence: of the images; None for what the task says.

    UserError for a run without attacked images, for one of which an image is missing or changed, and where `out` cannot
    be written.
    """
    if run.settings["attack"] is None:
        raise UserError(f"run {run.path} has no attacked images: it was clean")
    check_file(out, what="pack", own=lambda head: MANIFEST.encode() in head[:60])
    run.check_images()
    paths = {record.id: image_path(run.path, "images", record.id) for record in run.samples}
    missing = [one for one, path in paths.items() if not path.is_file()]
    if missing:
        raise UserError(f"run {run.path} lacks {len(missing)} of its {len(paths)} images: first that of {missing[0]}")
    settings = {key: value for key, value in run.settings.items() if key not in _HERE}
    with writing(out), whole_file(out) as file, zipfile.ZipFile(file, "w") as made:
        _add(made, MANIFEST, _text(_manifest(run, licence or _known_licence(run))))
        _add(made, "NOTICE.txt", _notice(run, licence or _known_licence(run)).encode())
        _add(made, RUN, _text(settings))
        for name in _DOCUMENTS[1:]:
            _add(made, name, read_bytes(own_file(run.path, name)))
        for path in paths.values():
            _add(made, f"images/{path.name}", read_bytes(path), zipfile.ZIP_STORED)  # PNG files are compressed
    return out


@contextmanager
def unpacked(path: Path | None) -> Iterator[Path | None]:
    """The run folder `path` itself; a pack's as a folder of its own, until the block ends; None for None.

    UserError for a file that is no pack, that holds anything else or more than the disk has room for, or is damaged.
    """
    if path is None or not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="lvlm-radapt-") as place:
        folder = Path(place) / (path.stem or "pack")
        (folder / "images").mkdir(parents=True)
        with writing(folder):
            _unpack(path, folder)
        yield folder


_UNREADABLE = (
    zipfile.BadZipFile,  # no archive, or checksums that do not fit
    zlib.error,  # content that was changed
    EOFError,  # content that ends too early
    NotImplementedError,  # a later version of the format
    UnicodeDecodeError,  # a name that is no UTF-8 although its entry says so
)
"""What zipfile raises for a file that it cannot read."""


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as pack:
            entries = pack.infolist()
            listed = [entry.filename for entry in entries]
            odd = next(
                (one.filename for one in entries if _NAMES.fullmatch(one.filename) is None or _strange(one)), None
            )
            lacking = next((name for name in _DOCUMENTS if name not in listed), None)
            if odd is not None or lacking is not None or len(set(listed)) < len(listed):
                what = f"it lacks {lacking}" if odd is None else f"it holds {odd[:60]!r}"
                raise UserError(f"{path} is no pack of this program: {what}")
            size = sum(entry.file_size for entry in entries)
            if max(entry.file_size for entry in entries) > _LARGEST or size > shutil.disk_usage(folder).free:
                raise NoRoom(f"{path} unpacks to {size:,} bytes, for which {folder.parent.parent} has no room")
            for entry in entries:
                with pack.open(entry) as source, (folder / entry.filename).open("xb") as target:
                    _copy(source, target, entry.file_size)
    except _UNREADABLE as error:
        raise UserError(f"{path} is no pack of this program, or is damaged: {' '.join(str(error).split())}") from error


def _strange(entry: zipfile.ZipInfo) -> bool:
    """Whether it is encrypted, or compressed as no pack is."""
    return bool(entry.flag_bits & 1) or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """So many bytes and no more, whatever the archive unpacks to."""
    while size > 0 and (piece := source.read(min(size, 2**20))):
        target.write(piece)
        size -= len(piece)
    if size or source.read(1):
        raise zipfile.BadZipFile("a file has another size than the archive says")


def _add(pack: zipfile.ZipFile, name: str, content: bytes, how: int = zipfile.ZIP_DEFLATED) -> None:
    entry = zipfile.ZipInfo(name)  # its date is 1980 in every pack
    entry.external_attr = 0o644 << 16
    entry.compress_type = how
    pack.writestr(entry, content)


def _manifest(run: Run, licence: str) -> dict[str, Any]:
    attack = run.settings["attack"]
    told = {
        key: attack.get(key) for key in ("name", "threat", "surrogate", "norm", "eps", "eps_8bit", "steps", "target")
    }
    images = []
    for record in run.samples:
        made = record.adversarial
        assert made is not None  # the run was attacked
        images.append(
            {
                "file": f"images/{image_name(record.id)}",
                "sha256": made.image_sha256,
                "id": record.id,
                "question": record.question,
                "references": list(record.references),
                "linf": made.linf,
                "l2": made.l2,
                "clean_answer": record.clean.output,
                "answer": made.output,
            }
        )
    return {
        "format": "lvlm-radapt pack",
        "version": 1,
        "made_on": model_label(run),
        "task": run.settings["task"],
        "preset": run.settings["preset"],
        "seed": run.settings["seed"],
        "attack": told,
        "units": "linf and l2 are distances from the clean image on the model's canvas, in [0, 1] pixel units",
        "licence": licence,
        "images": images,
    }


def _known_licence(run: Run) -> str:
    task = str(run.settings["task"])
    known = load_task_config(task).licence if task in names("tasks") else None
    return known or "not known here: ask who made the data"


def _notice(run: Run, licence: str) -> str:
    return (
        f"{len(run.samples)} images of the task {run.settings['task']}, changed by the attack "
        f"{run.settings['attack']['name']} to mislead {model_label(run)}.\n"
        "They are for measuring and training models. Do not take them for natural images.\n\n"
        f"The images under the changes: {licence}.\n"
        "The changes and the records beside them: no rights are claimed.\n"
    )


def _text(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
