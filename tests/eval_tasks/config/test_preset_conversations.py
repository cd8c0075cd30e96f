"""A preset's conversation decides what the model is asked, and the run says so."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from eval_tasks.api import run_evaluation
from eval_tasks.config.presets import load_protocol
from eval_tasks.report.build_table import comparison
from eval_tasks.run.records import Run
from lvlm_radapt import load_model
from lvlm_radapt.models.text import PromptEncoder
from tests.helpers.data_sets import scenes_folder
from tests.helpers.evaluations import evaluation

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: <image>\n{} ASSISTANT:"
)


data = scenes_folder(count=2)


def own(folder: Path, **conversation: str) -> str:
    """A copy of the preset `fare` with another conversation."""
    fields = load_protocol("fare").model_dump(exclude_none=True) | {"name": "mine"}
    folder.mkdir(exist_ok=True)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**fields, "conversation": {**fields["conversation"], **conversation}}))
    return str(path)


def asked(preset: str, data: Path, out: Path) -> tuple[Run, list[list[int]]]:
    """A clean run of two questions, and the token ids of its prompts, each once and with one image token."""
    heard: list[list[int]] = []
    encode = PromptEncoder.prompt

    def listened(self: PromptEncoder, prompt: Any, image_tokens: int, *more: Any) -> list[int]:
        heard.append(encode(self, prompt, 1, *more))
        return encode(self, prompt, image_tokens, *more)

    settings = evaluation("vqav2", data, preset=preset, samples=2, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptEncoder, "prompt", listened)
        run = run_evaluation("tiny-llava", settings, out, announce=lambda title, total: lambda done, text: None)
    # the first is what every checkpoint is tried with; then all are checked before they are asked
    return run, [list(ids) for ids in dict.fromkeys(map(tuple, heard[1:]))]


def test_another_system_prompt_changes_the_token_ids_and_is_recorded(data: Path, tmp_path: Path) -> None:
    tokenizer = load_model("tiny-llava").tokenizer
    shipped, usual = asked("fare", data, tmp_path / "fare")
    brief, changed = asked(own(tmp_path / "b", system="a red circle."), data, tmp_path / "brief")
    for run, heard, text in ((shipped, usual, VICUNA), (brief, changed, "a red circle. USER: <image>\n{} ASSISTANT:")):
        suffix = "\nAnswer the question using a single word or phrase."
        expected = [tokenizer(text.format(f"{s.question}{suffix}"))["input_ids"] for s in run.samples]
        assert heard == expected
    assert usual != changed
    assert brief.settings["asked"]["conversation"] == {
        "name": "vicuna_v1",
        "system": "a red circle.",
        "template": "{system} USER: <image>\n{text} ASSISTANT:",
    }
    recorded = shipped.settings["asked"]["conversation"]
    assert recorded["template"].replace("{system}", recorded["system"]).replace("{text}", "{}") == VICUNA


def test_two_presets_of_one_name_that_ask_differently_do_not_share_a_row(data: Path, tmp_path: Path) -> None:
    runs = [asked(own(tmp_path / name, system=name), data, tmp_path / f"{name}-run")[0] for name in ("one", "two")]
    rows = comparison(runs).rows
    assert len(rows) == 2
    assert len({row.variant for row in rows}) == 2
    assert all("asked" in row.variant for row in rows)


def test_the_checkpoint_s_own_template_is_recorded_as_none(data: Path, tmp_path: Path) -> None:
    run, heard = asked("scenes", data, tmp_path / "scenes")
    assert run.settings["asked"]["conversation"] is None
    model = load_model("tiny-llava")
    suffix = "\nAnswer the question using a single word or phrase."
    assert heard == [model.text.prompt(f"{s.question}{suffix}", 1) for s in run.samples]
