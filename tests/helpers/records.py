"""Run folders of a few made-up records."""

from pathlib import Path
from typing import Any

from eval_tasks.run.records import Attacked, RunFolder, SampleRecord, Scored

SETTINGS: dict[str, Any] = {
    "command": "lvlm-radapt eval tiny-llava --task coco",
    "model": {"name": "tiny-llava"},
    "radapt": None,
    "task": "coco",
    "attack": {"name": "e2e", "eps": 4 / 255, "steps": 10, "norm": "Linf"},
    "chunk_size": 4,
}

IDS = ["9", "100", "x/y"]

METRICS = {"n": 3, "clean": {"cider": 51.25, "ci95": [40.0, 60.5]}}


def record(sample_id: str, output: str = "a dog", seconds: float = 0.5) -> SampleRecord:
    return SampleRecord(
        id=sample_id,
        question=None,
        references=("A dog.", 'Ein Hund\u2028und "mehr"\n'),
        clean=Scored(output=output, score=81.5),
        adversarial=Attacked(output="a cat", score=0.0, loss=3.25, linf=4 / 255, l2=1.5),
        seconds=seconds,
    )


def started(path: Path, **changes: Any) -> RunFolder:
    return RunFolder(path).create(SETTINGS | changes, IDS)


def finished(path: Path) -> RunFolder:
    folder = started(path)
    for sample_id in reversed(IDS):
        folder.append(record(sample_id))
    folder.finish(METRICS)
    return folder
