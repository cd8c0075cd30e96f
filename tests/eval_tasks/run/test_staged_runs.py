"""Ensembles, targeted and half-precision attacks through the evaluation loop, on a small random LLaVA."""

import pytest
import torch

from eval_tasks.audit.short import short_audit
from eval_tasks.crafting.source_model import SourceModel
from eval_tasks.crafting.targeted import contains_target
from eval_tasks.data import load_task, open_image
from eval_tasks.run.records import RunFolder
from eval_tasks.tasks.caption import CaptionScores
from lvlm_radapt import RAdaptConfig, load_model, robustify
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.utils.errors import UserError
from tests.helpers.data_sets import scenes_folder
from tests.helpers.evaluations import evaluation, score
from tests.helpers.slow import slow
from tests.helpers.tiny_checkpoints import save_llava

data = scenes_folder(count=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


class Words:
    """Scores that a random model's answers do not all share: how many letters an answer has, plus one."""

    def __init__(self, samples, **ignored):
        self.whole = CaptionScores(samples, tokenizer="ptb")

    def references(self, sample, most):
        return self.whole.references(sample, most)

    def canonical(self, sample):
        return 100.0

    def score(self, outputs):
        return {i: 1.0 + sum(map(ord, text)) % 97 for i, text in outputs.items()}


@pytest.fixture
def letters(monkeypatch):
    monkeypatch.setattr("eval_tasks.tasks.caption.CaptionScores", Words)


def settings(data, *, attack="ensemble", task="coco", samples=5, threat="adaptive", steps=2, **more):
    sizes = {"chunk_size": 3, "batch_size": 2}
    return evaluation(
        task, data, attack, eps="8/255", threat=threat, steps=steps, samples=samples, seed=1, **sizes | more
    )


def plain(run):
    return [r.model_copy(update={"seconds": 0.0}) for r in run.samples]


def image(run, sample_id):
    return RunFolder(run.path).load_image(sample_id)


def test_the_ensemble_leaves_no_higher_score_than_its_first_stage_alone(tmp_path, data, checkpoint, letters):
    model = load_model(checkpoint)
    # alike batches: on real models batching moves losses by rounding
    alike = {"chunk_size": 5, "batch_size": 1}
    whole = score(model, settings(data, **alike), tmp_path / "ensemble")
    alone = score(model, settings(data, attack="e2e", **alike), tmp_path / "e2e")
    pairs = list(zip(whole.samples, alone.samples, strict=True))
    assert all(a.adversarial.score <= min(b.adversarial.score, a.clean.score) for a, b in pairs)
    assert any(a.adversarial.score < b.adversarial.score for a, b in pairs)
    for first, _ in pairs:
        if first.adversarial.stage == "reference 1":
            assert torch.equal(image(whole, first.id), image(alone, first.id))
    assert whole.settings["attack"]["stages"] == [*(f"reference {k}" for k in range(1, 6)), "best reference"]
    assert whole.settings["attack"]["threshold"] == {"kind": "canonical_share", "value": 0.2}
    assert sum(stage["kept"] for stage in whole.metrics["stages"]) == 5
    broken = sum(r.adversarial.score < 20 for r in whole.samples)
    assert sum(stage["broken"] for stage in whole.metrics["stages"]) == broken
    assert any(f"{broken} of 5 images fell under" in note for note in whole.metrics["notes"])


class Killed(Exception):
    pass


@pytest.mark.slow
def test_an_ensemble_killed_in_the_middle_ends_at_the_same_numbers(tmp_path, data, checkpoint, letters, monkeypatch):
    model = load_model(checkpoint)
    real, calls, stop = type(model).loss, 0, -1

    def loss(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise Killed
        return real(self, *arguments)

    monkeypatch.setattr(type(model), "loss", loss)
    whole = score(model, settings(data), tmp_path / "whole")
    stop, calls = 3 * calls // 4, 0  # in some stage of the second chunk
    with pytest.raises(Killed):
        score(model, settings(data), tmp_path / "cut")
    monkeypatch.undo()
    monkeypatch.setattr("eval_tasks.tasks.caption.CaptionScores", Words)
    assert len(RunFolder(tmp_path / "cut").done_ids()) == 3
    again = score(model, settings(data), tmp_path / "cut", resume=True)
    assert plain(again) == plain(whole)
    assert {**again.metrics, "seconds": 0} == {**whole.metrics, "seconds": 0}
    for record in whole.samples:
        assert torch.equal(image(whole, record.id), image(again, record.id))


@pytest.mark.slow
def test_transfer_ensembles_are_judged_on_the_twin_and_can_be_used_again(tmp_path, data, checkpoint, letters):
    made = score(load_model(checkpoint), settings(data), tmp_path / "stock")
    protected = robustify(load_model(checkpoint), RAdaptConfig())
    transfer = settings(data, threat="transfer")
    crafted = score(protected, transfer, tmp_path / "crafted")
    reused = score(protected, transfer, tmp_path / "reused", images_from=tmp_path / "stock")
    for record in made.samples:
        assert torch.equal(image(made, record.id), image(crafted, record.id))
        assert torch.equal(image(made, record.id), image(reused, record.id))
    assert crafted.metrics["stages"] == made.metrics["stages"]
    assert reused.metrics["stages"] is None
    assert [r.adversarial.score for r in crafted.samples] == [r.adversarial.score for r in reused.samples]
    other = settings(data, threat="transfer", half="bfloat16")
    with pytest.raises(UserError, match="another half: None, not bfloat16"):
        score(protected, other, tmp_path / "no", images_from=tmp_path / "stock")


def test_a_question_answered_wrongly_is_not_attacked(tmp_path, data, checkpoint):
    run = score(load_model(checkpoint), settings(data, task="vqav2"), tmp_path / "run")
    assert run.metrics["clean"]["vqa_accuracy"] == 0
    assert {(r.adversarial.stage, r.adversarial.linf, r.adversarial.loss) for r in run.samples} == {
        ("clean", 0.0, None)
    }
    assert run.settings["attack"]["stages"][-3:] == ["best reference", "target maybe", "target Word"]
    assert "5 of 5 images fell under the ensemble's threshold: 5 already clean" in run.metrics["notes"]


@pytest.mark.parametrize("half", ["bfloat16", slow("float16")])
def test_half_precision_stages_leave_the_weights_as_they_were(tmp_path, data, checkpoint, letters, half, monkeypatch):
    model = load_model(checkpoint)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    seen = []
    real = type(model).loss

    def loss(self, *arguments):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return real(self, *arguments)

    monkeypatch.setattr(type(model), "loss", loss)
    monkeypatch.setattr(Words, "canonical", lambda self, sample: 0.0)  # nothing breaks: every stage runs
    run = score(model, settings(data, half=half, samples=2, chunk_size=2), tmp_path / "run")
    after = model.hf.state_dict()
    assert all(
        torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype for name, tensor in before.items()
    )
    # a stage: the clean image, its start and two steps; the last stage begins at a clean or a kept image
    assert [on for on, _ in seen] == [True] * 20 + [False] * 4
    assert {dtype for on, dtype in seen if on} == {getattr(torch, half)}
    assert run.settings["attack"]["half"] == half
    assert any(f"reference 1 to 5 ran in {half}" in note for note in run.metrics["notes"])


def test_half_precision_is_near_full_precision_and_not_equal_to_it(data, checkpoint):

    model = robustify(load_model(checkpoint), RAdaptConfig())
    batch = model.pixels([open_image(s.image) for s in load_task("coco", data)[:2]])
    texts = ["a red circle on a green background"] * 2
    attacker = SourceModel(model, batch)
    full, half = (attacker.nll(["what?"] * 2, texts, half=h)(batch.x, [0, 1]) for h in (None, "bfloat16"))
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert torch.allclose(full, half, rtol=0.02)


def test_a_failing_stage_marks_only_what_still_stands(tmp_path, data, checkpoint, letters, monkeypatch):
    model = load_model(checkpoint)
    real = type(model).loss
    first = load_task("coco", data)
    bad = {s.references[1] for s in first}

    def loss(self, batch, prompts, targets):
        value = real(self, batch, prompts, targets)
        return torch.where(torch.tensor([t in bad for t in targets]), torch.nan, value)

    monkeypatch.setattr(type(model), "loss", loss)
    run = score(model, settings(data, chunk_size=5), tmp_path / "run")
    for record in run.samples:
        if record.adversarial.broken:
            assert record.adversarial.failed is None
        else:
            assert record.adversarial.failed.startswith("reference 2: loss is not finite")
    failed = sum(r.adversarial.failed is not None for r in run.samples)
    assert 0 < failed < 5
    assert run.metrics["failed"] == failed
    assert any(note.startswith(f"{failed} samples failed") for note in run.metrics["notes"])


def test_a_targeted_attack_counts_the_answers_that_say_its_text(tmp_path, data, checkpoint):
    model = load_model(checkpoint)
    clean = score(model, settings(data, attack="none", threat=None, steps=None, task="vqav2"), tmp_path / "clean")
    # a word the random model says on some images anyway
    word = clean.samples[0].clean.output.split()[0]
    run = score(model, settings(data, attack="targeted", task="vqav2", target=word.upper()), tmp_path / "run")
    hits = [contains_target(r.adversarial.output, word) for r in run.samples]
    assert [r.adversarial.success for r in run.samples] == hits
    success = run.metrics["success"]
    assert (success["target"], success["hits"], success["success_rate"]) == (word.upper(), sum(hits), 20 * sum(hits))
    assert success["clean_hits"] == sum(contains_target(r.clean.output, word) for r in clean.samples) > 0
    assert success["ci95"][0] < success["success_rate"] < success["ci95"][1] or sum(hits) in (0, 5)
    assert any(f"is in {sum(hits)} of 5 answers to attacked images" in note for note in run.metrics["notes"])


def test_a_targeted_attack_looks_now_and_then_and_stops_where_it_reads_its_text(
    tmp_path, data, checkpoint, monkeypatch
):
    model = load_model(checkpoint)
    asked = []

    def answers(self, batch, prompts, max_new_tokens):
        asked.append(len(prompts))
        return ["it says STOP here"] * len(prompts)

    monkeypatch.setattr(type(model), "generate", answers)
    real, losses = type(model).loss, []

    def loss(self, batch, prompts, targets):
        losses.append(set(targets))
        return real(self, batch, prompts, targets)

    monkeypatch.setattr(type(model), "loss", loss)
    options = {"attack": "targeted", "task": "vqav2", "target": "stop", "steps": 40}
    run = score(model, settings(data, samples=2, chunk_size=2, **options), tmp_path / "run")
    assert asked == [2, 2, 2]  # clean, after step 10, the attacked images
    assert losses == [{"stop"}] * 12  # clean, start, ten steps
    assert run.metrics["success"]["success_rate"] == 100
    assert run.metrics["success"]["ci95"][1] == 100


@pytest.mark.parametrize("attack", ["e2e", slow("ensemble")])
def test_an_early_exit_spends_fewer_steps_and_leaves_no_higher_score(tmp_path, attack, monkeypatch):
    """On the embedded model, whose answers are right until an attack changes them."""
    climbs = []

    def noted(*args, own_climb, **more):
        climbs.append(own_climb)
        return short_audit(*args, own_climb=own_climb, **more)

    monkeypatch.setattr("eval_tasks.run.audit_of_run.short_audit", noted)
    write_scenes(tmp_path / "scenes", count=16, seed=3)
    model = load_model("tiny-llava")
    more = {"attack": attack, "task": "vqav2", "samples": 16, "steps": 4, "chunk_size": 16, "batch_size": 4}
    data = tmp_path / "scenes"
    whole = score(model, settings(data, **more), tmp_path / "whole")
    early = score(model, settings(data, early_exit=True, **more), tmp_path / "early")
    pairs = [(a.adversarial, b.adversarial) for a, b in zip(whole.samples, early.samples, strict=True)]
    beaten = [b for _, b in pairs if b.score == 0]
    assert 0 < len(beaten) < 16
    assert all(b.score <= a.score and b.steps <= a.steps for a, b in pairs)
    assert sum(b.steps for _, b in pairs) < 0.8 * sum(a.steps for a, _ in pairs)
    assert min(b.steps for b in beaten) <= 1
    assert all(b.linf <= 8 / 255 + 1e-6 for _, b in pairs)
    assert any(note.startswith("early exit") for note in early.metrics["notes"])
    assert not any(note.startswith("early exit") for note in whole.metrics["notes"])
    assert [run.settings["attack"]["early_exit"] for run in (whole, early)] == [False, True]
    # losses of images that left early are none to hold a rival attack against
    assert climbs == [attack == "ensemble", True]


def test_images_that_left_early_are_not_used_on_another_model_and_a_transfer_attack_goes_to_its_end(tmp_path):
    write_scenes(tmp_path / "scenes", count=4, seed=3)
    model = load_model("tiny-llava")
    more = {"attack": "e2e", "task": "vqav2", "samples": 4, "steps": 3}
    score(model, settings(tmp_path / "scenes", early_exit=True, **more), tmp_path / "early")
    protected = robustify(load_model("tiny-llava"), RAdaptConfig())
    for early_exit in (False, True):
        transfer = settings(tmp_path / "scenes", early_exit=early_exit, threat="transfer", **more)
        with pytest.raises(UserError, match="left its images as soon as"):
            score(protected, transfer, tmp_path / "no", images_from=tmp_path / "early")
    run = score(protected, transfer, tmp_path / "transfer")
    assert [r.adversarial.steps for r in run.samples] == [3] * 4


def test_a_surrogate_of_another_size_is_said(tmp_path, data, checkpoint):
    surrogate = load_model("tiny-llava")
    run = score(
        load_model(checkpoint), settings(data, attack="e2e", threat="transfer", samples=2), tmp_path / "run",
        surrogate=surrogate,
    )  # fmt: skip
    sizes = [model.pixels([open_image(load_task("coco", data)[0].image)]).x.shape[-1]
             for model in (load_model(checkpoint), surrogate)]  # fmt: skip
    assert sizes[0] != sizes[1]
    wanted = f"from {sizes[0]}x{sizes[0]} to {sizes[1]}x{sizes[1]}"
    assert any(wanted in note and "differentiably" in note for note in run.metrics["notes"])
