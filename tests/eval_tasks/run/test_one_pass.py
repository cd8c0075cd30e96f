"""An evaluation reads its data once, checks the images once, and parses its records twice at most."""

from pathlib import Path

import pytest

from eval_tasks.api import run_evaluation
from eval_tasks.run import options, records
from eval_tasks.tasks.base import Task
from lvlm_radapt.embedded.dataset import write_scenes
from tests.helpers.evaluations import evaluation
from tests.helpers.tiny_checkpoints import save_llava


def test_data_images_and_records_are_read_no_oftener_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path / "scenes", count=6)
    counted = {"load": 0, "check": 0, "parse": 0}
    load, check, parse = Task.load, options.check_images, records.SampleRecord.model_validate_json

    def loaded(self: Task, data: Path) -> list:
        counted["load"] += 1
        return load(self, data)

    def checked(samples: list) -> None:
        counted["check"] += 1
        check(samples)

    def parsed(body: bytes) -> records.SampleRecord:
        counted["parse"] += 1
        return parse(body)

    monkeypatch.setattr(Task, "load", loaded)
    monkeypatch.setattr(options, "check_images", checked)
    monkeypatch.setattr(records.SampleRecord, "model_validate_json", parsed)
    asked = evaluation("coco", tmp_path / "scenes", "e2e", steps=1, samples=5, chunk_size=2)
    model = str(save_llava(tmp_path / "llava"))
    run_evaluation(model, asked, tmp_path / "run", announce=lambda title, total: lambda done, text: None)
    assert counted["load"] == counted["check"] == 1
    assert counted["parse"] == 2 * 5
