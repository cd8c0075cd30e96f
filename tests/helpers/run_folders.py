"""Finished run folders for tests of what is made of them: their documents are written by the program's own code.

Tests may put other values into a document; a key that the program does not write is refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from eval_tasks.config.presets import load_attack
from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.data import Sample
from eval_tasks.run.options import EvalOptions, run_document
from eval_tasks.run.records import Attacked, Run, RunFolder, SampleRecord, Scored, read_run
from eval_tasks.run.run_metrics import metrics as written_metrics
from eval_tasks.tasks.base import TaskRun
from eval_tasks.tasks.make_task import make_task
from lvlm_radapt import RAdaptConfig, load_model
from lvlm_radapt.models.base import LVLM

N = 24
RADAPT = RAdaptConfig().to_dict()
CLEAN = [100.0 + index for index in range(N)]
REFERENCES = ("a dog on a mat", "some dog")
_SAMPLES = [Sample(str(index), Path("absent.png"), "what is it?", REFERENCES) for index in range(2)]


def changed(written: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The document with other values; AssertionError for a key that the program did not write."""
    unknown = sorted(changes.keys() - written.keys())
    assert not unknown, f"no run has the key {', '.join(unknown)}"
    result = dict(written)
    for key, value in changes.items():
        inner = written[key]
        result[key] = changed(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


@cache
def _model() -> LVLM:
    return load_model("tiny-llava")


@cache
def _task(task: str) -> TaskRun:
    return make_task(task, "scenes").bind(_model(), _SAMPLES, _SAMPLES, batch_size=4)


def _document(task: str = "coco", own: Attack | None = None) -> dict[str, Any]:
    """What `eval` writes into run.json for the undefended tiny-llava."""
    options = EvalOptions(data=Path("scenes"), samples=N, chunk_size=4, batch_size=4)
    return run_document(_task(task), own, options, f"lvlm-radapt eval tiny-llava --task {task}")


def attack(threat: str | None = "adaptive", levels: int = 4, name: str = "e2e", **changes: Any) -> dict[str, Any]:
    """The attack's part of run.json, with 10 steps where it has any; then with other values."""
    steps = 10 if "steps" in load_attack(name).settings else None
    own = make_attack(name, eps=levels / 255, steps=steps, target="zebra" if name == "targeted" else None)
    return changed(_document(own=own)["attack"], {"threat": threat} | changes)


def spread(centre: float, seed: int) -> list[float]:
    return (centre + np.random.default_rng(seed).normal(0, 3, N)).tolist()


class Maker:
    """Writes finished run folders, and reads them back as the program does."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, 0

    def __call__(
        self,
        scores: Sequence[float | None] | None = None,
        radapt: Mapping[str, Any] | None = None,
        attacked: Mapping[str, Any] | None = None,
        *,
        clean: Sequence[float | None] | None = None,
        answer: str = "a dog",
        question: str | None = None,
        asked: str = "coco",
        images: bool = False,
        prefix: str = "s",
        per_image: int = 1,
        losses: list[float | None] | None = None,
        outcome: Mapping[str, Sequence[Any]] | None = None,
        metrics: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Run:
        """scores: under attack, None for no records of one; asked: the task; per_image: samples an image, 0 as
        earlier versions wrote runs; outcome: other values in the attacked records, one a sample; model, settings,
        metrics: other values in
        run.json's `model`, at its top and in metrics.json, whose `audit` an adaptive run has."""
        self.made += 1
        clean = CLEAN if clean is None else clean
        ids = [f"{prefix}{index:02d}" for index in range(len(clean))]
        defence = None if radapt is None else RAdaptConfig.from_dict(radapt).to_dict()
        changes = {"model": {"radapt": defence, **(model or {})}, **settings}
        document = changed(_document(asked), changes) | {"attack": None if attacked is None else dict(attacked)}
        folder = RunFolder(self.root / f"run-{self.made}").create(document, ids)
        records = []
        for index, sample_id in enumerate(ids):
            adversarial, sums = None, dict[str, str]()
            if images:
                pixels = np.full((3, 8, 8), 10 * index, np.uint8)
                sums = {
                    under: folder.save_image(sample_id, pixels + more, under=under)
                    for under, more in (("images", 4), ("clean", 0))
                }
            if scores is not None:
                loss = 1.0 if losses is None else losses[index]
                adversarial = Attacked(output="a cat", score=scores[index], loss=loss, linf=4 / 255, l2=0.5)
                told = {field: values[index] for field, values in (outcome or {}).items()}
                adversarial = adversarial.model_copy(update={"image_sha256": sums.get("images"), **told})
            records.append(
                SampleRecord(
                    id=sample_id,
                    image=str(index // per_image) if per_image else None,
                    question=question,
                    references=REFERENCES,
                    clean=Scored(output=answer, score=clean[index]),
                    adversarial=adversarial,
                    seconds=0.1,
                    clean_sha256=sums.get("clean"),
                )
            )
            folder.append(records[-1])
        written = written_metrics(records, _task(asked).task, _attack(attacked), [], 1.5)
        folder.finish(changed({"audit": None} | written, metrics or {}))
        return read_run(folder.path)


def _attack(attacked: Mapping[str, Any] | None) -> Attack | None:
    if attacked is None:
        return None
    made = make_attack(attacked["name"], **{key: attacked.get(key) for key in ("eps", "steps", "target")})
    return None if made is None else replace(made, threat=attacked["threat"])


def without_checksums(path: Path) -> Path:
    """The run folder as an earlier version left it: its records and metrics have no checksums."""
    settings = json.loads((path / "run.json").read_bytes())
    (path / "run.json").write_text(json.dumps(settings | {"schema": 1}))
    for lines in (*path.glob("samples.jsonl"), *path.glob("parts/*.jsonl")):
        records = [json.loads(line) for line in lines.read_bytes().splitlines()]
        for record in records:
            for place, key in ((record, "checksum"), (record, "clean_sha256"), (record["adversarial"], "image_sha256")):
                (place or {}).pop(key, None)
        lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    if (path / "metrics.json").is_file():
        metrics = json.loads((path / "metrics.json").read_bytes())
        metrics.pop("checksum")
        (path / "metrics.json").write_text(json.dumps(metrics))
    return path
