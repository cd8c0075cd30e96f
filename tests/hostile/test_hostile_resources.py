"""Nothing hangs or fills the memory: numbers, images, texts and programs in files have bounds, which are told."""

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from eval_tasks.data import checking
from lvlm_radapt.models import text
from lvlm_radapt.training.state import StateFile
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.time_limit import TookTooLong, within
from tests.helpers.cases import (
    Case,
    Place,
    Words,
    adapter,
    checkpoint,
    data_check,
    encoded,
    evaluated,
    evaluated_checkpoint,
    field,
    file,
    holding,
    image,
    json_file,
    png,
    preset,
    simple,
    torch_bytes,
    tower,
)

HUGE = "1" + "0" * 30
MOST = "less than or equal to 1000000"
PROCESSOR = "preprocessor_config.json"
TEMPLATE = "its chat template does not render an image and a question"


def processor(where: list[Any], value: Any, words: str) -> Case:
    """A checkpoint whose image processor has another value there."""
    return checkpoint(json_file(PROCESSOR, lambda content: content | {where[0]: value}), words)


def templated(source: str, words: str = TEMPLATE) -> Case:
    """A checkpoint with this chat template."""
    return checkpoint(lambda folder: (folder / "chat_template.jinja").write_text(source), words)


def anchored(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], object]:
    """An adapter with another anchor, its checksum right."""

    def put(folder: Path) -> None:
        tensors = load((folder / "adapter.safetensors").read_bytes())
        content = save({"anchor": make(tensors["anchor"])})
        (folder / "adapter.safetensors").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        json_file("radapt.json", lambda settings: settings | {"tensors_sha256": digest})(folder)

    return put


def pickled(content: Any) -> Callable[[Path], object]:
    """A checkpoint whose weights are a torch pickle of this content."""

    def put(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(torch_bytes(content))

    return put


def quantised(value: Any) -> Callable[[Path], object]:
    return json_file("config.json", lambda content: content | {"quantization_config": value})


def unpacking(columns: Callable[[Any], dict[str, Any]], words: str) -> Case:
    """`data check` of a small parquet file with these columns, which a few bytes stand for."""

    def arrange(at: Place) -> Words:
        arrow = pytest.importorskip("pyarrow", reason="the extra hf is not installed")
        parquet = importlib.import_module("pyarrow.parquet")
        (at.tmp / "set").mkdir()
        path = at.tmp / "set" / "x.parquet"
        parquet.write_table(arrow.table(columns(arrow)), path, compression="zstd", dictionary_pagesize_limit=10**8)
        assert path.stat().st_size < 300_000
        return ["data", "check", "textvqa", "--data", at.tmp / "set"]

    return arrange, words


def inflating(codec: str, rows: int, parts: int) -> Case:
    """`data check` of a saved data set, its Arrow file compressed: so many parts of so many rows of a megabyte."""

    def arrange(at: Place) -> Words:
        arrow = pytest.importorskip("pyarrow", reason="the extra hf is not installed")
        datasets = importlib.import_module("datasets")
        folder = at.tmp / "set"
        datasets.Dataset.from_dict({"question": ["why?"]}).save_to_disk(str(folder))
        (path,) = folder.glob("*.arrow")
        batch = arrow.record_batch({"question": arrow.array(["x" * 1_000_000] * rows)})
        options = arrow.ipc.IpcWriteOptions(compression=codec)
        with arrow.ipc.new_stream(path, batch.schema, options=options) as stream:
            for _ in range(parts):
                stream.write_batch(batch)
        return ["data", "check", "textvqa", "--data", folder]

    return arrange, r"\.arrow unpacks to more than \d+ MB"


def flag(command: str, *more: str, words: str) -> Case:
    return lambda at: [command, *(one.format(at=at) for one in more), "--out", at.out], words


TASK = ("--task", "coco", "--data", "{at.data}")
CASES: dict[str, Case] = {
    "eval's steps without end": evaluated({"--steps": HUGE}, MOST),
    "eval's samples without end": evaluated({"--samples": HUGE}, MOST),
    "eval's batch without end": evaluated({"--batch-size": HUGE}, MOST),
    "eval's chunk without end": evaluated({"--chunk-size": HUGE}, MOST),
    "eval's seed without end": evaluated({"--seed": HUGE}, "seed must be between"),
    "audit's steps without end": flag("audit", "{at.model}", *TASK, "--steps", HUGE, words=MOST),
    "audit's samples without end": flag("audit", "{at.model}", *TASK, "--samples", HUGE, words=MOST),
    "tune's steps without end": flag("tune", "tiny-llava", *TASK, "--steps", HUGE, words=MOST),
    "tune's samples without end": flag("tune", "tiny-llava", *TASK, "--samples", HUGE, words=MOST),
    "tune's cutoffs without end": flag(
        "tune", "tiny-llava", *TASK, "--cutoffs", "1..1e9:1e-9", words="the most|cutoffs"
    ),
    "compare's steps without end": flag("compare", "scopes", "--steps", HUGE, words=MOST),
    "compare's samples without end": flag("compare", "scopes", "--samples", HUGE, words=MOST),
    "demo's samples without end": flag("demo", "--samples", HUGE, words=MOST),
    "demo's steps without end": flag("demo", "--steps", HUGE, words=MOST),
    "scenes without end": flag("data", "scenes", "--count", HUGE, words=MOST),
    "scenes of a class without end": flag("data", "scenes", "--per-class", HUGE, words=MOST),
    "an answer without end": simple("chat", "{at.model}", "--max-new-tokens", HUGE, expected=MOST),
    "analysed images without end": flag(
        "analyze", "tiny-clip", "--guide", "tiny-clip-fare", "--images", "{at.data}", "--image-count", HUGE, words=MOST
    ),
    "learned steps without end": flag(
        "robustify", "{at.model}", "--anchor", "learned", "--images", "{at.data}", "--learn-steps", HUGE, words=MOST
    ),
    "learned batches without end": flag(
        "robustify", "{at.model}", "--anchor", "learned", "--images", "{at.data}", "--learn-batch", HUGE, words=MOST
    ),
    "training steps without end": flag(
        "finetune", "tiny-clip", "--method", "fare", "--images", "{at.data}", "--steps", HUGE, words=MOST
    ),
    "checked samples without end": (lambda at: ["data", "check", "coco", "--data", at.data, "--samples", HUGE], MOST),
    "a preset's samples without end": preset({"samples": 10**30}, "field samples: .*1000000"),
    "a preset's tokens without end": preset({"max_new_tokens": {"coco": 10**30}}, "field max_new_tokens.coco"),
    "rows of one image that unpack to gigabytes": unpacking(
        lambda arrow: {"image": [{"bytes": bytes(1_000_000), "path": None}] * 200}, "x.parquet unpacks to more than 1"
    ),
    "rows of one text that unpack to gigabytes": unpacking(
        lambda arrow: {"question": arrow.array(["x" * 1_000_000] * 200)}, "x.parquet unpacks to more than 1"
    ),
    "a saved part that unpacks to hundreds of megabytes": inflating("zstd", 300, 1),
    "saved parts that unpack to gigabytes together": inflating("zstd", 50, 20),
    "rows of nothing without end": unpacking(
        lambda arrow: {"question": arrow.nulls(2_000_000, arrow.string())}, "x.parquet has too many rows"
    ),
    "an image of 81 megapixels": image(holding(encoded(Image.new("1", (9000, 9000)), "PNG")), "1 damaged"),
    "an image of 81 megapixels in a header": image(holding(png(9000, 9000)), "1 damaged"),
    "a caption of 200,000 letters": field(
        "coco", ["annotations", 0, "caption"], "x" * 200_000, "text of 200000 characters: at most 20000"
    ),
    "a question of 200,000 letters": data_check(
        "pope",
        None,
        json.dumps({"question_id": 1, "image": "a.jpg", "text": "x" * 200_000, "label": "yes"}).encode(),
        "text of 200000 characters",
    ),
    **{
        f"a processor's {name} of {value!r}"[:80]: processor([name], value, f"image processor: field {name}")
        for name, value in (
            ("size", 10**5),
            ("size", {"shortest_edge": 0}),
            ("size", {"shortest_edge": 10**5}),
            ("size", "big"),
            ("size", {"shortest_edge": -1}),
            ("size", {"height": 1.5, "width": 2}),
            ("size", {"shortest_edge": "224"}),
            ("crop_size", {"height": 10**9, "width": 10**9}),
            ("crop_size", 0),
            ("crop_size", True),
            ("image_mean", "grey"),
            ("image_std", 0.5),
            ("rescale_factor", 10**30),
            ("rescale_factor", "1/255"),
            ("resample", 99),
            ("resample", "bicubic"),
            ("do_resize", "yes"),
            ("do_center_crop", 3),
        )
    },
    **{
        f"{kind.__name__} of images of {side} pixels that the tower does not take": kind(
            json_file(
                PROCESSOR,
                lambda content, side=side: (
                    content | {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
                ),
            ),
            "its first image and question cannot be processed",
        )
        for kind in (checkpoint, evaluated_checkpoint)
        for side in (1, 4, 100)
    },
    "colours of four channels": evaluated_checkpoint(
        json_file(PROCESSOR, lambda content: content | {"image_mean": [0.5] * 4, "image_std": [0.5] * 4}),
        "image_mean|first image",
    ),
    "an image token that no text spells": evaluated_checkpoint(
        json_file("config.json", lambda content: content | {"image_token_index": 3, "image_token_id": 3}),
        "chat template|image token|first image",
    ),
    **{
        f"a checkpoint in {method}": checkpoint(
            json_file(
                "config.json",
                lambda content, method=method: content | {"quantization_config": {"quant_method": method}},
            ),
            rf"quantised already \({method}\), which is not supported: use",
        )
        for method in ("gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors")
    },
    "a quantisation that is no object": checkpoint(quantised("x"), "quantised already"),
    "an anchor of 8 bits": adapter(anchored(lambda anchor: anchor.to(torch.float8_e4m3fn)), "no table of float32"),
    "an anchor of whole numbers": adapter(anchored(lambda anchor: anchor.long()), "no table of float32"),
    "an anchor without a size": adapter(anchored(lambda anchor: torch.tensor(1.0)), "no table of float32"),
    "an anchor of nothing": adapter(anchored(lambda anchor: torch.zeros(0, 4)), "anchor"),
    "weights that hold more than tensors": checkpoint(
        pickled({"epoch": 3, "model": [1, {"a": 2}]}), "holds no state dict"
    ),
    "weights that would run code": checkpoint(pickled({"epoch": os.getcwd}), "holds more than tensors"),
    "a tower of tensors without a size": tower(lambda at: torch_bytes({"visual.proj": torch.tensor(1.0)}), "tower.pt"),
    "an eos that is no number": checkpoint(
        file("generation_config.json", b'{"eos_token_id": "end"}'), "generation_config|eos"
    ),
    "an eos in a list that is no number": checkpoint(
        file("generation_config.json", b'{"eos_token_id": [2, null]}'), "generation_config|eos"
    ),
    "a template without end": templated(
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", f"{TEMPLATE}.*more than"
    ),
    "a template that raises": templated("{{ raise_exception('no') }}"),
    "a template that divides by zero": templated("{{ 1 / 0 }}"),
    "a template that calls itself": templated("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    "a template that imports": templated("{% import 'os' as os %}{{ os }}"),
    "a template that includes a file": templated("{% include '/etc/passwd' %}"),
    "a template that reaches for classes": templated("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template that is none": templated("{% for"),
    "a template that asks for what is not there": templated("{{ messages[7].content.x.y }}"),
    "a template of a number without end": templated("{{ 10**(10**10) }}", f"{TEMPLATE}.*more than 4096 bits"),
    "a template of a number that grows": templated(
        "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "more than 4096 bits",
    ),
    "a template of a power under a name": templated("{% set x = 10 %}{{ x ** (x ** x) }}"),
    "a template that rounds without end": templated("{{ 1|round(-1000000000) }}", f"{TEMPLATE}.*at most 100"),
    "a template of a long list": templated("{{ [0] * 1000000000 }}", f"{TEMPLATE}.*more than 1000000 parts"),
    "a template of a terabyte": templated("{{ 'x' * (10 ** 12) }}"),
    **{
        f"a template that grows by {name}": templated(template, f"{TEMPLATE}.*more than 500 MB of memory")
        for name, template in (
            ("a filter", "{{ 'x'|center(10**11) }}"),
            ("a method", "{{ 'x'.ljust(10**11) }}"),
            ("a format", "{{ '%100000000000d' % 3 }}"),
            ("joining", "{% set x = 'x' * 1000000 %}{{ ([x] * 1000000)|join }}"),
            ("replacing", "{% set x = 'x' * 1000000 %}{{ x|replace('x', x) }}"),
            ("doubling", "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"),
        )
    },
    "a template without an image": templated("{{ messages[0].content[1].text }}", "places 0 images"),
    "a template with two images": templated("<image><image>{{ messages[0].content[1].text }}", "places 2 images"),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_hangs_or_fills_the_memory(
    name: str, refused: Callable[[Case], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "without end" in name:  # the others end by themselves, on a busy machine after more than a second
        monkeypatch.setattr(text, "PATIENCE", 1.0)
    refused(CASES[name])


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[...] can't allocate memory")]
)
def test_memory_that_does_not_suffice_is_one_line(
    error: Exception, refused: Callable[[Case], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checking, "check_data", fail)
    case: Case = (lambda at: ["data", "check", "coco", "--data", at.data], "^error: out of memory: ")
    refused(case)


def test_a_program_without_end_is_stopped_and_one_with_an_end_is_not() -> None:
    def endless() -> None:
        while True:
            pass

    with pytest.raises(TookTooLong, match=r"more than 0\.2 seconds"):
        within(0.2, endless)
    assert within(5, lambda: sum(range(1000))) == 499500


@pytest.mark.parametrize("state", [{}, {"step": "x"}, {"values": None}, {"weights": 3}])
def test_a_training_state_that_was_edited_is_one_line(tmp_path: Path, state: dict[str, Any]) -> None:
    with StateFile(tmp_path / "x.training", {"a": 1}, every=0) as file:
        file.note(state)

    def restore(found: dict[str, Any]) -> None:
        torch.zeros(2).copy_(found["values"])

    with pytest.raises(UserError, match=r"x\.training is damaged: remove it and begin anew"):
        StateFile(tmp_path / "x.training", {"a": 1}).resume(restore, resume=True)
