"""Zero-shot classifiers from the command line: robustify, eval, resume, transfer, audit, report; and mistakes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attacks.suite import SuiteSettings, run_suite
from eval_tasks.api import Evaluation
from eval_tasks.audit import Audit, short
from eval_tasks.config.presets import load_attack, load_protocol
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.data import load_task
from eval_tasks.data.imagefolder import class_names
from eval_tasks.run.records import Run, RunFolder, SampleRecord, read_run
from lvlm_radapt import RAdaptConfig, load_encoder, robustify
from lvlm_radapt.embedded.dataset import CLASSES, write_scenes
from lvlm_radapt.loading.load import load_any, load_surrogate
from lvlm_radapt.models.zero_shot import ZeroShot
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.utils.errors import UserError
from tests.helpers.cli import Cli
from tests.helpers.evaluations import evaluation, score
from tests.helpers.interruption import Killed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(out, count=2, per_class=1)
    return out / CLASSES


def settings(folder: Path, attack: str = "apgd-ce", threat: str | None = None, **more: object) -> Evaluation:
    sizes = {"chunk_size": 3, "batch_size": 2, "samples": 8}
    return evaluation("imagefolder", folder, attack, eps="4/255", threat=threat, steps=3, seed=1, **sizes | more)


@pytest.fixture(scope="module")
def stock(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return score(load_encoder("tiny-clip"), settings(folder), tmp_path_factory.mktemp("runs") / "stock")


def plain(run: Run) -> list[SampleRecord]:
    return [r.model_copy(update={"seconds": 0.0}) for r in run.samples]


def image_of(run: Run, record: SampleRecord) -> torch.Tensor:
    return RunFolder(run.path).load_image(record.id)


def test_all_classes_are_choices_and_the_scored_image_is_the_one_on_disk(stock: Run, folder: Path) -> None:
    names = class_names(load_task("imagefolder", folder))
    assert stock.settings["classes"]["n"] == len(names) == 36 > len(stock.samples)
    assert stock.settings["classes"]["templates"] == load_protocol("scenes").templates
    assert (stock.settings["attack"]["line"], stock.settings["attack"]["steps"]) == (["apgd-ce"], 3)
    assert any("one of 36 classes" in note for note in stock.metrics["notes"])
    classifier = ZeroShot(load_encoder("tiny-clip"), names, load_protocol("scenes").templates)
    batch = classifier.encoder.pixels([sample.image for sample in _opened(folder, stock)])
    attacked = batch.replace(torch.stack([image_of(stock, r) for r in stock.samples]).float() / 255)
    assert [r.clean.output for r in stock.samples] == classifier.predict(batch)
    assert [r.adversarial.output for r in stock.samples] == classifier.predict(attacked)
    for record in stock.samples:
        assert record.clean.score == 100.0 * (record.clean.output == record.references[0])
        assert record.adversarial.broken == (record.adversarial.score == 0)
        assert (record.adversarial.stage == "clean") == (record.clean.score == 0)
        assert record.adversarial.steps in ((0,) if record.clean.score == 0 else range(4))
        assert record.adversarial.broken or record.adversarial.steps == 3
    assert 0 <= stock.metrics["adversarial"]["accuracy"] < stock.metrics["clean"]["accuracy"]
    broken = sum(stage["broken"] for stage in stock.metrics["stages"])
    assert f"{broken} of 8 images are misclassified" in " ".join(stock.metrics["notes"])


def _opened(folder: Path, run: Run):
    from eval_tasks.data import open_image

    samples = {s.id: s for s in load_task("imagefolder", folder)}
    return [replace(samples[r.id], image=open_image(samples[r.id].image)) for r in run.samples]


def test_a_resumed_run_is_the_uninterrupted_one(stock: Run, folder: Path, tmp_path: Path) -> None:
    model, seen = load_encoder("tiny-clip"), 0

    def kill(done: int, text: str) -> None:
        nonlocal seen
        seen += done
        if seen >= 3:
            raise Killed

    with pytest.raises(Killed):
        score(model, settings(folder), tmp_path / "cut", advance=kill)
    other = replace(settings(folder), task=replace(settings(folder).task, templates=("a {}",)))
    with pytest.raises(UserError, match=r"classes.templates was"):
        score(model, other, tmp_path / "cut", resume=True)
    again = score(model, settings(folder), tmp_path / "cut", resume=True)
    assert plain(again) == plain(stock)
    assert {**again.metrics, "seconds": 0} == {**stock.metrics, "seconds": 0}


def test_transfer_from_the_twin_a_surrogate_and_a_folder_of_images(stock: Run, folder: Path, tmp_path: Path) -> None:
    model = robustify(load_encoder("tiny-clip"), RAdaptConfig(cutoff=30))
    wanted = settings(folder, threat="transfer")
    twin = score(model, wanted, tmp_path / "twin")
    named = score(model, wanted, tmp_path / "named", surrogate=load_encoder("tiny-clip"))
    assert [r.adversarial for r in named.samples] == [r.adversarial for r in twin.samples]
    reused = score(model, wanted, tmp_path / "reused", images_from=stock.path)
    assert all(torch.equal(image_of(reused, r), image_of(stock, r)) for r in stock.samples)
    assert reused.metrics["stages"] is None
    refused = {
        "made with another line": settings(folder, "autoattack-fare", "transfer"),
        "among other classes": replace(wanted, task=replace(wanted.task, templates=("{} on a table",))),
    }
    for words, other in refused.items():
        if "line" in words:  # the name differs too, and is told first
            assert other.attack is not None
            other = replace(other, attack=replace(other.attack, name="apgd-ce"))
        with pytest.raises(UserError, match=words):
            score(model, other, tmp_path / "refused", images_from=stock.path)
    with pytest.raises(UserError, match="answers in texts"):
        score(model, wanted, tmp_path / "refused", surrogate=load_any("tiny-llava"))
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(("attack", "changes"), [("noise", {}), ("embedding", {}), ("square", {"queries": 5})])
def test_the_other_attacks_run_and_stay_in_the_ball(
    attack: str, changes: dict[str, int], folder: Path, tmp_path: Path
) -> None:
    made = make_attack(load_attack(attack).model_copy(update=changes), steps=2 if attack == "embedding" else None)
    asked = replace(settings(folder, samples=4), attack=made)
    run = score(load_encoder("tiny-clip"), asked, tmp_path / "run")
    assert all(r.adversarial.linf <= 4 / 255 + 1e-6 for r in run.samples)
    assert ("audit" in run.metrics) == (attack != "noise")


def test_an_adaptive_run_audits_itself(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short, "SHARE", 500.0)  # as if the run had been longer
    model = robustify(load_encoder("tiny-clip"), RAdaptConfig())
    run = score(model, settings(folder, samples=4), tmp_path / "run")
    audit = Audit.from_dict(run.metrics["audit"])
    assert {f.name for f in audit.findings} | {"prompts"} == {"ball", *(name for name, _ in short.COSTS)}
    assert audit.verdict != "fail", audit.findings


def test_a_batch_size_changes_no_point_beyond_rounding() -> None:
    g = torch.Generator().manual_seed(0)
    weights = torch.randn(3 * 8 * 8, 5, generator=g, dtype=torch.float64)
    x = torch.rand(7, 3, 8, 8, generator=g, dtype=torch.float64)
    labels = (x.flatten(1) @ weights).argmax(1)
    few = SuiteSettings(steps=8)
    most: list[int] = []

    def logits(points: torch.Tensor, index: list[int]) -> torch.Tensor:
        most.append(len(index))
        return torch.tanh(points.flatten(1) @ weights / 10)

    for members in (["pgd-ce"], ["apgd-ce", "apgd-t"]):
        whole = run_suite(members, logits, x, labels, eps=2 / 255, settings=few)
        most.clear()
        parts = run_suite(members, logits, x, labels, eps=2 / 255, settings=few, batch_size=3)
        assert max(most) == 3
        assert parts.broken_by == whole.broken_by
        torch.testing.assert_close(parts.x_adv, whole.x_adv)


def test_an_adapter_of_an_encoder_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = robustify(load_encoder("tiny-clip"), RAdaptConfig(cutoff=30, alpha=0.5))
    save_adapter(model, tmp_path / "clip-r")
    batch = model.pixels(_noise())
    for load in (load_encoder, load_any):
        again = load(tmp_path / "clip-r")
        assert again.radapt == model.radapt
        assert torch.equal(again.image_features(batch), model.image_features(batch))
        assert (again.name, again.geometry) == ("tiny-clip", "stock")
    with pytest.raises(UserError, match="robustified: a surrogate is an undefended model"):
        load_surrogate(tmp_path / "clip-r")
    text = (tmp_path / "clip-r" / "radapt.json").read_text()
    (tmp_path / "clip-r" / "radapt.json").write_text(re.sub('"float32": "....', '"float32": "0000', text))
    with pytest.raises(UserError, match="has other weights"):
        load_encoder(tmp_path / "clip-r")
    (tmp_path / "clip-r" / "radapt.json").write_text(text.replace('"tiny-clip"', '"tiny-clap"'))
    with pytest.raises(UserError, match="cannot open the base model of the adapter"):
        load_any(tmp_path / "clip-r")


def _noise():
    from tests.helpers.inputs import noise

    return [noise(112, 112, i) for i in range(2)]


@pytest.mark.slow
def test_the_commands_of_the_readme(cli: Cli, tmp_path: Path, folder: Path) -> None:
    clip = tmp_path / "clip-r"
    assert "--task imagefolder" in cli.done("robustify", "tiny-clip", "--out", clip)
    common = ["--task", "imagefolder", "--data", folder, "--eps", "2/255", "--steps", 2, "--samples", 6]
    runs = [tmp_path / name for name in ("stock", "adaptive", "transfer")]
    line = [*common, "--attack", "autoattack-fare"]
    assert "accuracy, %" in cli.done("eval", "tiny-clip", *line, "--out", runs[0])
    cli.done("eval", clip, *line, "--threat", "adaptive", "--out", runs[1])
    cli.done("eval", clip, *line, "--threat", "transfer", "--surrogate", "tiny-clip", "--out", runs[2])
    said = cli.done("report", *runs, "--out", tmp_path / "all.html", "--format", "markdown")
    rows = [line for line in said.splitlines() if line.startswith("| tiny-clip")]
    assert len(rows) == 2
    for run in runs:
        assert f"{read_run(run).metrics['adversarial']['accuracy']:.1f}" in said
    page = (tmp_path / "all.html").read_text()
    assert "accuracy, %" in page
    assert "class that was predicted" in page
    assert read_run(runs[0]).samples[0].references[0] in page

    audit = tmp_path / "audit"
    cli.done("audit", clip, *common, "--attack", "apgd-ce", "--samples", 2, "--out", audit)
    names = {f["name"] for f in json.loads((audit / "audit.json").read_text())["audit"]["findings"]}
    assert {"random search", "square", "bpda", "transfer", "targeted loss"} <= names


@pytest.mark.slow  # an image that stands costs 1,900 gradient steps and 5,000 queries
def test_the_standard_ensemble_runs_to_its_end(folder: Path, tmp_path: Path) -> None:
    own = replace(settings(folder, samples=2), attack=make_attack("autoattack-standard", eps="1/255"))
    run = score(load_encoder("tiny-clip"), own, tmp_path / "run")
    attacked = [r.adversarial for r in run.samples if r.adversarial is not None]
    assert len(attacked) == 2
    assert None in [a.stage for a in attacked]  # some image stood through all of it
    for one in attacked:
        assert one.failed is None
        assert one.linf <= 1 / 255 + 1e-6
        assert one.broken == (one.score == 0)


MISTAKES = {
    "a model that answers in texts": (["eval", "tiny-llava"], {}, "is for image encoders"),
    "a task in texts": (["eval", "tiny-clip"], {"--task": "coco", "--data": "{scenes}"}, "is an image encoder"),
    "a classifier attack on texts": (
        ["eval", "tiny-llava"],
        {"--task": "coco", "--data": "{scenes}"},
        "is for image encoders and",
    ),
    "an attack on texts": (["eval", "tiny-clip"], {"--attack": "e2e"}, "is for models that answer in texts"),
    "steps of Square": (["eval", "tiny-clip"], {"--attack": "square", "--steps": "3"}, "--steps is not for"),
    "steps of noise": (["eval", "tiny-clip"], {"--attack": "noise", "--steps": "3"}, "--steps is not for"),
    "no twin": (["eval", "tiny-clip"], {"--threat": "transfer"}, "no undefended model"),
    "a tower for an encoder": (["eval", "tiny-clip"], {"--tower": "tiny-clip"}, "leave another tower out"),
    "bits of an encoder": (["eval", "tiny-clip"], {"--quantize": "4bit"}, "leave quantisation out"),
    "an audit without steps": (["audit", "tiny-clip"], {"--attack": "square"}, "an audit needs"),
    "an audit of texts": (["audit", "tiny-llava"], {}, "is for image encoders"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, cli: Cli, tmp_path: Path, folder: Path) -> None:
    command, changed, words = MISTAKES[name]
    flags = {"--task": "imagefolder", "--data": str(folder), "--attack": "apgd-ce", "--out": str(tmp_path / "run")}
    given = [part.format(scenes=folder.parent) for pair in (flags | changed).items() for part in pair]
    assert words in cli.refused(*command, *given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--export", "--fold"])
def test_an_encoder_is_not_written_whole(flag: str, cli: Cli, tmp_path: Path) -> None:
    assert "is an image encoder" in cli.refused("robustify", "tiny-clip", "--out", tmp_path / "x", flag)
    assert not (tmp_path / "x").exists()
