"""Finished run folders, written and read as the program does, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval_tasks.metrics import bootstrap_ci
from eval_tasks.records import Attacked, Run, RunFolder, SampleRecord, Scored, image_name, read_run
from lvlm_radapt.config import RAdaptConfig

N = 12
RADAPT = RAdaptConfig().to_dict()
CLEAN = [100.0 + index for index in range(N)]


def attack(threat: str | None = "adaptive", levels: int = 4, **changes: Any) -> dict[str, Any]:
    return {
        "name": "e2e",
        "threat": threat,
        "surrogate": None,
        "eps": levels / 255,
        "eps_text": f"{levels}/255",
        "norm": "Linf",
        "loss": "nll",
        "steps": 10,
        "restarts": 1,
        "random_start": True,
        "step_scale": 2.0,
    } | changes


def spread(centre: float, seed: int) -> list[float]:
    return (centre + np.random.default_rng(seed).normal(0, 3, N)).tolist()


class Maker:
    """Writes finished run folders, and reads them back as the program does."""

    def __init__(self, root: Path) -> None:
        self.root, self.made = root, 0

    def __call__(
        self,
        scores: Sequence[float | None] | None = None,
        radapt: dict[str, Any] | None = None,
        attacked: dict[str, Any] | None = None,
        *,
        clean: list[float] | None = None,
        answer: str = "a dog",
        question: str | None = None,
        metric: str = "cider",
        images: bool = False,
        prefix: str = "s",
        losses: list[float | None] | None = None,
        metrics: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Run:
        self.made += 1
        clean = CLEAN if clean is None else clean
        ids = [f"{prefix}{index:02d}" for index in range(len(clean))]
        named = {
            "name": "tiny-llava",
            "radapt": radapt,
            "dtype": "float32",
            "device": "cpu",
            "geometry": "stock",
        }
        document = {
            "command": "lvlm-radapt eval tiny-llava --task captions",
            "model": named | (model or {}),
            "task": "captions",
            "data": "scenes",
            "preset": "scenes",
            "seed": 42,
            "chunk_size": 4,
            "batch_size": 4,
            "tokenizer": "ptb",
            "attack": attacked,
        } | settings
        folder = RunFolder(self.root / f"run-{self.made}").create(document, ids)
        for index, sample_id in enumerate(ids):
            adversarial = None
            if scores is not None:
                loss = 1.0 if losses is None else losses[index]
                adversarial = Attacked(output="a cat", score=scores[index], loss=loss, linf=4 / 255, l2=0.5)
            folder.append(
                SampleRecord(
                    id=sample_id,
                    question=question,
                    references=("a dog on a mat", "some dog"),
                    clean=Scored(output=answer, score=clean[index]),
                    adversarial=adversarial,
                    seconds=0.1,
                )
            )
            if images:
                pixels = np.full((3, 8, 8), 10 * index, np.uint8)
                folder.save_image(sample_id, pixels + 4)
                (folder.path / "clean").mkdir(exist_ok=True)
                Image.fromarray(pixels.transpose(1, 2, 0)).save(folder.path / "clean" / image_name(sample_id))
        part = None
        if scores is not None:
            known = [score for score in scores if score is not None] or [0.0]
            part = {metric: float(np.mean(known)), "ci95": list(bootstrap_ci(known))}
        folder.finish(
            {
                "n": len(ids),
                "metric": metric,
                "clean": {metric: float(np.mean(clean)), "ci95": list(bootstrap_ci(clean))},
                "adversarial": part,
                "zero_grad": 0,
                "seconds": 1.5,
                "notes": [],
            }
            | (metrics or {})
        )
        return read_run(folder.path)
