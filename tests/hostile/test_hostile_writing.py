"""Nothing that people made is written over: every --out and --log-json takes a new file or folder, or its own kind."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval_tasks.report.page import write_report
from lvlm_radapt.training.state import StateFile
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.progress import JsonLines
from lvlm_radapt.utils.writing import whole_file, write_whole
from tests.helpers.cases import Case, Place, Words, evaluated
from tests.helpers.data_sets import write
from tests.helpers.run_folders import Maker, attack, spread


def run_of(at: Place) -> Path:
    return Maker(at.tmp)(spread(30, 1), attacked=attack(), images=True).path


def report(out: Callable[[Place, Path], Any], words: str) -> Case:
    """`report` of a finished run to the file that `out` names."""

    def arrange(at: Place) -> Words:
        run = run_of(at)
        return ["report", run, "--out", out(at, run)]

    return arrange, words


def logged(put: Callable[[Path], object], words: str) -> Case:
    """`eval` with a log to what `put` puts there."""

    def arrange(at: Place) -> Words:
        put(at.tmp / "log")
        return [*evaluated({}, "")[0](at), "--log-json", at.tmp / "log"]

    return arrange, words


def inside(*words: str, below: str = "new") -> Case:
    """A command whose --out lies in a run folder."""

    def arrange(at: Place) -> Words:
        run = run_of(at)
        return [*(word.format(at=at) for word in words), "--out", run / below]

    return arrange, IN_RUN


def theirs(name: str, content: str = "mine") -> Callable[[Place, Path], Path]:
    def put(at: Place, run: Path) -> Path:
        write(at.tmp / name, content.encode())
        return at.tmp / name

    return put


def link(at: Place, run: Path) -> Path:
    write(at.tmp / "thesis.tex", b"mine")
    (at.tmp / "page.html").symlink_to("thesis.tex")
    return at.tmp / "page.html"


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def socket(path: Path) -> Path:
    """Neither file nor folder, as a device is, which a test must not risk."""
    os.mknod(path, 0o600 | stat.S_IFSOCK)
    return path


def page(at: Place, run: Path) -> Path:
    other = Maker(at.tmp / "other")(spread(30, 1), attacked=attack()).path
    write(other / "report.html", b"<!doctype html><title>mine</title>")
    return other / "report.html"


FOREIGN = "is no report of this program, so it is not replaced: name a new file"
IN_RUN = "lies in the run folder .*: name a place outside of it"
TASK = ("--task", "coco", "--data", "{at.data}", "--preset", "scenes")

CASES: dict[str, Case] = {
    "a report over its run's settings": report(lambda at, run: run / "run.json", IN_RUN),
    "a report over its run's samples": report(lambda at, run: run / "samples.jsonl", IN_RUN),
    "a report over its run's numbers": report(lambda at, run: run / "metrics.json", IN_RUN),
    "a report over an attacked image": report(lambda at, run: run / "images" / "s00.png", IN_RUN),
    "a report over a clean image": report(lambda at, run: run / "clean" / "s00.png", IN_RUN),
    "a report under another name in its run": report(lambda at, run: run / "mine.html", IN_RUN),
    "a report among a run's images": report(lambda at, run: run / "images" / "report.html", IN_RUN),
    "a report by a way around": report(lambda at, run: run / "images" / ".." / "run.json", IN_RUN),
    "a report over another run's page that is none": report(page, FOREIGN),
    "a report over a thesis": report(theirs("thesis.tex"), FOREIGN),
    "a report over somebody's page": report(theirs("index.html", "<!doctype html><title>x</title>"), FOREIGN),
    "a report over an image": report(lambda at, run: write_png(at.tmp / "photo.png"), FOREIGN),
    "a report through a link": report(link, "it is a link, name a new file"),
    "a report through a link to nothing": report(
        lambda at, run: (at.tmp / "gone.html").symlink_to("nowhere") or at.tmp / "gone.html", "it is a link"
    ),
    "a report over a folder": report(lambda at, run: at.tmp, "it is a folder, name a new file"),
    "a report into a pipe": report(lambda at, run: pipe(at.tmp / "pipe"), "it is no regular file, name a new file"),
    "a report over a socket": report(lambda at, run: socket(at.tmp / "door"), "it is no regular file, name a new file"),
    "a report in a folder that is a file": report(
        lambda at, run: theirs("file")(at, run) / "report.html", "cannot write .*report.html"
    ),
    "a report in a link to itself": report(
        lambda at, run: (at.tmp / "loop").symlink_to("loop") or at.tmp / "loop" / "x.html", "cannot write .*x.html"
    ),
    "a report under too long a name": report(lambda at, run: at.tmp / ("x" * 300), "cannot write .*: File name too"),
    "a log over data": logged(lambda path: path.write_text('{"images": []}'), "is no log of this program"),
    "a log over a table": logged(lambda path: path.write_text("a,b\n1,2\n"), "is no log of this program"),
    "a log over lines of others": logged(lambda path: path.write_text('{"time": 1}\n'), "is no log of this program"),
    "a log over bytes": logged(lambda path: path.write_bytes(bytes(range(256))), "is no log of this program"),
    "a log through a link": logged(lambda path: path.symlink_to("elsewhere"), "it is a link"),
    "a log into a pipe that nobody reads": logged(pipe, "it is no regular file"),
    "a log over a folder": logged(lambda path: path.mkdir(), "it is a folder"),
    "a log over a device": (
        lambda at: [*evaluated({}, "")[0](at), "--log-json", "/dev/full"],
        "cannot write /dev/full: it is no regular file",
    ),
    "a log over a run's samples": (
        lambda at: [*evaluated({}, "")[0](at), "--log-json", run_of(at) / "samples.jsonl"],
        IN_RUN,
    ),
    "a log in a run folder": (lambda at: [*evaluated({}, "")[0](at), "--log-json", run_of(at) / "log.jsonl"], IN_RUN),
    "an adapter in a run folder": inside("robustify", "{at.model}"),
    "an adapter among a run's images": inside("robustify", "{at.model}", below="images/new"),
    "a whole model in a run folder": inside("robustify", "{at.model}", "--export"),
    "scenes in a run folder": inside("data", "scenes", "--count", "2"),
    "a run in a run folder": inside("eval", "{at.model}", *TASK, "--attack", "none"),
    "an audit in a run folder": inside("audit", "{at.model}", *TASK),
    "a tuning in a run folder": inside("tune", "tiny-llava", *TASK, "--samples", "2"),
    "a comparison in a run folder": inside("compare", "scopes"),
    "an analysis in a run folder": inside("analyze", "tiny-clip", "--guide", "tiny-clip-fare", "--images", "{at.data}"),
    "fine-tuned weights in a run folder": inside("finetune", "tiny-clip", "--method", "fare", "--images", "{at.data}"),
    "a demo in a run folder": inside("demo"),
}


def write_png(path: Path) -> Path:
    write(path, b"\x89PNG\r\n\x1a\n" + bytes(64))
    return path


@pytest.mark.parametrize("name", CASES)
def test_what_people_made_is_left_alone(name: str, refused: Callable[[Case], str]) -> None:
    refused(CASES[name])


def test_a_report_replaces_a_report_in_its_run_and_elsewhere(tmp_path: Path) -> None:
    run = Maker(tmp_path)(spread(30, 1), attacked=attack())
    for out in (run.path / "report.html", tmp_path / "mine.html", tmp_path / "mine.html"):
        write_report([run], out)
        out.write_bytes(out.read_bytes() + b"<!-- older -->")
        write_report([run], out)
        assert not out.read_bytes().endswith(b"older -->")


def test_a_log_goes_on_in_its_own_file_and_in_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    for event in ("one", "two"):
        with JsonLines.to(str(path)) as log:
            log.write({"event": event})
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["one", "two"]


def test_a_file_written_whole_leaves_links_sockets_and_targets_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "curves.png").symlink_to("thesis.tex")
    door = socket(tmp_path / "door")
    for place in (tmp_path / "curves.png", door, tmp_path):
        with pytest.raises(UserError, match="cannot write"):
            write_whole(place, b"new")
    assert (tmp_path / "curves.png").is_symlink()
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert door.is_socket()


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with whole_file(tmp_path / "new") as file:
        aside = Path(file.name)
    aside.symlink_to("thesis.tex")
    write_whole(tmp_path / "new", b"second")
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "new").read_bytes() == b"second"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["new", "thesis.tex"]


def test_a_failure_while_writing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", b"old")

    def half() -> None:
        with whole_file(tmp_path / "x") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_training_does_not_save_itself_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "out.training").symlink_to("thesis.tex")
    with pytest.raises(UserError, match="it is a link"):
        StateFile(tmp_path / "out.training", {}, every=0).note({"step": 1})
    assert (tmp_path / "thesis.tex").read_text() == "mine"
