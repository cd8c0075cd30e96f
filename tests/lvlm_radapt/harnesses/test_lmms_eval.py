"""lmms-eval's own models over exports and folded weights. It runs where lmms-eval is installed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval_tasks.data import load_task
from lvlm_radapt import RAdaptConfig, export_model, fold_model, load_model, robustify
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.harnesses.lmms_eval import manifests

ASK = "{}\nAnswer the question using a single word or phrase."
N = 8


def answers(model: Any, docs: list[dict[str, Any]]) -> list[str]:
    """What lmms-eval's model answers, asked as its evaluator asks."""
    instance = import_module("lmms_eval.api.instance").Instance
    model.task_dict = {"scenes": {"test": docs}}
    asked = [
        instance(
            request_type="generate_until",
            arguments=(
                ASK.format(doc["question"]),
                {"max_new_tokens": 10, "temperature": 0, "do_sample": False},
                lambda found: [found["image"]],
                number,
                "scenes",
                "test",
            ),
            idx=0,
            metadata={"task": "scenes", "doc_id": number, "repeats": 1},
        )
        for number, doc in enumerate(docs)
    ]
    return [text.strip() for text in model.generate_until(asked)]


@pytest.mark.slow
@pytest.mark.parametrize("write", [export_model, fold_model])
def test_a_robust_llava_answers_there_as_it_does_here(tmp_path: Path, write: Any) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
    write_scenes(tmp_path / "data", count=N)
    samples = load_task("vqav2", tmp_path / "data")[:N]
    docs = [{"image": Image.open(str(one.image)).convert("RGB"), "question": one.question} for one in samples]
    ours = robustify(load_model("tiny-llava"), RAdaptConfig(cutoff=10, alpha=0))
    write(ours, tmp_path / "model")
    (named,) = (one for one in manifests() if one.model_id == "radapt_llava_hf")
    module, _, name = named.simple_class_path.rpartition(".")
    settings = {"device": "cpu", "device_map": "cpu", "dtype": "float32"}
    theirs = answers(getattr(import_module(module), name)(pretrained=str(tmp_path / "model"), **settings), docs)

    def here() -> list[str]:
        return [
            ours.generate(ours.pixels([doc["image"]]), [ASK.format(doc["question"])], max_new_tokens=10)[0]
            for doc in docs
        ]

    assert theirs == here()
    with ours.undefended():
        assert theirs != here()
