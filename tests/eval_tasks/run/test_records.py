"""The run folder: what is written survives kills, and what is read is checked."""

import hashlib
import json
import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eval_tasks.run import records
from eval_tasks.run.records import (
    Attacked,
    RunFolder,
    SampleRecord,
    Scored,
    environment,
    ids_digest,
    image_name,
    read_run,
)
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.leftovers import is_own
from tests.helpers.records import IDS, METRICS, SETTINGS, finished, record, started
from tests.helpers.run_folders import without_checksums


def part_file(path: Path) -> Path:
    return path / "parts" / f"part-0-{os.getpid()}.jsonl"


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- a whole run


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    folder = started(path)
    assert not folder.finished
    assert folder.done_ids() == set()
    for sample_id in ("x/y", "9", "100"):
        folder.append(record(sample_id))
    assert folder.done_ids() == set(IDS)
    assert [entry.id for entry in folder.records()] == IDS
    folder.finish(METRICS)
    assert folder.finished
    assert sorted(entry.name for entry in path.iterdir()) == ["images", "metrics.json", "run.json", "samples.jsonl"]
    run = read_run(str(path))
    assert run.samples == [record(sample_id) for sample_id in IDS]
    assert run.metrics == METRICS
    assert {key: run.settings[key] for key in SETTINGS} == SETTINGS
    assert run.settings["schema"] == 2
    assert run.settings["ids"] == {"n": 3, "sha256": ids_digest(IDS)}
    assert folder.done_ids() == set(IDS)
    # One plain JSON object a line, as any other tool reads it.
    lines = (path / "samples.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["id"] for line in lines[:-1]] == IDS
    assert run.remark is None
    assert json.loads(lines[0])["adversarial"]["linf"] == 4 / 255


def test_the_digest_sees_ids_and_their_order() -> None:
    expected = hashlib.sha256(b'["9", "100", "x/y"]').hexdigest()
    assert ids_digest(IDS) == expected
    assert len({ids_digest(ids) for ids in (IDS, IDS[::-1], IDS[:2], ["9100", "x/y"], [])}) == 5


def test_environment_is_json_and_names_what_matters() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["packages"]["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]


def test_the_build_of_torch_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.15.0+cu132")  # the metadata of that package says 2.15.0
    assert environment()["packages"]["torch"] == "2.15.0+cu132"


def test_the_commit_is_recorded_in_a_clone_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval_tasks.run import environment as module

    monkeypatch.setattr(module, "__file__", str(tmp_path / "eval_tasks" / "run" / "environment.py"))
    assert environment()["git"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert environment()["git"] is None  # a clone without a commit
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert environment()["git"] == {"commit": head, "changed": False}
    (tmp_path / "file").write_text("two")
    assert environment()["git"] == {"commit": head, "changed": True}


# --- starting and resuming


def test_folders_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(UserError, match=r"other files \(thesis\.tex") as caught:
            RunFolder(tmp_path).create(SETTINGS, IDS, resume=resume)
        one_line(caught)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex").create(SETTINGS, IDS)
    with pytest.raises(UserError, match="cannot write"):
        RunFolder(tmp_path / "thesis.tex" / "run").create(SETTINGS, IDS)


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    started(tmp_path).append(record("9"))
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UserError, match="already holds a run: use --resume"):
        started(tmp_path)
    assert (tmp_path / "run.json").read_bytes() == before


def test_resume_keeps_what_is_done(tmp_path: Path) -> None:
    started(tmp_path).append(record("100"))
    again = RunFolder(tmp_path).create(SETTINGS | {"command": "another spelling"}, IDS, resume=True)
    assert again.done_ids() == {"100"}
    again.append(record("9"))
    again.append(record("x/y"))
    again.finish(METRICS)
    assert read_run(tmp_path).settings["command"] == SETTINGS["command"]
    # A finished run can be asked to resume: nothing is left to do, and nothing is touched.
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert RunFolder(tmp_path).create(SETTINGS, IDS, resume=True).done_ids() == set(IDS)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names


def test_resume_of_nothing_starts(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new").create(SETTINGS, IDS, resume=True)
    assert (tmp_path / "new" / "run.json").is_file()


def test_a_setting_that_is_off_may_be_left_out_on_resume(tmp_path: Path) -> None:
    attack = SETTINGS["attack"]
    begun = SETTINGS | {"attack": attack | {"early_exit": False, "half": None}}
    RunFolder(tmp_path).create(begun, IDS).close()
    RunFolder(tmp_path).create(SETTINGS | {"attack": attack}, IDS, resume=True).close()
    with pytest.raises(UserError, match=r"attack\.early_exit was false, now true"):
        RunFolder(tmp_path).create(SETTINGS | {"attack": attack | {"early_exit": True}}, IDS, resume=True)


def test_differences_are_named_on_resume(tmp_path: Path) -> None:
    started(tmp_path)
    changed = SETTINGS | {"attack": SETTINGS["attack"] | {"eps": 2 / 255, "steps": 100}, "radapt": {"alpha": 1.0}}
    with pytest.raises(UserError) as caught:
        RunFolder(tmp_path).create(changed, IDS, resume=True)
    text = one_line(caught)
    assert f"attack.eps was {4 / 255}, now {2 / 255}" in text
    assert "attack.steps was 10, now 100" in text
    assert "radapt.alpha was null, now 1.0" in text
    assert "command" not in text
    with pytest.raises(UserError, match=r"ids\.n was 3, now 2; ids\.sha256 was"):
        RunFolder(tmp_path).create(SETTINGS, IDS[:2], resume=True)
    with pytest.raises(UserError, match=r"\(and 1 more\)"):
        RunFolder(tmp_path).create({**changed, "task": "vqav2"}, IDS, resume=True)


def test_a_resume_on_another_machine_leaves_a_trace(tmp_path: Path) -> None:
    started(tmp_path, environment={"gpu": "first"})
    RunFolder(tmp_path).create(SETTINGS | {"environment": {"gpu": "first"}}, IDS, resume=True)
    assert "resumed" not in json.loads((tmp_path / "run.json").read_text())
    RunFolder(tmp_path).create(SETTINGS | {"environment": {"gpu": "second"}}, IDS, resume=True)
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["environment"] == {"gpu": "first"}
    assert [trace["environment"] for trace in content["resumed"]] == [{"gpu": "second"}]


def test_a_kill_before_run_json_leaves_a_folder_that_can_start(tmp_path: Path, monkeypatch: Any) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "replace", killed)
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # a killed process takes nothing away
        with pytest.raises(KeyboardInterrupt):
            started(tmp_path)
    assert not (tmp_path / "run.json").exists()
    left = list(tmp_path.iterdir())
    assert left  # the unfinished temporary file among them
    assert all(map(is_own, left))
    finished(tmp_path)
    assert not [entry for entry in tmp_path.rglob("*") if entry.name.endswith(".tmp")]


def test_settings_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        started(tmp_path / "a", eps=math.nan)
    with pytest.raises(TypeError):
        started(tmp_path / "a", path=Path("x"))
    with pytest.raises(ValueError, match="not distinct"):
        RunFolder(tmp_path / "a").create(SETTINGS, ["1", "1"])
    assert not (tmp_path / "a").exists()
    # What JSON cannot tell apart does not hinder a resume.
    started(tmp_path / "b", sizes=(1, 2))
    RunFolder(tmp_path / "b").create(SETTINGS | {"sizes": [1, 2]}, IDS, resume=True)


# --- part files


@pytest.mark.parametrize("keep", [1, 30, -1])
def test_a_torn_last_line_is_dropped_and_cut_on_reopening(tmp_path: Path, keep: int) -> None:
    folder = started(tmp_path)
    folder.append(record("9"))
    whole = part_file(tmp_path).read_bytes()
    folder.append(record("100"))
    folder.close()
    torn = whole + part_file(tmp_path).read_bytes()[len(whole) :][:keep]
    part_file(tmp_path).write_bytes(torn)

    again = RunFolder(tmp_path).create(SETTINGS, IDS, resume=True)
    assert again.done_ids() == {"9"}
    assert part_file(tmp_path).read_bytes() == torn  # reading alone changes nothing: its writer may be alive
    again.append(record("x/y"))
    assert again.done_ids() == {"9", "x/y"}
    assert part_file(tmp_path).read_bytes().startswith(whole)
    again.append(record("100"))
    again.finish(METRICS)
    assert read_run(tmp_path).samples == [record(sample_id) for sample_id in IDS]


def test_the_torn_line_of_another_process_stays(tmp_path: Path) -> None:
    folder = started(tmp_path)
    other = tmp_path / "parts" / "part-1.jsonl"
    other.write_bytes(folder.line(record("9")) + b'{"id": "10')
    folder.append(record("100"))
    assert folder.done_ids() == {"9", "100"}
    assert other.read_bytes().endswith(b'{"id": "10')


def test_damage_inside_a_part_is_named(tmp_path: Path) -> None:
    folder = started(tmp_path)
    folder.append(record("9"))
    folder.close()
    with part_file(tmp_path).open("ab") as file:
        file.write(b'{"id": 3}\n')
    with pytest.raises(UserError, match=r"part-0-\d+\.jsonl, line 2: field ") as caught:
        folder.done_ids()
    one_line(caught)


def test_a_failed_write_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = started(tmp_path)
    folder.append(record("9"))
    real = os.write
    calls = []

    def full(handle: int, content: bytes) -> int:
        calls.append(1)
        if len(calls) == 1:
            return real(handle, content[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "write", full)
        with pytest.raises(UserError, match="No space left on device"):
            folder.append(record("100"))
    folder.append(record("x/y"))
    assert folder.done_ids() == {"9", "x/y"}


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = started(tmp_path)
    real = os.write
    monkeypatch.setattr(records.os, "write", lambda handle, content: real(handle, content[:7]))
    folder.append(record("9"))
    assert folder.records() == [record("9")]


def test_a_redone_sample_counts_once_and_the_last_wins(tmp_path: Path) -> None:
    folder = started(tmp_path)
    old = tmp_path / "parts" / "part-999999999.jsonl"
    old.write_bytes(folder.line(record("9", "old")))
    os.utime(old, (1, 1))
    folder.append(record("9", "first"))
    folder.append(record("9", "second"))
    assert [entry.clean.output for entry in folder.records()] == ["second"]


def _child(path: Path, sample_id: str) -> None:
    RunFolder(path).append(record(sample_id))


@pytest.mark.slow
def test_processes_write_parts_of_their_own(tmp_path: Path) -> None:
    folder = started(tmp_path)
    folder.append(record("9"))
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_child, args=(tmp_path, "x/y"))
    child.start()
    child.join()
    assert child.exitcode == 0
    folder.append(record("100"))
    assert len(list((tmp_path / "parts").iterdir())) == 2
    folder.finish(METRICS)
    assert [sample.id for sample in read_run(tmp_path).samples] == IDS


def test_another_process_number_opens_another_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a fork does: the object is copied with its open file, the process number changes.
    folder = started(tmp_path)
    folder.append(record("9"))
    monkeypatch.setattr(records.os, "getpid", lambda: 12345)
    folder.append(record("100"))
    assert (tmp_path / "parts" / "part-0-12345.jsonl").read_bytes().count(b"\n") == 1
    assert folder.done_ids() == {"9", "100"}


def test_finishing_needs_every_selected_sample_and_no_other(tmp_path: Path) -> None:
    folder = started(tmp_path)
    folder.append(record("9"))
    with pytest.raises(UserError, match="lacks 2 of 3 samples: continue it with --resume"):
        folder.finish(METRICS)
    assert not folder.finished
    folder.append(record("77"))
    with pytest.raises(UserError, match="sample '77', which this run did not select"):
        folder.finish(METRICS)
    with pytest.raises(ValueError, match=r"create\(\)"):
        RunFolder(tmp_path).finish(METRICS)


def test_a_kill_between_merge_and_metrics_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = started(tmp_path)
    for sample_id in IDS:
        folder.append(record(sample_id))
    real = records.write_whole

    def killed(path: Path, content: bytes) -> None:
        if path.name == "metrics.json":
            raise KeyboardInterrupt
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(records, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.finish(METRICS)
    again = RunFolder(tmp_path).create(SETTINGS, IDS, resume=True)
    assert not again.finished
    assert again.done_ids() == set(IDS)
    again.finish(METRICS)
    assert [sample.id for sample in read_run(tmp_path).samples] == IDS


def test_a_kill_after_metrics_leaves_nothing_that_a_resume_does_not_clear(tmp_path: Path, monkeypatch: Any) -> None:
    def killed(_folder: RunFolder) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "clear", killed)
        with pytest.raises(KeyboardInterrupt):
            finished(tmp_path)
    assert part_file(tmp_path).exists()
    assert RunFolder(tmp_path).create(SETTINGS, IDS, resume=True).finished
    assert not (tmp_path / "parts").exists()
    assert [sample.id for sample in read_run(tmp_path).samples] == IDS


# --- records


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": 9},
        {"id": "\ud800"},
        {"seconds": math.nan},
        {"seconds": -1.0},
        {"references": "a dog"},
        {"clean": {"output": "x", "score": math.inf}},
        {"clean": {"output": None, "score": 1.0}},
        {"adversarial": {"output": "x", "score": 1.0, "loss": math.nan, "linf": 0.1, "l2": 0.1}},
        {"adversarial": {"output": "x", "score": 1.0, "loss": None, "linf": -0.1, "l2": 0.1}},
        {"extra": 1},
    ],
)
def test_bad_records_are_refused(changes: dict[str, Any]) -> None:
    good = record("9").model_dump()
    assert SampleRecord(**good) == record("9")
    with pytest.raises(ValueError, match=next(iter(changes))):
        SampleRecord(**good | changes)


def test_numbers_of_numpy_and_absent_ones() -> None:
    sample = SampleRecord(
        id="1",
        question="q",
        references=["a"],  # type: ignore[arg-type]
        clean=Scored(output="", score=None),
        adversarial=Attacked(output="b", score=np.float64(1.5), loss=None, linf=np.float64(0.25), l2=0, zero_grad=True),
        seconds=1,
    )
    assert SampleRecord.model_validate_json(sample.model_dump_json()) == sample


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCORED = st.builds(Scored, output=st.text(), score=st.none() | FLOATS)
ATTACKED = st.builds(
    Attacked,
    output=st.text(),
    score=FLOATS,
    loss=st.none() | FLOATS,
    linf=st.floats(0, 1),
    l2=st.floats(0, 1e3),
    zero_grad=st.booleans(),
)
RECORDS = st.builds(
    SampleRecord,
    id=st.text(min_size=1),
    question=st.none() | st.text(),
    references=st.lists(st.text(), max_size=3).map(tuple),
    clean=SCORED,
    adversarial=st.none() | ATTACKED,
    seconds=st.floats(0, 1e6),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(RECORDS, max_size=4, unique_by=lambda entry: entry.id), st.integers(0, 400))
def test_any_records_come_back_from_parts_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, entries: list[SampleRecord], cut: int
) -> None:
    path = tmp_path_factory.mktemp("run")
    folder = RunFolder(path).create(SETTINGS | {"environment": {}}, [entry.id for entry in entries])
    for entry in entries:
        folder.append(entry)
    folder.close()
    if entries:
        content = part_file(path).read_bytes()
        part_file(path).write_bytes(content[: len(content) - cut])
        whole = content[: len(content) - cut].count(b"\n") if cut < len(content) else 0
        assert folder.records() == entries[:whole]
        for entry in entries[whole:]:
            folder.append(entry)
    folder.finish({})
    assert read_run(path).samples == entries


# --- reading


def test_what_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"is not a run folder: it has no run\.json") as caught:
            read_run(path)
        assert str(path) in one_line(caught)
    started(tmp_path / "half").append(record("9"))
    with pytest.raises(UserError, match=r"not finished \(1 of 3 samples\): continue it with --resume"):
        read_run(tmp_path / "half")


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "samples.jsonl"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7\n", b"\xff", b"[" * 100_000, b"{}\n"])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    finished(tmp_path)
    if (name, content) == ("metrics.json", b"{}\n"):
        content = b"null"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_run(tmp_path)
    assert str(tmp_path / name) in one_line(caught)


def test_other_schemas_and_other_samples_are_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(content | {"schema": 3}))
    with pytest.raises(UserError, match="has schema 3, this version reads up to 2"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(content | {"ids": 3}))
    with pytest.raises(UserError, match="field ids"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(content))
    samples = tmp_path / "samples.jsonl"
    whole = samples.read_bytes()
    samples.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="cut off"):
        read_run(tmp_path)
    samples.write_bytes(whole[: whole.index(b"\n") + 1])
    with pytest.raises(UserError, match="does not hold the samples"):
        read_run(tmp_path)
    samples.unlink()
    with pytest.raises(UserError, match="cannot read"):
        read_run(tmp_path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=80) | st.text(max_size=40).map(lambda text: json.dumps(text).encode()))
def test_any_samples_file_is_a_run_or_a_user_error(tmp_path: Path, content: bytes) -> None:
    if not (tmp_path / "run.json").exists():
        finished(tmp_path)
    (tmp_path / "samples.jsonl").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_run(tmp_path)
    one_line(caught)


# --- changed afterwards


def edit(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new, 1))


CHANGES: dict[str, tuple[str, bytes, bytes, str]] = {
    "a score": ("samples.jsonl", b'"score":0.0', b'"score":9.0', "the record of sample 9 in .*samples.jsonl, line 1,"),
    "an answer": ("samples.jsonl", b"a cat", b"a dog", "the record of sample 9 in"),
    "a distance": ("samples.jsonl", b'"linf":0.015', b'"linf":0.005', "the record of sample 9 in"),
    "no checksum": ("samples.jsonl", b',"checksum":"', b',"x":"', r"line 1: field x|the record of sample 9"),
    "a mean": ("metrics.json", b'"n": ', b'"n": 1', "metrics.json was changed after the run"),
    "a setting": ("run.json", b'"task": "', b'"task": "other-', "the record of sample 9 in .* or run.json was"),
}


@pytest.mark.parametrize(("name", "old", "new", "words"), CHANGES.values(), ids=CHANGES)
def test_a_changed_run_is_refused_by_sample(tmp_path: Path, name: str, old: bytes, new: bytes, words: str) -> None:
    finished(tmp_path)
    edit(tmp_path / name, old, new)
    with pytest.raises(UserError, match=words) as caught:
        read_run(tmp_path)
    one_line(caught)


def test_a_changed_part_is_refused_when_the_run_goes_on(tmp_path: Path) -> None:
    folder = started(tmp_path)
    folder.append(record("100"))
    folder.close()
    edit(part_file(tmp_path), b'"score":0.0', b'"score":9.0')
    again = RunFolder(tmp_path).create(SETTINGS, IDS, resume=True)
    with pytest.raises(
        UserError, match=r"the record of sample 100 in .*part-0-\d+.jsonl, line 1, was changed"
    ) as caught:
        again.records()
    one_line(caught)


def test_lines_of_another_run_are_refused(tmp_path: Path) -> None:
    finished(tmp_path / "one")
    RunFolder(tmp_path / "two").create(SETTINGS | {"seed": 43}, IDS)
    (tmp_path / "two" / "parts" / "part-1.jsonl").write_bytes((tmp_path / "one" / "samples.jsonl").read_bytes())
    with pytest.raises(UserError, match=r"the record of sample 9 in .* was changed"):
        RunFolder(tmp_path / "two").done_ids()


def test_an_image_in_anothers_place_is_refused_by_sample(tmp_path: Path) -> None:
    folder = started(tmp_path)
    x = torch.full((3, 4, 4), 7, dtype=torch.uint8)
    sha256 = folder.save_image("9", x)
    assert sha256 == hashlib.sha256((tmp_path / "images" / "9.png").read_bytes()).hexdigest()
    assert torch.equal(folder.load_image("9", sha256), x)
    attacked = record("9").adversarial
    assert attacked is not None
    folder.append(record("9").model_copy(update={"adversarial": attacked.model_copy(update={"image_sha256": sha256})}))
    folder.save_image("9", 255 - x)
    for look in (folder.unsound_images, lambda: folder.load_image("9", sha256)):
        with pytest.raises(
            UserError, match=r"the image of sample 9, .*9\.png, is not the one that this run made"
        ) as caught:
            look()
        one_line(caught)
    (tmp_path / "images" / "9.png").write_bytes(b"damaged")  # by accident: made again
    assert folder.unsound_images() == ["9"]


def test_a_run_of_an_earlier_version_opens_and_says_that_it_has_no_checksums(tmp_path: Path) -> None:
    finished(tmp_path)
    run = read_run(without_checksums(tmp_path))
    assert [entry.id for entry in run.samples] == IDS
    assert run.remark is not None
    assert "no checksums" in run.remark


# --- images


@pytest.mark.parametrize("sample_id", ["9", "x/y", "../../up", ".hidden", "Ünï ☃", "a" * 500])
def test_images_come_back_exactly(tmp_path: Path, sample_id: str) -> None:
    folder = started(tmp_path / "run")
    x = torch.randint(0, 256, (3, 6, 11), dtype=torch.uint8)
    folder.save_image(sample_id, x)
    assert torch.equal(folder.load_image(sample_id), x)
    folder.save_image(sample_id, 255 - x.numpy())
    assert torch.equal(folder.load_image(sample_id), 255 - x)
    (written,) = (tmp_path / "run" / "images").iterdir()
    assert written.suffix == ".png"
    with Image.open(written) as stored:
        np.testing.assert_array_equal(np.asarray(stored), 255 - x.permute(1, 2, 0).numpy())


def test_plain_ids_name_their_image() -> None:
    assert image_name("262148000") == "262148000.png"
    assert image_name("003a8ae2ef43b901") == "003a8ae2ef43b901.png"
    assert image_name("x/y") == "x%2Fy.png"


@given(st.text(min_size=1), st.text(min_size=1))
def test_image_names_are_safe_and_distinct(first: str, second: str) -> None:
    name = image_name(first)
    assert Path(name).name == name
    assert not name.startswith(".")
    assert name.isascii()
    assert len(name) <= 255
    assert (name == image_name(second)) == (first == second)


def test_a_kill_while_saving_leaves_the_old_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = started(tmp_path)
    x = torch.full((3, 4, 4), 7, dtype=torch.uint8)
    folder.save_image("9", x)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.save_image("9", x + 1)
    assert torch.equal(folder.load_image("9"), x)


def test_images_of_another_kind_and_absent_ones(tmp_path: Path) -> None:
    folder = started(tmp_path)
    for wrong in (torch.rand(3, 4, 4), torch.zeros(4, 4, 3, dtype=torch.uint8), np.zeros((1, 3, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"uint8 \[3, H, W\]"):
            folder.save_image("9", wrong)
    with pytest.raises(UserError, match=r"cannot read image .*9\.png"):
        folder.load_image("9")
