"""`lvlm-radapt harden` from its flags to its verdict, on a random LLaVA that is asked for what it says anyway."""

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from eval_tasks.config.presets import load_protocol
from eval_tasks.data import load_task, open_image
from eval_tasks.metrics import Interval
from eval_tasks.run.records import read_run
from eval_tasks.tasks.make_task import make_task
from lvlm_radapt import RAdaptConfig
from lvlm_radapt.embedded.dataset import CAPTIONS, write_scenes
from lvlm_radapt.experiments.harden import run as harden_run
from lvlm_radapt.experiments.harden.verdict import Verdict, judge
from lvlm_radapt.loading.load import load_model
from lvlm_radapt.loading.quantised import quantisation_of
from tests.helpers.commands import Command
from tests.helpers.data_sets import ANNOTATIONS, QUESTIONS, write
from tests.helpers.inputs import noise
from tests.helpers.tiny_checkpoints import save_llava

PHOTOS = 150  # the published recipe takes batches of 128
IMAGES = 30  # 10 to choose on, 20 to score on


class Place(NamedTuple):
    """A model, the questions whose answers are the model's own, and images to train on."""

    model: Path
    data: Path
    photos: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    root = tmp_path_factory.mktemp("harden")
    found = Place(save_llava(root / "model"), root / "data", root / "photos")
    found.photos.mkdir()
    for number in range(PHOTOS):
        noise(56, 56, seed=1000 + number).save(found.photos / f"{number}.png")
    texts = dict.fromkeys(range(IMAGES), "what color") | {IMAGES: "how many circle"}  # two of image 0
    questions = [
        {"image_id": number % IMAGES, "question": text, "question_id": number} for number, text in texts.items()
    ]
    for number in range(IMAGES):
        image = found.data / "val2014" / f"COCO_val2014_{number:012d}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        noise(56, 56, seed=number).save(image)

    def annotate(answers: dict[str, str]) -> None:
        rows = [
            one
            | {
                "question_type": "what",
                "answer_type": "other",
                "multiple_choice_answer": answers[str(one["question_id"])],
                "answers": [
                    {"answer": answers[str(one["question_id"])], "answer_confidence": "yes", "answer_id": k + 1}
                    for k in range(10)
                ],
            }
            for one in questions
        ]
        for row in rows:
            del row["question"]
        write(found.data / QUESTIONS, {"questions": questions, "data_type": "mscoco"})
        write(found.data / ANNOTATIONS, {"annotations": rows, "license": {}})

    captions = [{"image_id": number, "id": number, "caption": "a red circle"} for number in range(IMAGES)]
    files = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in range(IMAGES)]
    write(found.data / CAPTIONS, {"images": files, "annotations": captions})
    annotate(dict.fromkeys(map(str, texts), "red"))
    task, model = make_task("vqav2", load_protocol("native")), load_model(found.model)
    samples = load_task("vqav2", found.data)
    bound = task.bind(model, samples, samples, batch_size=8)
    said = bound.answers(model.pixels([open_image(sample.image) for sample in samples]), samples)
    annotate({sample.id: text for sample, text in zip(samples, said, strict=True)})
    return found


def words_of(place: Place, out: Path, *more: object) -> list[str]:
    words = ["harden", place.model, "--task", "vqav2", "--data", place.data, "--images", place.photos, "--out", out]
    return [*map(str, words), "--steps", "1", "--train-steps", "1", "--device", "cpu", *map(str, more)]


def document(out: Path) -> dict:
    return json.loads((out / "harden.json").read_bytes())


@pytest.mark.slow
def test_the_whole_search(place, tmp_path, monkeypatch, cli):
    """The judge is the real one but for its word: a random model gets no better by one step."""
    seen = {}

    def helps(images: int, winner: str | None, gain: Interval | None, audit: str | None) -> Verdict:
        seen.update(images=images, winner=winner, gain=gain, audit=audit)
        return Verdict("HELPS", "so the test has it") if winner else judge(images, winner, gain, audit)

    monkeypatch.setattr(harden_run, "judge", helps)
    monkeypatch.setattr(harden_run, "choose", lambda candidates, loss: candidates[1])
    shared = place.photos / "shared.png"
    shutil.copy(place.data / "val2014" / "COCO_val2014_000000000003.jpg", shared)
    out = tmp_path / "out"
    code, told, err = cli(*words_of(place, out))
    shared.unlink()
    assert (code, err) == (0, "")
    split = json.loads((out / "split.json").read_bytes())
    assert (split["images"], split["dropped"], len(split["training"])) == ([10, 20], 1, PHOTOS)
    assert len(split["choosing"]) + len(split["scoring"]) == IMAGES + 1
    for part in ("choosing", "scoring"):  # both questions about image 0, or none
        assert ("0" in split[part]) == (str(IMAGES) in split[part])
    for name in ("as-it-is", "filter", "radapt", "learned", "low-rank", "low-rank+filter"):
        run = read_run(out / "runs" / f"choosing-{name}-adaptive")
        assert [sample.id for sample in run.samples] == split["choosing"]
    runs = [read_run(out / "runs" / f"scoring-{name}-adaptive") for name in ("as-it-is", "filter")]
    assert [sample.id for sample in runs[1].samples] == split["scoring"]
    assert runs[1].settings["attack"]["name"] == "ensemble"
    before, after = (sum(s.adversarial.score for s in run.samples) / len(run.samples) for run in runs)
    assert document(out)["gain"][0] == pytest.approx(after - before)
    assert (seen["images"], seen["winner"]) == (20, "filter")
    assert seen["audit"] == json.loads((out / "audit" / "audit.json").read_bytes())["audit"]["verdict"]
    # the page and the terminal begin with the same words
    lines = told.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("HELPS. "))
    assert lines[first : first + 6] == document(out)["told"]
    page = (out / "report.html").read_text()
    assert f"{after:.0f} of 100 answers survive the attack instead of {before:.0f}" in page
    # what is written is what was scored
    hardened, samples = load_model(out / "hardened"), load_task("vqav2", place.data)
    assert hardened.radapt is not None
    task = make_task("vqav2", load_protocol("native"))
    bound = task.bind(hardened, samples, samples, batch_size=8)
    chosen = [sample for sample in samples if sample.id in split["scoring"]]
    chosen.sort(key=lambda sample: split["scoring"].index(sample.id))
    said = bound.answers(hardened.pixels([open_image(sample.image) for sample in chosen]), chosen)
    assert said == [sample.clean.output for sample in runs[1].samples]
    # it is gone on with as it was planned, and refused with other settings and as a model to harden
    cli.done(*words_of(place, out, "--resume"))
    assert "other eps" in cli.refused(*words_of(place, out, "--resume", "--eps", "8/255"))
    again = words_of(place._replace(model=out / "hardened"), tmp_path / "twice")
    assert "has a defence already" in cli.refused(*again)


@pytest.mark.slow
def test_a_quantised_search_writes_whole_weights(place, tmp_path, monkeypatch, cli):
    """The language model is in 4 bits in every score, and as it was in the model that is written."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(harden_run, "judge", lambda *numbers: Verdict("HELPS", "so the test has it"))
    monkeypatch.setattr(harden_run, "choose", lambda candidates, loss: candidates[-1])
    out = tmp_path / "out"
    code, told, err = cli(*words_of(place, out, "--quantize", "4bit", "--also", "coco"))
    assert (code, err) == (0, "")
    assert "in 4bit where it is scored" in told
    assert re.search(r"On coco it is \d+\.\d .* instead of \d+\.\d .* \(n = \d+\)", told)
    runs = [read_run(path.parent) for path in (out / "runs").glob("*/run.json")]
    assert len(runs) == 6 + 5 + 2 + 1 + 2  # adaptive and transfer, both parts; the second task
    assert {run.settings["model"]["quantize"] for run in runs} == {"4bit"}
    hardened, base = load_model(out / "hardened"), load_model(place.model)
    assert quantisation_of(hardened.hf) is None
    assert hardened.radapt == RAdaptConfig(cutoff=40.0, alpha=0.0)
    was, now = base.hf.state_dict(), hardened.hf.state_dict()
    trained = {key for key in was if key.startswith("model.vision_tower.") and not torch.equal(was[key], now[key])}
    assert trained
    assert all(torch.equal(was[key], now[key]) for key in was if key not in trained)


@pytest.mark.slow
@pytest.mark.parametrize("flush", [12, 40, 90])
def test_a_killed_search_goes_on_to_the_same_end(place, tmp_path, flush):
    whole = Command(words_of(place, tmp_path / "whole"), tmp_path / "logs")
    killed = Command(words_of(place, tmp_path / "out"), tmp_path / "logs", {"signal": 9, "at_fsync": flush})
    assert killed.wait(300) == -9
    assert not (tmp_path / "out" / "hardened").exists()
    assert not (tmp_path / "out" / "report.html").exists()
    resumed = Command(words_of(place, tmp_path / "out", "--resume"), tmp_path / "logs")
    code = resumed.wait(300)
    assert code == whole.wait(300)
    assert code in (0, 3, 4), resumed.err
    one, other = (document(tmp_path / name) for name in ("whole", "out"))
    for key in ("verdict", "candidates", "winner", "gain", "audit", "sizes"):
        assert one[key] == other[key], key


def test_the_plan_says_what_each_stage_takes_and_writes_nothing(place, tmp_path, cli):
    code, told, err = cli(*words_of(place, tmp_path / "out", "--plan"))
    assert (code, err) == (0, "")
    assert f"{PHOTOS} images to train on, 10 to choose on, 20 to score on" in told
    for stage in ("train the learned anchor", "train at low rank", "score the model and the winner", "audit", "in all"):
        assert stage in told
    assert not (tmp_path / "out").exists()


def test_few_images_give_no_verdict_and_no_work(place, tmp_path, cli):
    out = tmp_path / "out"
    code, told, _ = cli(*words_of(place, out, "--samples", "24"))
    assert code == 3
    assert told.startswith("NO VERDICT. 15 images")
    assert not out.exists()


def _adapter(place: Place, root: Path) -> Place:
    folder = root / "tuned"
    shutil.copytree(place.model, folder)
    (folder / "training.json").write_text("{}")
    return place._replace(model=folder)


def _few_photos(place: Place, root: Path) -> Place:
    (root / "few").mkdir()
    for photo in sorted(place.photos.iterdir())[:100]:
        shutil.copy(photo, root / "few")
    return place._replace(photos=root / "few")


def _wrong_answers(place: Place, root: Path) -> Place:
    shutil.copytree(place.data, root / "data")
    file = root / "data" / ANNOTATIONS
    rows = json.loads(file.read_bytes())
    for row in rows["annotations"]:
        for answer in row["answers"]:
            answer["answer"] = "nothing of the kind"
    file.write_text(json.dumps(rows))
    return place._replace(data=root / "data")


MISTAKES = {
    "a fine-tuned model": (_adapter, [], "is fine-tuned adversarially already"),
    "too few images to train on": (_few_photos, [], "has 100 images to train on: give 142 or more"),
    "a low --image-count": (
        None,
        ["--image-count", "100"],
        "--image-count 100 is too few images to train on: give 142",
    ),
    "only images that are scored": (lambda p, root: p._replace(photos=p.data), [], "30 more are in --data, too"),
    "an encoder": (lambda p, root: p._replace(model=Path("tiny-clip")), [], "is an image encoder"),
    "a task of encoders": (None, ["--task", "cifar10"], "cifar10"),
    "too few for two parts": (None, ["--samples", "3", "--data", "{}"], "too few for a part to choose on"),
    "a clean score of nothing": (_wrong_answers, [], "the clean score is 0.0 on"),
    "too little time": (None, ["--hours", "0.000001"], "--hours 1e-06 is too short"),
    "a bad budget": (None, ["--eps", "4"], "4/255"),
    "a second task of encoders": (None, ["--also", "cifar10"], "--also cifar10 is not answered in texts"),
    "a second task without data": (None, ["--also", "textvqa"], "textvqa"),
    "two places": (None, ["--device-map", "auto"], "exclude each other"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line_and_leave_nothing(name, place, tmp_path, cli):
    change, flags, what = MISTAKES[name]
    out = tmp_path / "out"
    if "{}" in flags:
        write_scenes(tmp_path / "one", count=1)
    changed = place if change is None else change(place, tmp_path)
    more = [flag.format(tmp_path / "one") for flag in flags]
    assert what in cli.refused(*words_of(changed, out, *more))
    assert not out.exists()


def test_no_room_is_told_before_anything_is_trained(place, tmp_path, monkeypatch, cli):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    out = tmp_path / "out"
    assert "make room" in cli.refused(*words_of(place, out))
    assert not out.exists()
