"""Scenes: repeatable, honestly split, within their canvas, and readable by the loaders once on disk."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_tasks.data import Sample, check_images, load_task, open_image
from eval_tasks.metrics import vqa_accuracy
from eval_tasks.tasks.make_task import make_task
from lvlm_radapt.embedded import scenes
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.utils.errors import UserError
from tools.embedded import build, packing
from tools.embedded.altered import altered_captions, describe

SPLITS: tuple[scenes.Split, ...] = ("train", "validation", "test")
FEW = settings(max_examples=25, deadline=None)
INDEX = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[scenes.Scene]]:
    return {split: [scenes.sample_scene(split, 0, i, scenes.MIXED[i % 3]) for i in range(250)] for split in SPLITS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(out, count=12, seed=3, mixed=True)
    return out


@FEW
@given(INDEX, st.sampled_from(SPLITS), st.sampled_from(scenes.MIXED))
def test_a_scene_is_a_function_of_its_arguments(index: int, split: scenes.Split, size: tuple[int, int]) -> None:
    scene = scenes.sample_scene(split, 5, index, size)
    assert scene == scenes.sample_scene(split, 5, index, size)
    assert scenes.split_of(scene) == split
    assert scene != scenes.sample_scene(split, 6, index, size)
    image = scenes.render(scene)
    assert (image.height, image.width, image.mode) == (*size, "RGB")
    assert image.tobytes() == scenes.render(scene).tobytes()
    assert scenes.paraphrases(scene) == scenes.paraphrases(scene)
    assert scenes.questions(scene) == scenes.questions(scene)


def test_known_scenes_stay_what_they_are() -> None:
    # the shipped weights were trained on these; numpy keeps PCG64's stream
    assert [scenes.caption(scenes.sample_scene("test", 0, i)) for i in range(3)] == [
        "a small yellow square left of a large orange cross left of a large purple circle on a black background",
        "a small green square left of a small yellow ring on a brown background with the word hat",
        "a large green cross left of a small blue square on a white background",
    ]


def test_splits_share_no_content(drawn: dict[str, list[scenes.Scene]]) -> None:
    content = {split: {scene.content for scene in of} for split, of in drawn.items()}
    assert not content["train"] & content["validation"]
    assert not content["train"] & content["test"]
    assert not content["validation"] & content["test"]


def test_held_out_pairs_are_kept_from_training_and_met_in_the_test(drawn: dict[str, list[scenes.Scene]]) -> None:
    seen = {split: {(t.colour, t.shape) for s in of for t in s.things} for split, of in drawn.items()}
    assert not seen["train"] & scenes.HELD_OUT
    assert seen["test"] >= scenes.HELD_OUT
    assert len(seen["train"]) == len(scenes.COLOURS) * len(scenes.SHAPES) - len(scenes.HELD_OUT)
    assert not any(s.held_out for s in drawn["train"])
    assert 0.1 < np.mean([s.held_out for s in drawn["test"]]) < 0.4


def test_canvases_suit_both_families() -> None:
    for height, width in (scenes.SQUARE, *scenes.MIXED):
        assert height % 28 == width % 28 == 0


def test_things_lie_inside_apart_and_in_order(drawn: dict[str, list[scenes.Scene]]) -> None:
    for scene in drawn["test"]:
        boxes = [(t.x - t.radius, t.y - t.radius, t.x + t.radius, t.y + t.radius) for t in scene.things]
        if scene.sign:
            x, y = scene.sign
            boxes.append((x, y, x + 46, y + 26))
        assert (scene.word is None) == (scene.sign is None)
        for x0, y0, x1, y1 in boxes:
            assert x0 >= 0
            assert y0 >= 0
            assert x1 <= scene.width
            assert y1 <= scene.height
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
        xs = [t.x for t in scene.things]
        assert xs == sorted(xs)
        for thing in scene.things:
            low, high = scenes.SIZES[thing.size]
            assert low <= thing.radius <= high
        assert len({t.colour for t in scene.things}) == len({t.shape for t in scene.things}) == len(xs)


def test_the_picture_shows_the_scene(drawn: dict[str, list[scenes.Scene]]) -> None:
    """Colours where they should be: a square's or circle's centre, and the corners' background."""
    checked = 0
    for scene in drawn["test"][:60]:
        pixels = np.asarray(scenes.render(scene)).astype(float)
        nearest = min(scenes.BACKGROUNDS, key=lambda b: abs(np.median(pixels, (0, 1)) - scenes.BACKGROUNDS[b]).sum())
        covered = sum(4 * t.radius**2 for t in scene.things) + 46 * 26 * (scene.sign is not None)
        if covered < 0.4 * scene.width * scene.height:
            assert nearest == scene.background
            checked += 1
        for thing in scene.things:
            if thing.shape in ("circle", "square", "cross", "star"):
                at = pixels[round(thing.y) - 1 : round(thing.y) + 2, round(thing.x) - 1 : round(thing.x) + 2]
                colour = min(scenes.COLOURS, key=lambda c: abs(at.mean((0, 1)) - scenes.COLOURS[c]).sum())
                assert colour == thing.colour
                checked += 1
    assert checked > 60


def test_questions_are_answered_by_the_scene(drawn: dict[str, list[scenes.Scene]]) -> None:
    verdicts: Counter[str] = Counter()
    for scene in drawn["test"] + drawn["train"]:
        asked = scenes.questions(scene)
        kinds = [q.kind for q in asked]
        assert kinds == [k for k in scenes.QUESTION_TYPES if k != "word" or scene.word]
        by_kind = {q.kind: q for q in asked}
        pairs = {(t.colour, t.shape) for t in scene.things}
        words = by_kind["yesno"].text.rstrip("?").split()
        assert ((words[-2], words[-1]) in pairs) == (by_kind["yesno"].answer == "yes")
        verdicts[by_kind["yesno"].answer] += 1
        assert by_kind["count"].answer == str(len(scene.things))
        assert by_kind["background"].answer == scene.background
        colour = by_kind["shape"].text.split()[-2]
        assert (colour, by_kind["shape"].answer) in pairs
        assert (by_kind["colour"].answer, by_kind["colour"].text.rstrip("?").split()[-1]) in pairs
        if scene.word:
            assert by_kind["word"].answer == scene.word
    assert 0.4 < verdicts["yes"] / verdicts.total() < 0.6


@FEW
@given(INDEX)
def test_people_agree_enough_for_full_accuracy(index: int) -> None:
    scene = scenes.sample_scene("train", 1, index)
    for question in scenes.questions(scene):
        answers = scenes.human_answers(question, index)
        assert len(answers) == 10
        assert answers.count(question.answer) >= 7
        assert answers == scenes.human_answers(question, index)
        assert vqa_accuracy(question.answer, answers, "vqav2") == pytest.approx(1.0)


@FEW
@given(INDEX)
def test_paraphrases_are_distinct_and_say_the_same(index: int) -> None:
    scene = scenes.sample_scene("train", 1, index)
    told = scenes.paraphrases(scene)
    assert len(set(told)) == len(told) == 5
    for text in told:
        places = [text.index(f"{t.colour} {t.shape}") for t in scene.things]
        assert places == sorted(places)
        assert scene.background in text
        assert scene.word is None or text.endswith(scene.word)
        synonyms = {"large": {"large", "big"}, "small": {"small", "little"}}
        for t in scene.things:
            before = text[: text.index(f"{t.colour} {t.shape}")].split()[-1]
            assert before in synonyms[t.size]


def _texts(drawn: dict[str, list[scenes.Scene]]) -> list[str]:
    texts: list[str] = []
    for of in drawn.values():
        for scene in of:
            texts += [scenes.caption(scene), *scenes.paraphrases(scene)]
            for question in scenes.questions(scene):
                texts += [question.text, question.answer, *scenes.human_answers(question, 0)]
                texts.append(packing.VQA_PROMPT.format(question.text))
    for name in ("scenes", "fare", "lmms-eval"):
        for task in ("coco", "vqav2", "textvqa"):
            sample = Sample("1", Path("absent.png"), "what word is on the sign?", ("a",))
            texts.append(make_task(task, name).prompt(sample))
    return [*texts, packing.CAPTION_PROMPT, "maybe", "Word"]


@pytest.mark.parametrize("name", sorted(build.BUILDERS))
def test_every_text_is_in_the_vocabulary(name: str, drawn: dict[str, list[scenes.Scene]]) -> None:
    tokenizer = build.BUILDERS[name][1]()
    texts = list(dict.fromkeys(_texts(drawn)))
    unknown = [
        text for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True) if tokenizer.unk_token_id in ids
    ]
    assert unknown == []
    assert tokenizer.unk_token_id in tokenizer("an aardvark").input_ids
    assert max(map(len, tokenizer([scenes.caption(s) for of in drawn.values() for s in of]).input_ids)) <= 40


@FEW
@given(INDEX, st.sampled_from([None, 0, 4]), st.booleans())
def test_altered_captions_are_wrong_in_one_thing(index: int, wording: int | None, held_out: bool) -> None:
    scene = scenes.sample_scene("train", 2, index)
    true = describe(scene, wording)
    altered = altered_captions(scene, 15, np.random.default_rng(index), wording=wording, held_out=held_out)
    assert len({true, *altered}) == 16
    for text in altered:
        if wording is None and Counter(text.split()) == Counter(true.split()):
            continue  # another order of the same things
        last = text.split()[-1]
        if scene.word is None and last in scenes.WORDS:  # a sign that is not there, in whatever words of that scene
            assert text == describe(replace(scene, word=last), wording)
            continue
        differing = [(a, b) for a, b in zip(true.split(), text.split(), strict=False) if a != b]
        if len(true.split()) == len(text.split()):
            assert len(differing) == 1
        if not held_out:
            words = text.split()
            assert not scenes.HELD_OUT & set(pairwise(words))


def test_the_loaders_read_the_files_back(folder: Path) -> None:
    captions, vqa, text = (load_task(task, folder) for task in ("coco", "vqav2", "textvqa"))
    told = json.loads((folder / "scenes.json").read_text())
    assert [s.id for s in captions] == [str(i) for i in range(1, 13)]
    expected_ids, expected_words = [], []
    for i, sample in enumerate(captions):
        scene = scenes.sample_scene("test", 3, i, scenes.MIXED[i % 3])
        assert sample.references == tuple(scenes.paraphrases(scene))
        assert open_image(sample.image).tobytes() == scenes.render(scene).tobytes()
        entry = told["images"][sample.id]
        assert (entry["caption"], entry["held_out"]) == (scenes.caption(scene), scene.held_out)
        assert (entry["height"], entry["width"]) == (scene.height, scene.width)
        by_kind = {q.kind: q for q in scenes.questions(scene)}
        assert sorted(entry["questions"].values()) == sorted(by_kind)
        for question_id, kind in entry["questions"].items():
            found = next(s for s in vqa if s.id == question_id)
            assert found.question == by_kind[kind].text
            assert found.image == sample.image
            assert int(question_id) // 10 == i + 1
            assert vqa_accuracy(by_kind[kind].answer, found.references) == pytest.approx(1.0)
            expected_ids.append(question_id)
            if kind == "word":
                expected_words.append((question_id, scene.word, sample.image))
    assert sorted(expected_ids) == sorted(s.id for s in vqa)
    assert len({s.id for s in vqa}) == len(vqa)
    assert [s.id for s in text] == [question_id for question_id, _, _ in expected_words]
    for sample, (_, word, image) in zip(text, expected_words, strict=True):
        assert word is not None
        assert sample.image == image
        assert vqa_accuracy(word, sample.references, "textvqa") == pytest.approx(1.0)
    assert text
    for samples in (captions, vqa, text):
        check_images(samples)


def test_the_files_look_like_the_originals(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.txt", "TextVQA_0.5.1_val.json", "annotations", "scenes.json",
        "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", "val2014",
    ]  # fmt: skip
    assert (folder / "val2014" / "COCO_val2014_000000000001.png").is_file()
    assert "12 scenes" in (folder / "README.txt").read_text()
    rows = json.loads((folder / "v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    for row in rows:
        assert set(row) == {
            "question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers",
        }  # fmt: skip
        assert [a["answer_id"] for a in row["answers"]] == list(range(1, 11))
        assert {a["answer_confidence"] for a in row["answers"]} == {"yes"}
        given_answers = Counter(a["answer"] for a in row["answers"])
        assert given_answers.most_common(1)[0][0] == row["multiple_choice_answer"]
        is_verdict = row["multiple_choice_answer"] in ("yes", "no")
        assert (row["answer_type"] == "yes/no") == is_verdict
        assert (row["answer_type"] == "number") == row["multiple_choice_answer"].isdigit()
        assert not is_verdict or row["question_type"] in ("is there a", "is there an")
    images = json.loads((folder / "annotations" / "captions_val2014.json").read_text())["images"]
    assert {(i["height"], i["width"]) for i in images} == set(scenes.MIXED)


def test_equal_arguments_give_equal_files(folder: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    done = write_scenes(tmp_path / "again", count=12, seed=3, mixed=True, progress=lambda *step: steps.append(step))
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert steps == [(i, 12) for i in range(1, 13)]
    assert done["images"] == 12
    assert done["questions"] == len(load_task("vqav2", folder))
    assert done["word_questions"] == len(load_task("textvqa", folder))
    told = json.loads((folder / "scenes.json").read_text())["images"].values()
    assert done["held_out"] == sum(entry["held_out"] for entry in told)


def test_square_is_the_default(tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", count=3, split="validation")
    for sample in load_task("coco", tmp_path / "s"):
        assert open_image(sample.image).size == (112, 112)
    assert json.loads((tmp_path / "s" / "scenes.json").read_text())["split"] == "validation"


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="full is not empty: name a new folder"):
        write_scenes(tmp_path / "full", count=1)
    with pytest.raises(UserError, match="at least 1, got 0"):
        write_scenes(tmp_path / "x", count=0)
    with pytest.raises(UserError, match="split 'tset' is unknown"):
        write_scenes(tmp_path / "x", count=1, split="tset")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "mine"]


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, count: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "x", count=3, progress=stop)
    assert list(tmp_path.iterdir()) == []


@FEW
@given(INDEX)
def test_shifted_scenes_have_a_held_out_pair_and_a_new_texture(index: int) -> None:
    scene = scenes.sample_scene("test", 5, index, shifted=True)
    assert scene == scenes.sample_scene("test", 5, index, shifted=True)
    assert scene.held_out
    assert scene.pattern in scenes.PATTERNS
    assert scenes.split_of(scene) == "test"
    plain = replace(scene, pattern="waves")
    difference = np.asarray(scenes.render(scene)).astype(int) - np.asarray(scenes.render(plain)).astype(int)
    assert np.abs(difference).mean() > 3
    assert scenes.sample_scene("test", 5, index).pattern == "waves"
    single = scenes.sample_single("test", 5, index, "red", "circle", shifted=True)
    assert single.pattern in scenes.PATTERNS


def test_shifted_files_say_so_and_no_training_scene_is_shifted(tmp_path: Path) -> None:
    done = write_scenes(tmp_path / "s", count=3, shifted=True)
    assert done["held_out"] == 3
    assert json.loads((tmp_path / "s" / "scenes.json").read_text())["shifted"] is True
    assert "textures that no training scene has" in (tmp_path / "s" / "README.txt").read_text()
    with pytest.raises(UserError, match="shifted scenes are unlike the training split"):
        write_scenes(tmp_path / "x", count=1, split="train", shifted=True)
    with pytest.raises(ValueError, match="no training scene is shifted"):
        scenes.sample_scene("train", 0, 0, shifted=True)
