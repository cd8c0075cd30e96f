"""photo-clip's training, on drawn stand-ins for photographs, and on photographs where there are any."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel as HFCLIP

from lvlm_radapt import load_encoder
from lvlm_radapt.models.zero_shot import ZeroShot
from tools.embedded import train_photos
from tools.embedded.photo_texts import GENERAL, general_of, photo_tokenizer, templates
from tools.embedded.photos import CHOOSING, NAMED, SIDE, lay_out, read, vary

COLOURS = {"n1": (200, 40, 30), "n2": (30, 60, 210), "n3": (40, 190, 60)}
NAMES = {"n1": "goldfish", "n2": "bison", "n3": "tabby"}
EACH = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archives' layout; photos are noise around one colour a class."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for part, folders in {
        "train": COLOURS,
        "val": COLOURS,
        "cifar10": dict.fromkeys([*NAMED, "ship"], (9, 9, 9)),
    }.items():
        for key, colour in folders.items():
            (root / part / key).mkdir(parents=True)
            for number in range(EACH if part == "train" else 2):
                pixels = np.clip(np.array(colour) + rng.normal(0, 30, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / key / f"{number}.png")
    (root / "classnames.json").write_text(json.dumps(NAMES))
    lay_out(root)
    return root


def arguments(work: Path, *, small: int, steps: int) -> argparse.Namespace:
    work.mkdir(exist_ok=True)
    return argparse.Namespace(name="photo-clip", work=work, seed=0, batch=16, small_steps=small, steps=steps)


def test_choosing_photos_are_the_last_ones_and_no_training_ones(photos: Path) -> None:
    lay_out(photos)  # again: nothing moves
    for key in COLOURS:
        trained, held = ({path.stem for path in (photos / part / key).iterdir()} for part in ("train", "choosing"))
        assert held == {str(number) for number in range(EACH - CHOOSING, EACH)}
        assert trained == {str(number) for number in range(EACH - CHOOSING)}
    assert read(photos / "choosing").names == [*NAMES.values()]
    assert [name for _, name in sorted(named_folders(photos))] == [*NAMED]


def named_folders(photos: Path) -> list[tuple[str, str]]:
    return [(path.name, path.resolve().name) for path in (photos / "cifar10-named").iterdir()]


def test_photos_are_varied_by_their_seed_alone_and_stay_pictures(photos: Path) -> None:
    images = read(photos / "train").images[:8]
    first, again, other = (vary(images, 40, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (8, 3, 40, 40)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first[0, 0].mean() > first[0, 1].mean() + 0.5  # a red one stays red


def test_general_words_stand_above_one_class_name_each() -> None:
    names = [name for under in GENERAL.values() for name in under]
    assert len(names) == len(set(names))
    assert general_of(["tabby", "nail", "bison"]) == (["cat", "bovid"], [0, -1, 1])


def test_the_tokenizer_knows_every_training_text_and_no_other_word() -> None:
    tokenizer = photo_tokenizer([*NAMES.values(), "potter's wheel"])
    texts = [t.replace("{}", name) for t in templates() for name in ["Potter's wheel", *GENERAL]]
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts).input_ids)
    assert tokenizer("a horse").input_ids.count(tokenizer.unk_token_id) == 1
    assert tokenizer("a tabby").input_ids[-1] == len(tokenizer) - 1


@pytest.mark.slow
def test_training_learns_goes_on_where_it_was_stopped_and_opens_as_a_clip(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = read(photos / "train")
    whole = train_photos.train(arguments(tmp_path / "whole", small=24, steps=8), given)

    def stopped(images: np.ndarray, side: int, generator: torch.Generator) -> torch.Tensor:
        if side == SIDE:
            raise KeyboardInterrupt
        return vary(images, side, generator)

    halted = arguments(tmp_path / "halted", small=24, steps=8)
    with monkeypatch.context() as patch:
        patch.setattr(train_photos, "vary", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_photos.train(halted, given)
    assert (halted.work / "photo-clip-clip.pt").is_file()  # of step 20: four steps are done anew
    resumed = train_photos.train(halted, given)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))

    held = read(photos / "choosing")
    first, five = train_photos.accuracy(whole.eval(), held)
    assert first > 80
    assert five == 100
    train_photos.save(whole, held.names, tmp_path / "photo-clip")
    encoder = load_encoder(tmp_path / "photo-clip")
    assert isinstance(encoder.hf, HFCLIP)
    classes = ZeroShot(encoder, held.names, (train_photos.TEMPLATE,))
    batch = encoder.pixels([Image.fromarray(image) for image in held.images])
    guessed = classes.logits(batch).argmax(-1).numpy()
    assert 100 * np.mean(guessed == held.classes) == pytest.approx(first, abs=100 / len(guessed))


@pytest.mark.skipif("LVLM_RADAPT_TINY_IMAGENET" not in os.environ, reason="LVLM_RADAPT_TINY_IMAGENET names no folder")
def test_real_photos_are_read_as_the_training_wants_them() -> None:
    held = read(Path(os.environ["LVLM_RADAPT_TINY_IMAGENET"]) / "val")
    assert held.images.shape[1:] == (SIDE, SIDE, 3)
    words, _ = general_of(held.names)
    assert words == [*GENERAL]
    assert {name for under in GENERAL.values() for name in under} <= {*held.names}
    assert {*NAMED} <= {*GENERAL}
