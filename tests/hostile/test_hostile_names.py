"""Names and texts of others reach the terminal as text: no escape sequence, no markup, no bytes that are not UTF-8."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lvlm_radapt.embedded.dataset import write_scenes
from tests.helpers.cases import (
    Case,
    Place,
    adapter,
    checkpoint,
    data_check,
    evaluated,
    field,
    file,
    json_file,
    lines_of,
    preset,
    run_folder,
    simple,
)
from tests.helpers.cli import Cli
from tests.helpers.slow import slow

EVIL = "\x1b]0;pwned\x07[/b]:x:\udcff"
SHOWN = r"\\x1b\]0;pwned\\x07\[[/-]b\]:x:\\(xff|udcff)"  # the latter in quotes
NOT_UTF8 = "Invalid JSON: (unexpected end of hex escape|lone leading surrogate)"


def evil_file(at: Place, suffix: str, content: bytes = b"x") -> Path:
    path = at.tmp / f"{EVIL.replace('/', '-')}{suffix}"
    path.write_bytes(content)
    return path


TEMPLATE = "chat_template.jinja"

CASES: dict[str, Case] = {
    # what is typed
    **{
        f"{command[0]} of {what}": simple(*command, expected=SHOWN)
        for what, *command in (
            ("a model", "robustify", EVIL, "--out", "{at.out}"),
            ("a model", "chat", EVIL),
            ("a model", "check", EVIL),
            ("a model", "audit", EVIL, "--task", "coco", "--data", "{at.data}", "--out", "{at.out}"),
            ("an encoder", "finetune", EVIL, "--method", "fare", "--images", "{at.data}", "--out", "{at.out}"),
            ("a run", "report", EVIL, "--out", "{at.out}"),
            ("a comparison", "compare", EVIL, "--out", "{at.out}"),
            ("a listing", "list", EVIL),
            ("a data set", "data", "check", EVIL, "--data", "{at.data}"),
            ("a data folder", "data", "check", "coco", "--data", EVIL),
            ("a command", EVIL),
            ("an option", "eval", f"--{EVIL}"),
        )
    },
    **{
        f"eval's {flag}": evaluated({flag: EVIL}, SHOWN)
        for flag in ("--task", "--attack", "--preset", "--eps", "--norm", "--device", "--dtype")
    },
    "eval's --steps": evaluated({"--steps": EVIL}, "--steps.*unable to parse"),
    "eval's surrogate": evaluated({"--surrogate": EVIL, "--threat": "transfer"}, SHOWN),
    "a guide": simple(
        "robustify", "{at.model}", "--anchor", "guided", "--guide", EVIL, "--out", "{at.out}", expected=SHOWN
    ),
    "a conversation": simple("robustify", "{at.model}", "--conversation", EVIL, "--out", "{at.out}", expected=SHOWN),
    # what files are called
    "a damaged preset": (lambda at: [*evaluated({}, "")[0](at), "--preset", evil_file(at, ".yaml")], SHOWN),
    "a tower": (lambda at: ["robustify", at.model, "--tower", evil_file(at, ".pt"), "--out", at.out], SHOWN),
    "a checkpoint that no library reads in its folder": (
        lambda at: ["robustify", shutil.copytree(at.model, at.tmp / "\udcff"), "--out", at.out],
        r"\\xff/model.safetensors cannot be read under this path, which is not UTF-8",
    ),
    "a run folder that is a file": (lambda at: ["report", evil_file(at, ""), "--out", at.out], SHOWN),
    "an image": (lambda at: ["chat", at.model, "--image", evil_file(at, ".png")], SHOWN),
    # what stands in files
    "a template's error": checkpoint(
        lambda folder: (folder / TEMPLATE).write_text("{{ raise_exception('\x1b]0;pwned\x07[/b]:x:') }}"),
        r"\\x1b\]0;pwned\\x07\[/b\]:x:",
    ),
    "a model_type": checkpoint(
        json_file("config.json", lambda content: content | {"model_type": "\x1b]0;pwned\x07[/b]:x:"}),
        r"pwned.*\[/b\]:x:|model_type",
    ),
    "an image processor": checkpoint(
        json_file("preprocessor_config.json", lambda content: content | {"image_processor_type": EVIL}),
        r"pwned.*\[/b\]:x:",
    ),
    "an adapter's base": adapter(
        json_file("radapt.json", lambda content: content | {"base": content["base"] | {"name": EVIL}}), "base.name"
    ),
    "an adapter's mix": adapter(
        json_file("radapt.json", lambda content: content | {"config": content["config"] | {"mix": EVIL}}), "pwned"
    ),
    "a preset's field": preset({"\x1b]0;pwned\x07": 1}, "pwned"),
    "a record's field": run_folder(
        lambda folder: lines_of(folder, lambda lines: [lines[0].replace(b'"question"', b'"\\u001b]0;x"'), *lines[1:]]),
        "samples.jsonl, line 1",
    ),
    "a question that is not UTF-8": field("textvqa", ["data", 0, "question"], "a\ud800", NOT_UTF8),
    "a caption that is not UTF-8": field("coco", ["annotations", 0, "caption"], "a\udcff", NOT_UTF8),
    "an image's name that is not UTF-8": field("coco", ["images", 0, "file_name"], "a\udcff.jpg", NOT_UTF8),
    "a set that is not UTF-8": data_check("vqav2", None, b'{"questions": [{"question": "\xff"}]}', "json"),
    "settings that are not UTF-8": run_folder(file("run.json", b'{"schema": 2, "x": "\xff"}'), "no JSON file"),
    "a config that is not UTF-8": checkpoint(file("config.json", b'{"model_type": "\xff"}'), "config.json"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_others_wrote_is_shown_as_text(name: str, refused: Callable[[Case], str]) -> None:
    assert not set("\x1b\x07\udcff\ud800") & set(refused(CASES[name]))


COMPARISON = {
    "name": "small",
    "description": "few scenes",
    "protocol": "scenes",
    "samples": 2,
    "steps": 1,
    "eps": ["8/255"],
    "sets": {"test": {"split": "test"}},
    "columns": [{"title": "VQA", "task": "vqav2", "model": "tiny-llava", "set": "test", "attack": "e2e"}],
    "rows": [{"name": "none"}, {"name": "R-Adapt", "radapt": {"cutoff": 40}}],
}
ODD = "$_{\x1b[31m\udcff"
SCORED = ("--task", "vqav2", "--data", "data" + ODD, "--samples", "2", "--steps", "1", "--eps", "8/255")
IMAGES = ("--images", f"data{ODD}/val2014")
ACCEPTED: dict[str, tuple[str, ...]] = {
    "tune": ("tiny-llava", *SCORED, "--cutoffs", "40", "--alphas", "1", "--mixes", "interpolate"),
    "compare": (f"own{ODD}.yaml", "--device", "cpu"),
    "analyze": ("tiny-llava", "--guide", "tiny-clip-fare", *IMAGES, "--image-count", "2", "--steps", "1"),
    "finetune": ("tiny-clip", "--method", "fare", *IMAGES, "--steps", "1", "--batch-size", "2", "--limit", "4"),
    "robustify": ("tiny-llava", "--no-filter"),
}


@pytest.mark.parametrize("command", [slow(name) if name == "analyze" else name for name in ACCEPTED])
def test_a_command_works_in_folders_of_any_name(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    write_scenes(Path("data" + ODD), count=8)
    Path(f"own{ODD}.yaml").write_text(yaml.safe_dump(COMPARISON))
    code, out, err = cli(command, *ACCEPTED[command], "--out", "out" + ODD)
    assert code == 0, err
    assert r"$_{\x1b[31m\xff" in out
    assert not set("\x1b\udcff") & set(out + err)
    assert any(Path("out" + ODD).iterdir())
