"""The audit of vision-language models: a sound one passes, a planted flaw is named, every adaptive run carries one."""

import json
from pathlib import Path

import pytest

from eval_tasks.api import Evaluation
from eval_tasks.audit import CHECKS, Audit, full_audit, short
from eval_tasks.audit.build_target import on_one_canvas
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.data import load_task
from eval_tasks.run.audit_of_run import target_of_run
from eval_tasks.run.records import read_run
from eval_tasks.tasks.make_task import make_task
from lvlm_radapt import RAdaptConfig, load_model, robustify
from lvlm_radapt.models.base import LVLM
from tests.helpers.data_sets import scenes_folder
from tests.helpers.evaluations import evaluation, score
from tests.helpers.slow import slow
from tests.helpers.tiny_checkpoints import save_llava

data = scenes_folder(count=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


def target(model, data, *, samples=4, steps=3, attack="e2e", target=None):
    made = make_attack(attack, eps="4/255", steps=steps, target=target)
    assert made is not None
    chosen = load_task("vqav2", data)[:samples]
    same, batch = on_one_canvas(model, chosen, 0)
    assert same == chosen
    run = make_task("vqav2", "scenes").bind(model, chosen, chosen, batch_size=4)
    return target_of_run(run, chosen, batch, made, seed=0)


@pytest.mark.slow
def test_a_protected_model_passes_the_whole_audit(data):
    audit = full_audit(target(robustify(load_model("tiny-llava"), RAdaptConfig()), data, samples=3))
    assert audit.verdict == "pass", [f for f in audit.findings if f.verdict != "pass"]
    assert [f.name for f in audit.findings] == [c.name for c in CHECKS if c.name not in ("square", "draws")]
    assert audit.skipped == {"square": "the model is no classifier", "draws": "no defence that draws at random"}


def test_another_prompt_in_the_loss_is_named(data, checkpoint, monkeypatch):
    model = load_model(checkpoint)
    right = LVLM.loss
    monkeypatch.setattr(
        LVLM, "loss", lambda self, batch, prompts, targets: right(self, batch, [p + "?" for p in prompts], targets)
    )
    audit = full_audit(target(model, data, samples=2, steps=1))
    assert "prompts" in audit.named("fail")
    assert "prompt" not in vars(model.text)  # nothing of the audit stays in the model


@pytest.mark.parametrize(("attack", "wanted"), [("embedding", None), ("ensemble", None), ("targeted", "Word")])
def test_every_white_box_attack_can_be_audited(data, checkpoint, attack, wanted):
    model = robustify(load_model(checkpoint), RAdaptConfig())
    audit = full_audit(target(model, data, samples=2, steps=1, attack=attack, target=wanted))
    passed = {f.name for f in audit.findings if f.verdict == "pass"}
    assert {"gradients", "gradient accuracy", "determinism", "batch invariance"} <= passed
    assert ("prompts" in audit.skipped) == (attack == "embedding")
    # an ensemble attacks nothing on a model that answers nothing right
    assert "ball" in passed or (attack, audit.skipped["ball"]) == ("ensemble", "no image had to be attacked")


def run_settings(data, attack="e2e", threat="adaptive") -> Evaluation:
    return evaluation("vqav2", data, attack, threat=threat, steps=2, samples=4, seed=1, chunk_size=3, batch_size=2)


@pytest.mark.parametrize("attack", ["e2e", slow("ensemble")])
def test_every_adaptive_run_carries_an_audit(tmp_path, data, checkpoint, monkeypatch, attack):
    # an ensemble attacks nothing on a model that answers nothing right
    model = robustify(load_model("tiny-llava" if attack == "ensemble" else checkpoint), RAdaptConfig())
    poor = score(model, run_settings(data, attack), tmp_path / "poor")
    audit = Audit.from_dict(poor.metrics["audit"])
    assert audit.form == "short"
    assert [f.name for f in audit.findings] == ["ball"]
    assert (audit.cost, audit.verdict) == (0, "too little to judge")
    # a run of some hundred times the length, as far as the audit's budget is concerned
    monkeypatch.setattr(short, "SHARE", 30.0)
    rich = score(model, run_settings(data, attack), tmp_path / "rich")
    audit = Audit.from_dict(rich.metrics["audit"])
    ran = {f.name for f in audit.findings}
    if attack == "ensemble":  # tiny-llava is sure of some answers
        ran |= {name for name, why in audit.skipped.items() if why == "the loss is next to nothing at these images"}
    assert ran == {"ball", *(name for name, _ in short.COSTS)}
    assert 2 <= audit.samples <= 4
    assert {"gradient accuracy", "determinism", "batch invariance", "prompts"} <= {
        f.name for f in audit.findings if f.verdict == "pass"
    }
    assert read_run(tmp_path / "rich").samples == rich.samples
    transfer = score(model, run_settings(data, attack, "transfer"), tmp_path / "transfer")
    assert "audit" not in transfer.metrics


def test_the_command_writes_a_document_and_a_page(tmp_path, data, checkpoint, cli):
    out = tmp_path / "audit"
    said = cli.done("audit", checkpoint, "--task", "vqav2", "--data", data, "--samples", 2, "--steps", 1, "--out", out)
    document = json.loads((out / "audit.json").read_text())
    audit = Audit.from_dict(document["audit"])
    assert audit.form == "full"
    # the verdict is there before the page is: a full disk does not take it away
    assert said.splitlines()[-2:] == [f"verdict: {audit.line()}", f"report: {out / 'audit.html'}"]
    assert audit.skipped["transfer"] == "the model has no defence, so no undefended model"
    page = (out / "audit.html").read_text()
    assert "gradient accuracy" in page
    assert "<script" not in page
    assert "http" not in page.split("<body>")[1].split("<pre>")[0]
    assert sorted(p.name for p in out.iterdir()) == ["audit.html", "audit.json"]
    cli.refused("audit", checkpoint, "--task", "vqav2", "--data", data, "--samples", 2, "--steps", 1, "--out", out)


MISTAKES = {
    "noise": ({"--attack": "noise"}, "white-box"),
    "none": ({"--attack": "none"}, "white-box"),
    "eps in levels": ({"--eps": "4"}, "4/255"),
    "no steps": ({"--steps": "0"}, "--steps"),
    "unknown task": ({"--task": "vqa2"}, "vqav2"),
    "missing data": ({"--data": "{tmp}/nowhere"}, "nowhere"),
    "no target": ({"--attack": "targeted"}, "--target"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, data, checkpoint, cli, mistake):
    changes, words = MISTAKES[mistake]
    out = tmp_path / "audit"
    options = {"--task": "vqav2", "--data": str(data), "--out": str(out)} | changes
    flat = [text.format(tmp=tmp_path) for pair in options.items() for text in pair]
    assert words in cli.refused("audit", checkpoint, *flat)
    assert not out.exists()
