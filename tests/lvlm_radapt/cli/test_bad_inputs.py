"""Every bad input ends in one line on stderr and exit code 2, and nothing is written or lost: one table of them."""

import json
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
from eval_tasks.metrics.vqa import normalise_answer
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
from tests.helpers.data_sets import ANNOTATIONS, MAKERS, QUESTIONS, write
from tests.helpers.evaluations import evaluation, score, with_options
from tests.helpers.failures import perhaps_refused
from tests.helpers.records import finished
from tests.helpers.tiny_checkpoints import save_qwen

EMPTY = ["data", "check", "coco", "--data"]
VQA_LINE = b'{"annotations": [' + b",".join([b'{"question_id": 1, "image_id": 2, "answers": []}'] * 5000) + b"]}"
LAUGHS = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (k + 1, k + 1, k, k) for k in range(97, 121))
SCORED = ["--task", "coco", "--data", "{at.data}", "--out", "{at.out}"]


def eval_with(put: Callable[[Path], object], *, opened: bool) -> Callable[[Place], list[Any]]:
    """`eval` where one of COCO's two images is what `put` puts there. opened: False where no model must be needed."""

    def arrange(at: Place) -> list[Any]:
        model = at.model if opened else at.tmp / "no-model-yet"
        return ["eval", model, "--task", "coco", "--preset", "scenes", "--out", at.out, *image(put, "")[0](at)[3:]]

    return arrange


def foreign(at: Place) -> list[Any]:
    """`eval` of an architecture that nobody knows."""
    write(at.tmp / "model" / "config.json", b'{"model_type": "florence2"}')
    return ["eval", at.tmp / "model", "--task", "coco", "--data", at.data, "--out", at.out]


TARGETED = {"--attack": "targeted"}

CASES: dict[str, Case] = {
    # data folders and annotation files
    "a data folder that is not there": simple(*EMPTY, "{at.tmp}/none", expected="does not exist; task coco wants DIR/"),
    "a folder of another data set": simple(*EMPTY, "{at.model}", expected="captions.json is not in"),
    "an unknown task": simple("data", "check", "cocoo", "--data", "{at.data}", expected="did you mean 'coco'"),
    "no samples to check": simple(*EMPTY, "{at.data}", "--samples", "0", expected="at least 1"),
    "a negative seed": simple(*EMPTY, "{at.data}", "--seed=-1", expected="seed must be between 0"),
    "objects nested without end": data_check("vqav2", QUESTIONS, b'{"questions":' * 50_000, "Invalid JSON"),
    "half a surrogate pair": data_check("coco", None, b'{"images": [{"id": 1, "file_name": "\\ud800"}]}', "Invalid"),
    "NaN for an id": data_check("coco", None, b'{"images": [{"id": NaN}], "annotations": []}', "field images.0.id"),
    "an id without end": data_check("coco", None, b'{"images": [{"id": ' + b"9" * 5000 + b"}]}", "images.0.id|JSON"),
    "one very long line of answers": data_check("vqav2", ANNOTATIONS, VQA_LINE, r"field annotations.0.answers.* more"),
    "a line that is no JSON": data_check("pope", None, b'{"question_id": 1}\nx\n', "line 1: field image"),
    "more options than letters": field("scienceqa", ["12", "choices"], ["x"] * 27, "field 12.choices"),
    # images
    "a missing image": image(lambda path: None, "of 2 images 1 missing are: put them there"),
    "PostScript, which Pillow would run": image(holding(encoded(NOISE, "EPS")), "1 damaged"),
    "an icon": image(holding(encoded(NOISE, "ICO")), "1 damaged"),
    "half a JPEG": image(holding(encoded(NOISE, "JPEG")[:-300]), "1 damaged"),
    "a PNG without pixels": image(holding(png(4, 4)), "1 damaged"),
    "a header of 3600 megapixels": image(holding(png(60_000, 60_000)), "1 damaged"),
    "a text chunk that bursts": image(
        holding(png(4, 4, (b"zTXt", b"x\0\0" + zlib.compress(bytes(80_000_000), 9)))), "1 damaged"
    ),
    "a link to nothing": image(lambda path: path.symlink_to("nowhere.jpg"), "1 missing"),
    "a link to what is no image": image(lambda path: path.symlink_to(__file__), "1 damaged"),
    "eval with an image missing": (
        eval_with(lambda path: None, opened=False),
        "1 of 2 images are missing: .*000000000009.jpg; put them there .eval can leave them out: --skip-missing",
    ),
    "eval with half an image": (
        eval_with(holding(encoded(NOISE, "JPEG")[:-300]), opened=True),
        "COCO_val2014_000000000009",
    ),
    # flags
    "eps in levels": evaluated({"--eps": "4"}, "eps must be in .*4/255"),
    "a negative eps": evaluated({"--eps": "-1/255"}, "eps must be in"),
    "an L2 eps of 0": evaluated({"--norm": "L2", "--eps": "0"}, "write 2.0"),
    "eps of half a level": evaluated({"--eps": "0.5/255"}, "less than one level of an 8-bit image"),
    "noise of half a level": simple(
        *("eval", "tiny-llava", *SCORED, "--attack", "noise", "--eps", "1e-5"),
        expected="eps 1e-05 is less than one level",
    ),
    "an L2 length under one level": evaluated({"--eps": "0.003", "--norm": "L2"}, "less than one level"),
    **{
        f"{command} with eps of half a level": simple(
            *(command, "tiny-llava", *SCORED, "--eps", "0.5/255"), expected="less than one level of an 8-bit image"
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
    "an unknown embedded model": simple("eval", "tiny-lava", *SCORED, expected="did you mean tiny-llava"),
    "a folder without a model": simple("eval", "{at.data}", *SCORED, expected="config.json"),
    "an architecture nobody knows": (foreign, "'florence2' is not supported, only "),
    "transfer without a twin": evaluated({"--threat": "transfer"}, "no undefended model"),
    "a surrogate for adaptive": evaluated({"--surrogate": "tiny-llava"}, "--surrogate is for --threat transfer"),
    "a threat without an attack": evaluated({"--attack": "none", "--threat": "adaptive"}, "--attack"),
    "noise with a threat": evaluated({"--attack": "noise", "--threat": "adaptive"}, "no threat model"),
    "a norm without an attack": evaluated({"--attack": "none", "--norm": "L2"}, "--norm needs an attack"),
    "targeted without a text": evaluated(TARGETED, "--target TEXT"),
    "an empty target": evaluated(TARGETED | {"--target": " "}, "--target TEXT"),
    "a target nobody asks for": evaluated({"--target": "maybe"}, "--target is for --attack targeted"),
    "a target longer than answers": evaluated(
        TARGETED | {"--target": "no " * 50}, "tokens long, but answers end after"
    ),
    "a target that poses as an image": evaluated(TARGETED | {"--target": "<image>"}, "reserved token"),
    "half of no ensemble": evaluated({"--half": "float16"}, "--half is for"),
    "half of a half model": evaluated(
        {"--attack": "ensemble", "--half": "float16", "--dtype": "bfloat16"}, "is for models in float32"
    ),
    "an early exit of no answer": evaluated({"--attack": "embedding"}, "ends by a rule of its own", "--early-exit"),
    "an early exit of nothing": evaluated({"--attack": "none"}, "--early-exit needs an attack", "--early-exit"),
    "an early exit of captions": evaluated({}, "--early-exit is for questions", "--early-exit"),
    "an encoder that cannot speak": evaluated(
        {"--attack": "ensemble", "--threat": "transfer", "--surrogate": "tiny-clip"}, "use --attack embedding"
    ),
    "an unknown surrogate": evaluated({"--threat": "transfer", "--surrogate": "tiny-lava"}, "tiny-llava"),
    "a device and a map": evaluated({"--device": "cpu", "--device-map": "auto"}, "exclude each other"),
    "no such tower": evaluated({"--tower": Path("nowhere.pt")}, "nowhere.pt"),
    "a tower of another shape": evaluated({"--tower": "tiny-clip"}, "wide"),
    "images of no run": evaluated({"--threat": "transfer", "--images-from": Path("nowhere")}, "is not a run folder"),
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
        lambda at: [(at.tmp / "p.yaml").mkdir(), *evaluated({"--preset": Path("p.yaml")}, "")[0](at)][1:],
        "cannot read",
    ),
    "a preset of a billion laughs": preset(LAUGHS, "field name: Field required"),
    "a preset nested without end": preset(b"a: " + b"[" * 1500, "is not valid YAML"),
    "a preset without the task's prompt": (
        lambda at: [
            *preset({"prompts": {"caption": "c", "vqa": "{question}"}}, "")[0](at),
            *("--task", "pope", "--data", made_folder("pope", at)),
        ],
        "has no prompt for task pope: add it to prompts",
    ),
    # run folders
    "no run folder": simple("report", "{at.data}", "--out", "{at.out}", expected="it has no run.json"),
    "a run with a score of NaN": run_folder(
        lambda f: lines_of(f, lambda lines: [lines[0].replace(b"81.5", b"NaN"), *lines[1:]]), "line 1: field clean"
    ),
    "a run with a record twice": run_folder(
        lambda f: lines_of(f, lambda lines: [lines[0], *lines]), "does not hold the samples"
    ),
    "an --out with other things": (
        lambda at: [write(at.out / "my.txt", b"x"), *evaluated({}, "")[0](at)][1:],
        "my.txt",
    ),
    # adapters
    "an adapter nested without end": adapter(file("radapt.json", DEEP), "it is no JSON file"),
    "an adapter with a cutoff of NaN": adapter(
        json_file("radapt.json", lambda d: d | {"config": d["config"] | {"cutoff": float("nan")}}), "NaN is no number"
    ),
    # checkpoints
    "a config nested without end": checkpoint(file("config.json", DEEP), "config.json"),
    "a model with code of its own": checkpoint(
        file("config.json", b'{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}'), "not supported"
    ),
    "weights with a header of a terabyte": checkpoint(
        file("model.safetensors", struct.pack("<Q", 10**12) + b"{}"), "changed"
    ),
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
        "PostScript, which Pillow would run": "is not an image this program reads",
        "a header of 3600 megapixels": "too large to be opened safely",
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
