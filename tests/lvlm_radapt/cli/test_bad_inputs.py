"""Every bad input ends in one line on stderr and exit code 2, and nothing is written or lost: one table of them."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eval_tasks.data import load_task, open_image
from eval_tasks.data.checking import check_data
from eval_tasks.metrics.vqa import normalise_answer, vqa_accuracy
from eval_tasks.run.records import read_run
from lvlm_radapt.loading.adapter import load_adapter
from lvlm_radapt.loading.load import load_model
from lvlm_radapt.utils.errors import UserError
from tests.helpers.cases import (
    DEEP,
    NOISE,
    Case,
    Place,
    adapter,
    checkpoint,
    data_check,
    encoded,
    evaluated,
    field,
    file,
    holding,
    image,
    json_file,
    lines_of,
    made_folder,
    malicious,
    png,
    preset,
    run_folder,
    simple,
    torch_bytes,
    tower,
)
from tests.helpers.cli import Cli
from tests.helpers.data_sets import ANNOTATIONS, MAKERS, QUESTIONS, change, write
from tests.helpers.evaluations import evaluation, score, with_options
from tests.helpers.failures import perhaps_refused
from tests.helpers.records import finished, record, started
from tests.helpers.tiny_checkpoints import save_qwen

EMPTY = ["data", "check", "coco", "--data"]
VQA_LINE = b'{"annotations": [' + b",".join([b'{"question_id": 1, "image_id": 2, "answers": []}'] * 5000) + b"]}"
LAUGHS = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (k + 1, k + 1, k, k) for k in range(97, 121))

CASES: dict[str, Case] = {
    # data folders and annotation files
    "a data folder that is not there": simple(*EMPTY, "{at.tmp}/none", expected="does not exist; task coco wants DIR/"),
    "a data folder that is a file": simple(*EMPTY, __file__, expected="is a file, not a data folder"),
    "an empty data folder": (
        lambda at: [(at.tmp / "e").mkdir(), *EMPTY, at.tmp / "e"][1:],
        "data folder .* is empty; task coco wants",
    ),
    "a folder of another data set": simple(*EMPTY, "{at.model}", expected="captions.json is not in"),
    "an unknown task": simple("data", "check", "cocoo", "--data", "{at.data}", expected="did you mean 'coco'"),
    "no samples to check": simple(*EMPTY, "{at.data}", "--samples", "0", expected="at least 1"),
    "a negative seed": simple(*EMPTY, "{at.data}", "--seed=-1", expected="seed must be between 0"),
    "an empty file": data_check("coco", None, b"", "Invalid JSON"),
    "a truncated file": data_check("coco", None, b'{"images": [{"id": 1', "Invalid JSON"),
    "a list for an object": data_check("coco", None, b"[]", "captions_val2014.json: "),
    "JSON nested without end": data_check("coco", None, DEEP, "captions_val2014.json: Invalid JSON"),
    "objects nested without end": data_check("vqav2", QUESTIONS, b'{"questions":' * 50_000, "Invalid JSON"),
    "no UTF-8": data_check("coco", None, b'{"images": "\xff\xfe"}', "captions_val2014.json: "),
    "half a surrogate pair": data_check("coco", None, b'{"images": [{"id": 1, "file_name": "\\ud800"}]}', "Invalid"),
    "NaN for an id": data_check("coco", None, b'{"images": [{"id": NaN}], "annotations": []}', "field images.0.id"),
    "an id that is no whole number": field("coco", ["images", 0, "id"], 1.5, "field images.0.id"),
    "an id in quotes": field("coco", ["images", 0, "id"], "100", "field images.0.id"),
    "an id without end": data_check("coco", None, b'{"images": [{"id": ' + b"9" * 5000 + b"}]}", "images.0.id|JSON"),
    "an id twice": field("coco", ["images", 1, "id"], 100, "image id 100 occurs more than once"),
    "a caption of no image": field("coco", ["annotations", 0, "image_id"], 77, "captions without an entry"),
    "an image without a caption": field("coco", ["annotations", 1, "caption"], " ", "has no caption"),
    "a path that climbs out": field("coco", ["images", 0, "file_name"], "../../x.jpg", "stay inside the data folder"),
    "a path from the root": field("coco", ["images", 0, "file_name"], "/etc/passwd", "stay inside the data folder"),
    "a path on another drive": field("coco", ["images", 0, "file_name"], "C:\\x.jpg", "stay inside the data folder"),
    "a path with a NUL": field("coco", ["images", 0, "file_name"], "x\0.jpg", "stay inside the data folder"),
    "a path that colours terminals": field("coco", ["images", 0, "file_name"], "\x1b[31m.jpg", "control characters"),
    "a path of two lines": field("coco", ["images", 0, "file_name"], "x\n.jpg", "control characters"),
    "a path without end": field("coco", ["images", 0, "file_name"], "x" * 10_000, "it is too long"),
    "one very long line of answers": data_check("vqav2", ANNOTATIONS, VQA_LINE, r"field annotations.0.answers.* more"),
    "nine answers": field("vqav2", ["annotations", 1, "answers", 0], ..., "field annotations.1.answers"),
    "answers about another image": field("vqav2", ["annotations", 1, "image_id"], 43, "about image 43 here"),
    "a question without answers": field("okvqa", ["annotations", 1], ..., "no answers for the question"),
    "an image number without end": field("textvqa", ["data", 0, "image_id"], 10**30, "field data.0.image_id"),
    "an object for a list": data_check("vizwiz", None, b"{}", "val.json: "),
    "an answer that is none": field("vizwiz", [0, "answers", 0], {"answer": None}, "field 0.answers.0.answer"),
    "a line that is no JSON": data_check("pope", None, b'{"question_id": 1}\nx\n', "line 1: field image"),
    "a label that is no label": data_check(
        "pope", None, b'{"question_id": 1, "image": "a.jpg", "text": "?", "label": "maybe"}', "line 1: field label"
    ),
    "an option that is not there": field("scienceqa", ["12", "answer"], 26, "answer 26 is none of its 3 choices"),
    "more options than letters": field("scienceqa", ["12", "choices"], ["x"] * 27, "field 12.choices"),
    "a split without a test part": field("flickr30k", ["images"], [], "no image has split 'test'"),
    # images
    "a missing image": image(lambda path: None, "of 2 images 1 missing are: put them there"),
    "an image of no bytes": image(holding(b""), "1 damaged"),
    "a web page": image(holding(b"<html>404</html>"), "1 damaged"),
    "a drawing (SVG)": image(holding(b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"), "1 damaged"),
    "a document (PDF)": image(holding(encoded(NOISE, "PDF")), "1 damaged"),
    "PostScript, which Pillow would run": image(holding(encoded(NOISE, "EPS")), "1 damaged"),
    "an icon": image(holding(encoded(NOISE, "ICO")), "1 damaged"),
    "half a JPEG": image(holding(encoded(NOISE, "JPEG")[:-300]), "1 damaged"),
    "half a PNG": image(holding(encoded(NOISE, "PNG")[:100]), "1 damaged"),
    "a PNG without pixels": image(holding(png(4, 4)), "1 damaged"),
    "a decompression bomb": image(holding(encoded(Image.new("1", (9600, 9600)), "PNG")), "1 damaged"),
    "a header of 3600 megapixels": image(holding(png(60_000, 60_000)), "1 damaged"),
    "a text chunk that bursts": image(
        holding(png(4, 4, (b"zTXt", b"x\0\0" + zlib.compress(bytes(80_000_000), 9)))), "1 damaged"
    ),
    "a strip of 20000 x 20": image(holding(encoded(Image.new("1", (20_000, 20)), "PNG")), "1 damaged"),
    "pixels of 32 bits": image(holding(encoded(Image.new("F", (4, 4)), "TIFF")), "1 damaged"),
    "a folder for an image": image(lambda path: path.mkdir(), "1 missing"),
    "a pipe that nobody writes to": image(lambda path: os.mkfifo(path), "1 missing"),
    "a device": image(lambda path: path.symlink_to("/dev/zero"), "1 missing"),
    "a link to nothing": image(lambda path: path.symlink_to("nowhere.jpg"), "1 missing"),
    "a link to itself": image(lambda path: path.symlink_to(path.name), "1 missing"),
    "a link to what is no image": image(lambda path: path.symlink_to(__file__), "1 damaged"),
    "eval with an image missing": (
        lambda at: [
            "eval",
            at.tmp / "no-model-yet",
            "--task",
            "coco",
            "--out",
            at.out,
            *image(lambda path: None, "")[0](at)[3:],
        ],
        "1 of 2 images are missing: .*000000000009.jpg; put them there .eval can leave them out: --skip-missing",
    ),
    # flags
    **{
        f"eps {text!r}": evaluated({"--eps": text}, "eps must be in")
        for text in ("4", "0", "1.01", "nan", "inf", "-0", "4/0", "4/255/1", "", "٤/255", "1e999", "9" * 500)
    },
    "eps of half a level": evaluated({"--eps": "0.5/255"}, "less than one level of an 8-bit image"),
    "noise of half a level": simple(
        "eval",
        "tiny-llava",
        "--task",
        "coco",
        "--data",
        "{at.data}",
        "--out",
        "{at.out}",
        "--attack",
        "noise",
        "--eps",
        "1e-5",
        expected="eps 1e-05 is less than one level",
    ),
    "an L2 length under one level": evaluated({"--eps": "0.003", "--norm": "L2"}, "less than one level"),
    **{
        f"{command} with eps of half a level": simple(
            command,
            "tiny-llava",
            "--task",
            "coco",
            "--data",
            "{at.data}",
            "--out",
            "{at.out}",
            "--eps",
            "0.5/255",
            expected="less than one level of an 8-bit image",
        )
        for command in ("audit", "tune")
    },
    "compare with eps of half a level": simple(
        "compare", "paper", "--eps", "4/255,0.5/255", "--out", "{at.out}", expected="less than one level"
    ),
    "eps of no length": evaluated({"--norm": "L2", "--eps": "1e5"}, "eps under L2"),
    "steps that are no number": evaluated({"--steps": "many"}, r"Invalid value for '--steps'.*\(see .* --help\)"),
    "a dtype that is none": evaluated({"--dtype": "int8"}, "Invalid value for '--dtype'"),
    "a batch of nothing": evaluated({"--batch-size": "0"}, "Invalid value for '--batch-size'"),
    "a flag that is none": evaluated({"--tusk": "coco"}, "No such option: --tusk"),
    "a command that is none": simple("evaluate", expected="No such command 'evaluate'"),
    "no model": simple("audit", expected="Missing"),
    "no steps": evaluated({"--steps": "0"}, "--steps must be at least 1"),
    "no samples": evaluated({"--samples": "0"}, "number of samples must be at least 1"),
    "a seed beyond numpy's": evaluated({"--seed": str(2**32)}, "seed must be between"),
    "an attack that is none": evaluated({"--attack": "../attacks/e2e"}, "unknown attack"),
    "a preset that is none": evaluated({"--preset": "fair"}, "did you mean 'fare'"),
    "a task that is none": evaluated({"--task": "VQA"}, "unknown task"),
    "a device that is none": evaluated({"--device": "gpu"}, "is no device"),
    "a surrogate without an attack": evaluated(
        {"--attack": "none", "--surrogate": "tiny-clip"}, "--surrogate needs an attack"
    ),
    "a model that is none": (
        lambda at: ["eval", at.tmp / "nowhere", "--task", "coco", "--data", at.data, "--out", at.out],
        "nowhere",
    ),
    "a cutoff of nothing": simple("robustify", "{at.model}", "--cutoff", "nan", "--out", "{at.out}", expected="cutoff"),
    # presets
    "a preset that is not there": evaluated({"--preset": "nowhere.yaml"}, "cannot read nowhere.yaml"),
    "a preset that is a folder": (
        lambda at: [
            (at.tmp / "p.yaml").mkdir(),
            "eval",
            at.model,
            "--task",
            "coco",
            "--data",
            at.data,
            "--out",
            at.out,
            "--preset",
            at.tmp / "p.yaml",
        ][1:],
        "cannot read",
    ),
    "a preset that is no YAML": preset(b"a: [1\nb: 2", "is not valid YAML"),
    "a preset that is a list": preset(b"- 1", "it must be a YAML mapping"),
    "a preset that would run code": preset(b"a: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    "a preset of a billion laughs": preset(LAUGHS, "field name: Field required"),
    "a preset nested without end": preset(b"a: " + b"[" * 1500, "is not valid YAML"),
    "a preset with a slip of the pen": preset({"sampels": 3}, "field sampels"),
    "a preset with NaN for a limit": preset(
        {"thresholds": {"coco": {"kind": "absolute", "value": float("nan")}}}, "field thresholds.coco.value"
    ),
    "a preset under a shipped name": preset({"name": "fare"}, "shipped preset's name"),
    "a preset without the task": preset({"max_new_tokens": {"vqav2": 5}}, "has no max_new_tokens for task coco"),
    "a preset without the task's prompt": (
        lambda at: [
            *preset({"prompts": {"caption": "c", "vqa": "{question}"}}, "")[0](at),
            *("--task", "pope", "--data", made_folder("pope", at)),
        ],
        "has no prompt for task pope: add it to prompts",
    ),
    # run folders
    "no run folder": simple("report", "{at.data}", "--out", "{at.out}", expected="it has no run.json"),
    "run.json that is no JSON": run_folder(file("run.json", b"{"), "run.json is damaged: it is no JSON file"),
    "run.json nested without end": run_folder(file("run.json", DEEP), "run.json is damaged: it is no JSON file"),
    "run.json that is a list": run_folder(file("run.json", b"[]"), "run.json is damaged: it is no JSON object"),
    "a run of another schema": run_folder(json_file("run.json", lambda d: d | {"schema": 99}), "has schema 99"),
    "a run without ids": run_folder(json_file("run.json", lambda d: d | {"ids": None}), "field ids"),
    "a run with another setting": run_folder(
        json_file("run.json", lambda d: d | {"seed": 5}), "record of sample 9 in .* changed after the run, or run.json"
    ),
    "a run of other samples": run_folder(
        json_file("run.json", lambda d: d | {"schema": 1, "ids": {"n": 3, "sha256": "0"}}), "does not hold the samples"
    ),
    "a run that is not finished": (
        lambda at: [started(at.tmp / "run").append(record("9")), "report", at.tmp / "run", "--out", at.out][1:],
        r"is not finished \(1 of 3 samples\)",
    ),
    "a run without samples": run_folder(lambda f: (f / "samples.jsonl").unlink(), "cannot read .*samples.jsonl"),
    "a run that is cut off": run_folder(lambda f: lines_of(f, lambda lines: lines[:-1]), "last line is cut off"),
    "a run with a line of nonsense": run_folder(
        lambda f: lines_of(f, lambda lines: [b"nonsense", *lines[1:]]), "line 1: Invalid JSON"
    ),
    "a run with a score of NaN": run_folder(
        lambda f: lines_of(f, lambda lines: [lines[0].replace(b"81.5", b"NaN"), *lines[1:]]), "line 1: field clean"
    ),
    "a run with a record twice": run_folder(
        lambda f: lines_of(f, lambda lines: [lines[0], *lines]), "does not hold the samples"
    ),
    "metrics.json that is a list": run_folder(
        file("metrics.json", b"[]"), "metrics.json is damaged: it is no JSON object"
    ),
    "an --out that is another run": (
        lambda at: [finished(at.out).close(), *evaluated({}, "")[0](at)][1:],
        "already holds a run",
    ),
    "an --out that is a file": (
        lambda at: [at.out.write_text("mine"), *evaluated({}, "")[0](at)][1:],
        "is a file: choose another --out",
    ),
    "an --out with other things": (
        lambda at: [write(at.out / "my.txt", b"x"), *evaluated({}, "")[0](at)][1:],
        "my.txt",
    ),
    # adapters
    "an adapter of a later version": adapter(json_file("radapt.json", lambda d: d | {"version": 2}), "version 2"),
    "an adapter that is no adapter": adapter(file("radapt.json", b"{}"), "does not say that it is"),
    "an adapter nested without end": adapter(file("radapt.json", DEEP), "it is no JSON file"),
    "an adapter with unknown settings": adapter(json_file("radapt.json", lambda d: d | {"x": 1}), "field x"),
    "an adapter with a cutoff of NaN": adapter(
        json_file("radapt.json", lambda d: d | {"config": d["config"] | {"cutoff": float("nan")}}), "NaN is no number"
    ),
    "an adapter with other tensors": adapter(file("adapter.safetensors", b"x" * 99), "checksum"),
    "an adapter without tensors": adapter(lambda f: (f / "adapter.safetensors").unlink(), "cannot read"),
    "an adapter whose base is gone": adapter(
        json_file("radapt.json", lambda d: change(d, ["base", "name"], "/nowhere/at/all")), "cannot open the base model"
    ),
    "an adapter of another tower": adapter(
        json_file("radapt.json", lambda d: change(d, ["base", "tower", "float32"], "0")), "other weights"
    ),
    # checkpoints
    "a checkpoint without a config": checkpoint(lambda f: (f / "config.json").unlink(), "config.json"),
    "a config that is no JSON": checkpoint(file("config.json", b"{"), "config.json"),
    "a config nested without end": checkpoint(file("config.json", DEEP), "config.json"),
    "an architecture nobody knows": checkpoint(file("config.json", b'{"model_type": "idefics3"}'), "not supported"),
    "a model with code of its own": checkpoint(
        file("config.json", b'{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}'), "not supported"
    ),
    "weights cut short": checkpoint(lambda f: os.truncate(f / "model.safetensors", 1000), "changed"),
    "weights with a header of a terabyte": checkpoint(
        file("model.safetensors", struct.pack("<Q", 10**12) + b"{}"), "changed"
    ),
    "a checkpoint without weights": checkpoint(lambda f: (f / "model.safetensors").unlink(), "changed"),
    "a pickle that runs code": tower(malicious, "tower.pt"),
    "a tower of no bytes": tower(lambda at: b"", "tower.pt"),
    "a tower that is no state dict": tower(lambda at: torch_bytes([1, 2]), "tower.pt"),
    "a tower of other tensors": tower(lambda at: torch_bytes({"a": torch.zeros(2)}), "tower.pt"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_line_and_nothing_is_lost(name: str, refused: Callable[[Case], str]) -> None:
    refused(CASES[name])


def test_the_images_of_the_table_are_named_with_their_reason(shared: Path, tmp_path: Path) -> None:
    reasons = {
        "an image of no bytes": "is empty",
        "a document (PDF)": "is not an image this program reads",
        "PostScript, which Pillow would run": "is not an image this program reads",
        "a decompression bomb": "too large to be opened safely",
        "a header of 3600 megapixels": "too large to be opened safely",
        "a strip of 20000 x 20": "20000x20 pixels",
        "pixels of 32 bits": "32-bit pixels",
        "half a JPEG": "is damaged",
    }
    for number, (name, reason) in enumerate(reasons.items()):
        arrange, _ = CASES[name]
        own = tmp_path / str(number)
        own.mkdir()
        folder = arrange(Place(own, shared / "data", shared / "model", shared / "adapter"))[-1]
        (said,) = check_data("coco", folder).damaged
        assert "COCO_val2014_000000000009.jpg" in said
        assert reason in said


# --- whatever comes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def mutated(content: Any, draw: Callable[..., Any]) -> Any:
    """The content with one of its values, at any depth, replaced by any JSON."""
    if isinstance(content, dict) and content and draw(st.booleans() | st.just(True)):
        key = draw(st.sampled_from(sorted(content)))
        return content | {key: mutated(content[key], draw)}
    if isinstance(content, list) and content and draw(st.booleans() | st.just(True)):
        place = draw(st.integers(0, len(content) - 1))
        return [*content[:place], mutated(content[place], draw), *content[place + 1 :]]
    return draw(JSON)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(task=st.sampled_from(sorted(set(MAKERS) - {"pope"})), draw=st.data())
def test_a_file_with_any_value_anywhere_is_samples_or_a_user_error(
    tmp_path: Path, task: str, draw: st.DataObject
) -> None:
    make, name = MAKERS[task]
    make(tmp_path / task)
    path = tmp_path / task / name
    path.write_text(json.dumps(mutated(json.loads(path.read_bytes()), draw.draw)), encoding="utf-8")
    with perhaps_refused():
        for sample in load_task(task, tmp_path / task):
            assert sample.image.resolve().is_relative_to((tmp_path / task).resolve())
            assert sample.references


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(["run.json", "metrics.json"]), draw=st.data())
def test_a_run_with_any_value_anywhere_is_read_or_refused(tmp_path: Path, name: str, draw: st.DataObject) -> None:
    folder = tmp_path / "run"
    if not folder.exists():
        finished(folder).close()
    original = (folder / name).read_bytes()
    try:
        write(folder / name, mutated(json.loads(original), draw.draw))
        with perhaps_refused():
            assert len(read_run(folder).samples) == 3
    finally:
        (folder / name).write_bytes(original)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(draw=st.data())
def test_adapter_settings_with_any_value_anywhere_open_or_are_refused(
    shared: Path, tmp_path: Path, draw: st.DataObject
) -> None:
    folder = tmp_path / "changed"
    if not folder.exists():
        shutil.copytree(shared / "adapter", folder)
    content = json.loads((shared / "adapter" / "radapt.json").read_bytes())
    write(folder / "radapt.json", mutated(content, draw.draw))
    with perhaps_refused():
        load_adapter(folder)


@given(st.text(), st.sampled_from(["vqav2", "openflamingo", "textvqa"]))
def test_answers_are_normalised_whatever_they_are(text: str, style: str) -> None:
    once = normalise_answer(text, style)
    assert "\n" not in once
    assert once == once.strip()
    assert 0 <= vqa_accuracy(text, [text, once, "yes"], style) <= 1


@given(st.lists(st.sampled_from(["red", "a", "two", "dont", "maam", "Cat", "7"]), max_size=6).map(" ".join))
def test_normalising_plain_words_twice_changes_nothing(text: str) -> None:
    for style in ("vqav2", "openflamingo", "textvqa"):
        once = normalise_answer(text, style)
        assert normalise_answer(once, style) == once


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=60), head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a"]))
def test_any_bytes_are_an_image_or_a_user_error(tmp_path: Path, content: bytes, head: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(head + content)
    with perhaps_refused():
        assert open_image(path).mode == "RGB"


def test_skipped_images_are_counted_in_the_run(shared: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    shutil.copytree(shared / "data", data)
    annotations = data / "annotations" / "captions_val2014.json"
    content = json.loads(annotations.read_bytes())
    content["images"].append({"id": 3, "file_name": "x.jpg"})
    content["annotations"].append({"image_id": 3, "caption": "A bird"})
    write(annotations, content)
    asked = evaluation("coco", data)
    model = load_model(str(shared / "model"))
    with pytest.raises(UserError, match="1 of 3 images are missing"):
        score(model, asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = score(model, with_options(asked, skip_missing=True), tmp_path / "run")
    assert [sample.id for sample in run.samples] == ["9", "100"]
    assert run.settings["left_out"].startswith("1 samples were left out (--skip-missing): 1 images missing: ")
    assert run.settings["left_out"] in run.metrics["notes"]


def test_an_image_without_a_place_on_the_canvas_is_named(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "data", tmp_path / "set")
    narrow = tmp_path / "set" / "val2014" / "COCO_val2014_000000000009.jpg"
    Image.new("RGB", (250, 1)).save(narrow)
    asked = evaluation("coco", tmp_path / "set")
    with pytest.raises(UserError, match=f"image {narrow}: an image of 250x1 px cannot be used"):
        score(load_model(str(save_qwen(tmp_path / "qwen"))), asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_data_folder_is_checked_without_torch(shared: Path) -> None:
    code = (
        "import sys; from lvlm_radapt import cli\n"
        f"sys.argv = ['lvlm-radapt', 'data', 'check', 'coco', '--data', {str(shared / 'data')!r}]\n"
        "try: cli.main()\nexcept SystemExit as stop: assert not stop.code\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_a_good_folder_can_run(shared: Path, cli: Cli) -> None:
    out = cli.done("data", "check", "coco", "--data", shared / "data")
    assert "holds: annotations/ (1 entries), val2014/ (2 entries)" in out
    assert "task coco: 2 samples on 2 images" in out
    assert "missing images: 0" in out
    assert "damaged images: 0" in out
    assert "layout wanted" in out
    assert "task coco can run" in out
