"""Zero-shot classification: the classifier, its data folder, and attacks on it that are scored from 8-bit images."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from pyautoattack.autopgd_base import APGDAttack

from attacks.classification import fooled
from attacks.eight_bit import from_8bit
from eval_tasks.config.presets import load_attack
from eval_tasks.crafting.classifier import Classifier
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.data import Sample, load_task, open_image
from eval_tasks.data.imagefolder import class_names
from eval_tasks.tasks.make_task import make_task
from eval_tasks.tasks.zero_shot import ZeroShotRun, ZeroShotTask
from lvlm_radapt import RAdaptConfig, load_encoder, load_model, robustify
from lvlm_radapt.embedded import scenes
from lvlm_radapt.embedded.dataset import CLASSES, write_scenes
from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.zero_shot import ZeroShot
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints
from tests.helpers.evaluations import evaluation, score
from tests.helpers.inputs import noise

NAMES = ["red circle", "blue square", "a green pig", "word"]
TEMPLATES = ["a {}", "the small {} on the left"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    assert write_scenes(out, count=1, per_class=2)["classified"] == 72
    return out / CLASSES


@pytest.fixture(scope="module")
def shown(folder: Path) -> tuple[ZeroShot, PixelBatch, list[str]]:
    """tiny-clip among all classes, the images of every other class and their names."""
    samples = load_task("imagefolder", folder)
    few = samples[::4]
    encoder = load_encoder("tiny-clip")
    return (
        ZeroShot(encoder, class_names(samples)),
        encoder.pixels([open_image(s.image) for s in few]),
        [s.references[0] for s in few],
    )


# --- the classifier


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_logits_are_the_library_s(kind: str, tmp_path: Path) -> None:
    save, stock_class = {
        "clip": (tiny_checkpoints.save_clip, transformers.CLIPModel),
        "siglip": (tiny_checkpoints.save_siglip, transformers.SiglipModel),
    }[kind]
    path = save(tmp_path)
    encoder, stock = load_encoder(path), stock_class.from_pretrained(path, attn_implementation="eager").eval()
    images = [noise(56, 56, i) for i in range(3)]
    values = encoder.image_processor(images=images, return_tensors="pt")["pixel_values"]
    texts = [template.format(name) for name in NAMES for template in TEMPLATES]
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    tokens = encoder.tokenizer(texts, truncation=True, return_tensors="pt", **padding)
    out = stock(**{k: v for k, v in tokens.items() if kind == "clip" or k == "input_ids"}, pixel_values=values)
    classes = out.text_embeds.view(len(NAMES), len(TEMPLATES), -1).mean(1)
    expected = stock.logit_scale.exp() * out.image_embeds @ torch.nn.functional.normalize(classes, dim=-1).T
    zero_shot, batch = ZeroShot(encoder, NAMES, TEMPLATES), encoder.pixels(images)
    torch.testing.assert_close(zero_shot.logits(batch), expected)
    one = ZeroShot(encoder, NAMES, TEMPLATES[:1]).logits(batch)
    logits = out.logits_per_image[:, :: len(TEMPLATES)]
    torch.testing.assert_close(one, logits - (0 if kind == "clip" else stock.logit_bias))
    assert zero_shot.predict(batch) == [NAMES[i] for i in expected.argmax(1)]
    x = batch.x.clone().requires_grad_()
    zero_shot.logits(batch.replace(x)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_a_tower_without_texts_borrows_them(tmp_path: Path) -> None:
    encoder = load_encoder("tiny-clip")
    other = load_encoder("tiny-clip")
    other.tokenizer = None
    batch = encoder.pixels([noise(112, 112)])
    with pytest.raises(UserError, match="bare vision tower"):
        ZeroShot(other, NAMES)
    assert torch.equal(ZeroShot(other, NAMES, texts=encoder).logits(batch), ZeroShot(encoder, NAMES).logits(batch))
    foreign = load_encoder(tiny_checkpoints.save_clip(tmp_path))
    with pytest.raises(UserError, match="do not belong together"):
        ZeroShot(encoder, NAMES, texts=foreign).logits(batch)


@pytest.mark.parametrize(
    ("names", "templates", "words"),
    [
        (["one"], ["{}"], "at least two"),
        ("ab", ["{}"], "at least two"),
        (["a", " "], ["{}"], "class name 2 of 2 is empty"),
        (["a", "b", "a"], ["{}"], "'a' occurs more than once"),
        (["a", "b"], ["{}", "a photo"], "'a photo' has no place"),
        (["a", "b"], [], "at least one template"),
        (["a", "b"], "a {}", "at least one template"),
    ],
)
def test_bad_names_and_templates(names: list[str], templates: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        ZeroShot(load_encoder("tiny-clip"), names, templates)
    assert "\n" not in str(caught.value)


# --- the data


def test_tiny_clip_knows_the_classes_of_the_scenes(folder: Path) -> None:
    samples = load_task("imagefolder", folder)
    names = class_names(samples)
    assert sorted(names) == sorted(f"{c} {s}" for c in scenes.COLOURS for s in scenes.SHAPES)
    assert [s.references for s in samples].count((names[0],)) == 2
    encoder = load_encoder("tiny-clip")
    batch = encoder.pixels([open_image(s.image) for s in samples])
    run = ZeroShotTask(name="imagefolder").bind(encoder, samples, samples, batch_size=64)
    answers = run.answers(batch, samples)
    assert answers == ZeroShot(encoder, names).predict(batch)
    scores = run.grade(answers, samples)
    assert sum(scores) / len(scores) > 80
    assert scores == [100.0 * (said == s.references[0]) for said, s in zip(answers, samples, strict=True)]


def test_scenes_of_one_large_thing_of_the_split() -> None:
    one = scenes.sample_single("test", 3, 1, "red", "star")
    assert one == scenes.sample_single("test", 3, 1, "red", "star")
    assert one != scenes.sample_single("test", 3, 2, "red", "star")
    for split in ("train", "validation", "test"):
        scene = scenes.sample_single(split, 0, 0, "blue", "cross")
        ((shape, colour, size),) = [(t.shape, t.colour, t.size) for t in scene.things]
        assert (shape, colour, size, scenes.split_of(scene)) == ("cross", "blue", "large", split)


def classes_on_disk(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(root / file)
    return root


def test_an_image_folder(tmp_path: Path) -> None:
    root = classes_on_disk(tmp_path, "n02/b.JPEG", "n02/a.png", "n10/a.png", ".hidden/a.png", "n10/.x.png")
    (root / "n10" / "notes.txt").write_text("no image")
    found = load_task("imagefolder", root)
    assert [(s.id, s.references, s.image.name) for s in found] == [
        ("n02/a", ("n02",), "a.png"),
        ("n02/b", ("n02",), "b.JPEG"),
        ("n10/a", ("n10",), "a.png"),
    ]
    assert class_names(found) == ["n02", "n10"]
    (root / "classnames.txt").write_text("n02 great white shark\n\nn10 hen\nn99 absent\n")
    assert class_names(load_task("imagefolder", root)) == ["great white shark", "hen"]
    (root / "classnames.json").write_text(json.dumps({"n02": "shark, great", "n10": "hen "}))  # comes first
    assert class_names(load_task("imagefolder", root)) == ["shark, great", "hen"]


@pytest.mark.parametrize(
    ("files", "names", "words"),
    [
        (["a/1.png"], {}, "has 1 class folders, two are the least"),
        (["a/1.png", "b/1.txt.png", "b/1.txt.jpg"], {}, "two images are called b/1.txt but for"),
        (["a_b/1.png", "a b/1.png"], {}, "both called 'a b'"),
        (["a/1.png", "b/1.png"], {"classnames.txt": "a\nb x"}, "'a' has no name behind it"),
        (["a/1.png", "b/1.png"], {"classnames.txt": "a x"}, "class folder 'b' has no name there"),
        (["a/1.png", "b/1.png"], {"classnames.txt": "a x\nb x"}, "both called 'x'"),
        (["a/1.png", "b/1.png"], {"classnames.txt": b"\xff"}, "not UTF-8"),
        (["a/1.png", "b/1.png"], {"classnames.json": "[]"}, "must be a JSON object"),
        (["a/1.png", "b/1.png"], {"classnames.json": "{"}, "no JSON file"),
        (["a/1.png", "b/1.png"], {"classnames.json": '{"a": "", "b": "c"}'}, "'a' has no name"),
    ],
)
def test_a_wrong_image_folder(tmp_path: Path, files: list[str], names: dict[str, str | bytes], words: str) -> None:
    root = classes_on_disk(tmp_path, *files)
    for name, content in names.items():
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        load_task("imagefolder", root)
    assert "\n" not in str(caught.value)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    root = classes_on_disk(tmp_path, "a/1.png")
    (root / "b").mkdir()
    with pytest.raises(UserError, match="b holds no images"):
        load_task("imagefolder", root)
    with pytest.raises(UserError, match="wants a folder of images for each class"):
        load_task("imagefolder", tmp_path / "absent")


# --- attacks


def attacked(
    victim: ZeroShot,
    batch: PixelBatch,
    names: list[str],
    name: str,
    *,
    eps: float = 4 / 255,
    threat: str = "adaptive",
    surrogate: CLIPEncoder | None = None,
    **changes: int,
) -> Crafted:
    """What a shipped attack makes of the batch, with 3 steps."""
    config = load_attack(name).model_copy(update=changes)
    made = make_attack(config, eps=eps, threat=threat, steps=3 if "steps" in config.settings else None)
    samples = [Sample(str(row), Path("absent.png"), None, (true,)) for row, true in enumerate(names)]
    task = ZeroShotTask(name="imagefolder")
    run = ZeroShotRun(task=task, model=victim.encoder, surrogate=surrogate, batch_size=len(batch), classifier=victim)
    return run.craft(batch, samples, made, seeds=range(len(batch)))


@pytest.mark.parametrize("name", ["pgd", "cw", "apgd-dlr", "autoattack-tecoa"])
def test_what_is_called_broken_is_misclassified_from_8_bits(
    name: str, shown: tuple[ZeroShot, PixelBatch, list[str]]
) -> None:
    victim, whole, names = shown
    batch, names = whole[:8], names[:8]
    done = attacked(victim, batch, names, name)
    assert done.pixels.dtype == torch.uint8
    delta = done.pixels.int() - (batch.x * 255).round().int()
    assert int(delta.abs().max()) <= 4
    predicted = victim.predict(batch.replace(from_8bit(done.pixels)))
    assert [p != n for p, n in zip(predicted, names, strict=True)] == done.broken
    assert [by is not None for by in done.stage] == done.broken
    assert any(by not in (None, "clean") for by in done.stage)
    assert done.failed == [None] * 8
    assert [value is not None and value > 0 for value in done.loss] == [
        bool(b) or r for b, r in zip(done.broken, done.rounded_back, strict=True)
    ]
    assert not any(done.zero_grad)


def test_square_through_the_library(shown: tuple[ZeroShot, PixelBatch, list[str]]) -> None:
    victim, whole, names = shown
    done = attacked(victim, whole[:4], names[:4], "square", eps=32 / 255, queries=10)
    assert "square" in done.stage


def test_transfer_is_crafted_on_the_sleeping_defence_and_on_a_surrogate(
    shown: tuple[ZeroShot, PixelBatch, list[str]],
) -> None:
    plain, whole, names = shown
    batch, names = whole[:4], names[:4]
    encoder = robustify(load_encoder("tiny-clip"), RAdaptConfig(cutoff=30))
    defended = ZeroShot(encoder, plain.class_names)
    twin = attacked(defended, batch, names, "apgd-ce", threat="transfer")
    other = attacked(defended, batch, names, "apgd-ce", threat="transfer", surrogate=plain.encoder)
    aware = attacked(defended, batch, names, "apgd-ce")
    assert torch.equal(twin.pixels, other.pixels)  # the same weights without the defence
    assert not torch.equal(twin.pixels, aware.pixels)
    assert (plain.logits(batch) - defended.logits(batch)).abs().max() > 0.1


def line(name: str, steps: int | None = None) -> Classifier:
    made = make_attack(name, steps=steps)
    assert isinstance(made, Classifier)
    return made


def test_settings_of_a_line_and_what_it_needs() -> None:
    assert line("autoattack-fare").suite_settings.steps == 100
    assert line("fab", 7).suite_settings.steps == 7
    assert line("cw").suite_settings.step_scale == 0.25
    assert line("square").suite_settings.queries == 5000
    for name in ("square", "autoattack-standard"):
        with pytest.raises(UserError, match=f"--steps is not for --attack {name}"):
            line(name, 7)
    line("apgd-dlr").check_classes(3)
    with pytest.raises(UserError, match="apgd-dlr needs at least 3 classes, there are 2"):
        line("autoattack-tecoa").check_classes(2)


def test_our_apgd_ce_is_no_weaker_than_the_library_s(shown: tuple[ZeroShot, PixelBatch, list[str]]) -> None:
    from attacks.suite import SuiteSettings, run_suite

    victim, whole, names = shown
    batch, y = whole[:8], torch.tensor([victim.class_names.index(name) for name in names[:8]])

    def logits(x: torch.Tensor, index: object = None) -> torch.Tensor:
        return victim.logits(PixelBatch(x, batch.meta[:1] * len(x)))

    attack = APGDAttack(logits, n_iter=10, eps=2 / 255, seed=0, loss="ce", device="cpu")
    theirs = ~fooled(logits(attack.perturb(batch.x, y)), y)
    ours = run_suite(["apgd-ce"], logits, batch.x, y, eps=2 / 255, settings=SuiteSettings(steps=10), seed=0)
    # 8 images, other noise: the long form is benchmarks/apgd_parity.py
    assert ours.broken_by.count(None) <= int(theirs.sum()) + 1
    assert 0 < int(theirs.sum()) < 8


def test_models_that_answer_in_texts_are_no_classifiers(folder: Path, tmp_path: Path) -> None:
    model = load_model("tiny-llava")
    samples = [Sample(str(n), Path("absent.png"), "what?", ("a dog",)) for n in range(2)]
    with pytest.raises(UserError, match="--attack apgd-ce is for image encoders and zero-shot tasks"):
        make_task("coco", "scenes").bind(model, samples, samples, batch_size=2).check(line("apgd-ce"), samples)
    settings = evaluation("imagefolder", folder, samples=2, seed=0)
    with pytest.raises(UserError, match="--task imagefolder is for image encoders: tiny-llava answers in texts"):
        score(model, settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
