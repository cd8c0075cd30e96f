"""The evaluation loop on a small random LLaVA: what is scored, what is written, what resuming gives."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from attacks.eight_bit import from_8bit
from eval_tasks.api import Evaluation
from eval_tasks.config.presets import load_protocol
from eval_tasks.crafting.crafted import sample_seed
from eval_tasks.data import load_task, select
from eval_tasks.metrics import CiderScorer, vqa_accuracy
from eval_tasks.metrics.vqa import RULES
from eval_tasks.report.page import write_report
from eval_tasks.run.processes import Group
from eval_tasks.run.records import RunFolder, read_run
from eval_tasks.tasks.make_task import make_task
from lvlm_radapt import RAdaptConfig, load_model, robustify
from lvlm_radapt.embedded.dataset import ANNOTATIONS, QUESTIONS
from lvlm_radapt.utils.errors import UserError
from tests.helpers.data_sets import scenes_folder
from tests.helpers.evaluations import evaluation, score
from tests.helpers.failures import one_line
from tests.helpers.interruption import Killed
from tests.helpers.run_folders import without_checksums
from tests.helpers.slow import slow
from tests.helpers.tiny_checkpoints import save_llava, save_qwen

data = scenes_folder(count=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


def settings(data, *, task="vqav2", attack="e2e", threat="adaptive", steps=2, samples=7, **more) -> Evaluation:
    own = {} if attack is None else {"eps": "8/255", "threat": threat, "steps": steps}
    return evaluation(task, data, attack, samples=samples, seed=1, **own, **{"chunk_size": 3, "batch_size": 2} | more)


def test_the_scored_image_is_the_one_on_disk_and_the_scores_are_the_metrics_own(tmp_path, data, checkpoint):
    model = robustify(load_model(checkpoint), RAdaptConfig())
    run = score(model, settings(data), tmp_path / "run")
    folder = RunFolder(run.path)
    assert run.metrics["n"] == len(run.samples) == 7
    from eval_tasks.data import image_key, load_task, open_image

    samples = {s.id: s for s in load_task("vqav2", data)}
    for record in run.samples:
        sample = samples[record.id]
        clean = model.pixels([open_image(sample.image)])
        pixels = folder.load_image(record.id)
        attacked = clean.replace(from_8bit(pixels)[None])
        prompt = f"{sample.question}\nAnswer the question using a single word or phrase."
        assert model.generate(attacked, [prompt], max_new_tokens=5) == [record.adversarial.output]
        assert model.generate(clean, [prompt], max_new_tokens=5) == [record.clean.output]
        assert record.clean.score == 100 * vqa_accuracy(record.clean.output, sample.references, "openflamingo")
        distance = (pixels.int() - (clean.x[0] * 255).round().int()).abs().max()
        assert 0 < distance <= 8
        assert record.adversarial.linf == pytest.approx(int(distance) / 255)
    mean = sum(r.adversarial.score for r in run.samples) / 7
    assert run.metrics["adversarial"]["vqa_accuracy"] == pytest.approx(mean)
    assert [record.image for record in run.samples] == [image_key(samples[record.id].image) for record in run.samples]
    assert run.metrics["images"] == len({samples[record.id].image for record in run.samples}) < 7
    rule = run.settings["answers"]
    assert rule == {"style": "openflamingo", "rule": RULES["openflamingo"]}
    assert f"answers are scored by the rule openflamingo: {rule['rule']}" in run.metrics["notes"]


def test_a_run_says_which_budget_its_8bit_images_have(tmp_path, data, checkpoint):
    def made(eps, norm):
        noise = evaluation("vqav2", data, "noise", eps=eps, norm=norm, samples=7, seed=1, chunk_size=3, batch_size=2)
        return score(load_model(checkpoint), noise, tmp_path / f"{norm}")

    linf = made("0.0078", "Linf")
    assert linf.settings["attack"]["eps_8bit"] == 1 / 255
    assert linf.metrics["distance"] == {
        "norm": "Linf", "mean": pytest.approx(1 / 255), "largest": pytest.approx(1 / 255), "unchanged": 0,
    }  # fmt: skip
    assert "8-bit images change by whole levels: of eps 0.0078 they have 1/255" in linf.metrics["notes"]
    assert "Linf 0.0078 (1/255 in 8 bits)" in write_report([linf], tmp_path / "report.html").read_text()
    l2 = made("0.5", "L2")
    sizes = [record.adversarial.l2 for record in l2.samples]
    assert l2.metrics["distance"]["mean"] == pytest.approx(sum(sizes) / len(sizes))
    assert 0.45 < min(sizes) <= max(sizes) <= 0.5  # rounding used to leave nothing of it
    said = f"the 8-bit images are {sum(sizes) / len(sizes):.3g} from the clean ones on average"
    assert any(note.startswith(said) and note.endswith("of an L2 budget of 0.5") for note in l2.metrics["notes"])


def test_captions_share_one_document_frequency(tmp_path, data, checkpoint):
    run = score(load_model(checkpoint), settings(data, task="coco", attack=None, samples=5), tmp_path / "run")
    scorer = CiderScorer({r.id: r.references for r in run.samples})
    corpus, per_id = scorer.score({r.id: r.clean.output for r in run.samples})
    assert run.metrics["clean"]["cider"] == pytest.approx(corpus)
    assert {r.id: r.clean.score for r in run.samples} == pytest.approx(per_id)
    assert run.metrics["adversarial"] is None


def _with_late_texts(data: Path, folder: Path, question: str | None, answer: str | None) -> tuple[Path, str]:
    """A copy of the data, the last of 7 selected samples changed, and that sample's id."""
    last = select(load_task("vqav2", data), 7, 1)[0][-1].id
    shutil.copytree(data, folder)
    for name, kind, change in ((QUESTIONS, "questions", question), (ANNOTATIONS, "annotations", answer)):
        content = json.loads((folder / name).read_bytes())
        for entry in content[kind]:
            if str(entry["question_id"]) == last and change is not None:
                if kind == "questions":
                    entry["question"] = change
                for one in entry.get("answers", ()):
                    one["answer"] = change
        (folder / name).write_text(json.dumps(content))
    return folder, last


@pytest.mark.parametrize(
    ("question", "answer", "attack", "refused"),
    [
        ("what is <image>?", None, None, True),
        ("what is <image>?", None, "e2e", True),
        (None, "<image>", "e2e", True),
        (None, "<image>", "ensemble", True),
        (None, "<image>", "embedding", False),
        (None, "<image>", None, False),
    ],
)
def test_a_text_that_no_model_can_be_given_is_told_before_the_run_is_begun(
    question, answer, attack, refused, data, checkpoint, tmp_path
):
    changed, last = _with_late_texts(data, tmp_path / "data", question, answer)
    asked = settings(changed, attack=attack, threat=attack and "adaptive")
    if refused:
        with one_line(f"sample {last}: the text .* contains the reserved token <image>"):
            score(load_model(checkpoint), asked, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    else:
        assert len(score(load_model(checkpoint), asked, tmp_path / "run").samples) == 7


def test_a_run_of_folded_weights_says_that_it_leaves_their_filter_out(tmp_path, data, cli):
    cli.done("robustify", "tiny-llava", "--fold", "--alpha", 0, "--out", tmp_path / "folded")
    for name, said in (("folded", True), ("tiny-llava", False)):
        model = tmp_path / name if said else name
        words = ["--task", "coco", "--data", data, "--samples", 2, "--out", tmp_path / f"run-{name}"]
        cli.done("eval", model, *words, "--preset", "scenes")
        notes = json.loads((tmp_path / f"run-{name}" / "metrics.json").read_text())["notes"]
        assert any("the weights are scored alone" in note for note in notes) is said


def test_clean_answers_of_an_earlier_run_are_not_asked_for_again(tmp_path, data, checkpoint, monkeypatch):
    model = load_model(checkpoint)
    asked = []
    whole = type(model).generate

    def generate(self, batch, prompts, **more):
        asked.append(len(batch))
        return whole(self, batch, prompts, **more)

    monkeypatch.setattr(type(model), "generate", generate)
    alone = score(model, settings(data, attack="noise", threat=None), tmp_path / "alone")
    assert sum(asked) == 14  # clean and attacked
    known = {}
    score(model, settings(data, attack=None), tmp_path / "clean", clean=known)
    assert {i: one.output for i, one in known.items()} == {r.id: r.clean.output for r in alone.samples}
    asked.clear()
    after = score(model, settings(data, attack="noise", threat=None), tmp_path / "after", clean=known)
    assert sum(asked) == 7
    assert [r.model_dump(exclude={"seconds"}) for r in after.samples] == [
        r.model_dump(exclude={"seconds"}) for r in alone.samples
    ]


@pytest.mark.parametrize("stop_after", [slow(1), 3, slow(5)])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, data, checkpoint, stop_after):
    model = load_model(checkpoint)
    whole = score(model, settings(data), tmp_path / "whole")
    seen = 0

    def kill(done, text):
        nonlocal seen
        seen += done
        if seen >= stop_after:
            raise Killed

    with pytest.raises(Killed):
        score(model, settings(data), tmp_path / "cut", advance=kill)
    assert 0 < len(RunFolder(tmp_path / "cut").done_ids()) < 7
    with pytest.raises(UserError, match="--resume"):
        score(model, settings(data), tmp_path / "cut")
    with pytest.raises(UserError, match=r"attack.steps was 2, now 3"):
        score(model, settings(data, steps=3), tmp_path / "cut", resume=True)
    own = load_protocol("scenes").model_copy(update={"prompts": {"caption": "Say.", "vqa": "{question} Say."}})
    with pytest.raises(UserError, match=r"asked.prompt was .*, now '?\"?\{question\} Say"):
        score(model, dataclasses.replace(settings(data), task=make_task("vqav2", own)), tmp_path / "cut", resume=True)
    again = score(model, settings(data), tmp_path / "cut", resume=True)

    def plain(run):
        return [r.model_copy(update={"seconds": 0.0}) for r in run.samples]

    assert plain(again) == plain(whole)
    assert {**again.metrics, "seconds": 0} == {**whole.metrics, "seconds": 0}
    for record in whole.samples:
        assert torch.equal(RunFolder(whole.path).load_image(record.id), RunFolder(again.path).load_image(record.id))


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("earlier", [slow(False), True])
def test_a_resumed_run_goes_on_with_its_own_threads(tmp_path, data, checkpoint, monkeypatch, earlier):
    model, out, seen = load_model(checkpoint), tmp_path / "run", []
    with threads(3):
        begun(model, data, out)
        whole = score(model, settings(data), tmp_path / "whole")
    if earlier:
        without_checksums(out)
    document = json.loads((out / "run.json").read_bytes())
    assert document["threads"] == document["environment"]["threads"] == 3
    if earlier:  # before threads were a setting of their own
        del document["threads"]
        (out / "run.json").write_text(json.dumps(document))
    generate = type(model).generate

    def spied(self, *args, **more):
        seen.append(torch.get_num_threads())
        return generate(self, *args, **more)

    monkeypatch.setattr(type(model), "generate", spied)
    with threads(1):
        again = score(model, settings(data), out, resume=True)
        assert torch.get_num_threads() == 1
    assert set(seen) == {3}
    unequal = {"seconds": 0.0, "clean_sha256": None}
    assert [r.model_copy(update=unequal) for r in again.samples][3:] == [
        r.model_copy(update=unequal) for r in whole.samples
    ][3:]


def test_processes_with_other_threads_than_the_first_are_refused(tmp_path, data, checkpoint):
    class Second(Group):
        first = False
        failed = None

        def work(self, name):
            work = super().work(name)
            work.lead = lambda what, do: {"finished": False, "done": {}, "remarks": [], "threads": 5}
            return work

        def fail(self, error):
            self.failed = error

    group = Second(1, 2)
    with (
        pytest.raises(UserError, match=r"process 1 has 1 CPU threads and the first process 5, .* OMP_NUM_THREADS"),
        threads(1),
    ):
        score(load_model(checkpoint), settings(data), tmp_path / "run", group=group)
    assert group.failed is not None


def begun(model, data, out):
    """A run that stopped after its first chunk, and the id of a sample of it."""

    def kill(done, text):
        if done:
            raise Killed

    with pytest.raises(Killed):
        score(model, settings(data), out, advance=kill)
    return min(RunFolder(out).done_ids())


@pytest.mark.parametrize("earlier", [False, True])
def test_a_changed_image_is_not_resumed_nor_audited(tmp_path, data, checkpoint, earlier):
    model, out = load_model(checkpoint), tmp_path / "run"
    done = begun(model, data, out)
    RunFolder(out).save_image(done, torch.zeros_like(RunFolder(out).load_image(done)))
    if earlier:
        without_checksums(out)
    with pytest.raises(UserError, match=f"the image of sample {done}") as caught:
        score(model, settings(data), out, resume=True)
    assert "\n" not in str(caught.value)
    assert not (out / "metrics.json").exists()


def test_a_begun_run_of_an_earlier_version_goes_on_and_says_so(tmp_path, data, checkpoint):
    model, out = load_model(checkpoint), tmp_path / "run"
    begun(model, data, out)
    without_checksums(out)
    run = score(model, settings(data), out, resume=True)
    assert any("no checksums" in note for note in run.metrics["notes"])
    assert len(run.samples) == 7


@pytest.mark.parametrize("earlier", [False, True])
def test_images_in_others_places_are_not_scored_again(tmp_path, data, checkpoint, earlier):
    made = score(load_model(checkpoint), settings(data), tmp_path / "stock")
    chosen, folder = made.samples[4].id, RunFolder(made.path)
    noise = torch.randint(0, 256, folder.load_image(chosen).shape, dtype=torch.uint8)
    folder.save_image(chosen, noise)
    if earlier:
        without_checksums(made.path)
    protected = robustify(load_model(checkpoint), RAdaptConfig())
    with pytest.raises(UserError, match=f"the image of sample {chosen}") as caught:
        score(protected, settings(data, threat="transfer"), tmp_path / "reused", images_from=made.path)
    assert ("more than eps 8/255" if earlier else "is not the one that this run made") in str(caught.value)


def test_images_of_an_earlier_version_are_scored_with_a_remark(tmp_path, data, checkpoint):
    made = score(load_model(checkpoint), settings(data), tmp_path / "stock")
    protected = robustify(load_model(checkpoint), RAdaptConfig())
    source = without_checksums(made.path)
    run = score(protected, settings(data, threat="transfer"), tmp_path / "reused", images_from=source)
    assert any("no checksums" in note for note in run.metrics["notes"])


def test_transfer_is_crafted_on_the_undefended_twin(tmp_path, data, checkpoint):
    stock = load_model(checkpoint)
    made = score(stock, settings(data), tmp_path / "stock")
    protected = robustify(load_model(checkpoint), RAdaptConfig())
    crafted = score(protected, settings(data, threat="transfer"), tmp_path / "crafted")
    reused = score(protected, settings(data, threat="transfer"), tmp_path / "reused", images_from=tmp_path / "stock")
    for record in made.samples:
        images = [RunFolder(p.path).load_image(record.id) for p in (made, crafted, reused)]
        assert torch.equal(images[0], images[1])
        assert torch.equal(images[0], images[2])
    assert [r.adversarial.output for r in crafted.samples] == [r.adversarial.output for r in reused.samples]
    adaptive = score(protected, settings(data), tmp_path / "adaptive")
    assert any(
        not torch.equal(RunFolder(adaptive.path).load_image(r.id), RunFolder(made.path).load_image(r.id))
        for r in made.samples
    )


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, data, checkpoint):
    stock = load_model(checkpoint)
    out = tmp_path / "run"
    with pytest.raises(UserError, match="no undefended model"):
        score(stock, settings(data, threat="transfer"), out)
    score(stock, settings(data), tmp_path / "made")
    protected = robustify(load_model(checkpoint), RAdaptConfig())
    with pytest.raises(UserError, match="another steps: 2, not 3"):
        score(protected, settings(data, threat="transfer", steps=3), out, images_from=tmp_path / "made")
    with pytest.raises(UserError, match="other samples"):
        score(protected, settings(data, threat="transfer", samples=5), out, images_from=tmp_path / "made")
    with pytest.raises(UserError, match="transfer only"):
        score(protected, settings(data), out, images_from=tmp_path / "made")
    assert not out.exists()


def test_a_surrogate_of_another_family_and_canvas_attacks_on_the_victims_canvas(tmp_path, data, checkpoint):
    surrogate = load_model(save_qwen(tmp_path / "qwen"))
    run = score(
        load_model(checkpoint), settings(data, threat="transfer", samples=3), tmp_path / "run", surrogate=surrogate
    )
    assert run.settings["attack"]["surrogate"] == str(tmp_path / "qwen")
    assert all(0 < r.adversarial.linf <= 8 / 255 + 1e-6 for r in run.samples)


@pytest.mark.parametrize("attack", ["embedding", "noise"])
def test_the_other_attacks_run_and_stay_in_the_ball(tmp_path, data, checkpoint, attack):
    threat = None if attack == "noise" else "adaptive"
    run = score(load_model(checkpoint), settings(data, attack=attack, threat=threat), tmp_path / "run")
    assert all(0 < r.adversarial.linf <= 8 / 255 + 1e-6 for r in run.samples)
    assert read_run(tmp_path / "run").metrics == run.metrics


def test_a_samples_seed_depends_on_nothing_but_the_two_numbers():
    assert sample_seed(0, "7") == sample_seed(0, "7")
    assert len({sample_seed(s, i) for s in range(3) for i in ("1", "2", "11")}) == 9


def _loss_with_holes(model, monkeypatch, hole) -> None:
    """The model's loss, not a number for the rows of a batch that `hole(calls so far, prompts)` says."""
    whole = type(model).loss
    calls = 0

    def loss(self, batch, prompts, targets):
        nonlocal calls
        calls += 1
        value = whole(self, batch, prompts, targets)
        return torch.where(torch.tensor(hole(calls, prompts)), torch.nan, value)

    monkeypatch.setattr(type(model), "loss", loss)


def test_a_loss_that_is_no_number_costs_its_sample_alone(tmp_path, data, checkpoint, monkeypatch):
    model = load_model(checkpoint)
    whole = score(model, settings(data), tmp_path / "whole")
    # the first chunk, two at a time: clean images (2 calls), start, step 1, step 2, where the second has no loss
    _loss_with_holes(model, monkeypatch, lambda call, prompts: [call == 5 and i == 1 for i in range(len(prompts))])
    run = score(model, settings(data), tmp_path / "run")
    failed = [r for r in run.samples if r.adversarial.failed]
    assert [r.adversarial.failed for r in failed] == ["loss is not finite at step 2"]
    assert (run.metrics["failed"], run.metrics["n"]) == (1, 7)
    assert "1 samples failed, scored with the best image found before: loss is not finite (1)" in run.metrics["notes"]
    assert 0 < failed[0].adversarial.linf <= 8 / 255 + 1e-6
    others = {r.id: r.adversarial for r in whole.samples if r.id != failed[0].id}
    assert {r.id: r.adversarial for r in run.samples if r.id != failed[0].id} == others


def test_a_run_whose_first_chunk_fails_wholly_ends_there_and_keeps_nothing(tmp_path, data, checkpoint, monkeypatch):
    model = load_model(checkpoint)
    _loss_with_holes(model, monkeypatch, lambda call, prompts: [True] * len(prompts))
    with pytest.raises(UserError, match=r"failed on all 3 samples of the first chunk \(.*: loss is not finite at"):
        score(model, settings(data), tmp_path / "run")
    assert RunFolder(tmp_path / "run").done_ids() == set()
    monkeypatch.undo()
    run = score(model, settings(data), tmp_path / "run", resume=True)
    assert (run.metrics["n"], run.metrics["failed"]) == (7, 0)


def test_a_model_of_views_says_that_its_attack_is_a_superset(tmp_path, data):
    from tests.helpers.tiny_checkpoints import save_llava_next

    model = load_model(save_llava_next(tmp_path / "next"))
    run = score(model, settings(data, samples=2), tmp_path / "run")
    assert run.settings["model"]["views_apart"] is True
    assert any("each attacked on its own" in note for note in run.metrics["notes"])
    clean = score(model, settings(data, samples=2, attack=None), tmp_path / "clean")
    assert not any("each attacked on its own" in note for note in clean.metrics["notes"])
