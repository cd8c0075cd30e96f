"""Pixels on the canvas against transformers' own PIL image processors, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaImageProcessorPil

from lvlm_radapt.loading.load import load_encoder, load_model
from lvlm_radapt.models import PixelBatch
from lvlm_radapt.models.geometry import pad_to_square
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints
from tests.helpers.families import FAMILIES

DIFFERENT = [
    "llava",
    "llava-next",
    "onevision",
    "qwen2.5",
    "qwen3",
    "glm",
    "gemma3",
    "idefics3",
    "internvl",
    "mistral3",
    "gemma4",
]
DIFFERENT = [name for name in DIFFERENT if name in FAMILIES]
"""An image processor each."""
LVLMS = [*DIFFERENT, *(name for name in ("qwen2", "paligemma", "smolvlm", "pixtral") if name in FAMILIES)]
SIZES = [(56, 56), (57, 56), (80, 61), (40, 200), (200, 40), (13, 17), (333, 500), (1, 9), (56, 300)]
MODES = ["RGB", "L", "RGBA", "P", "LA", "1", "CMYK"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: load_model(FAMILIES[name].save(root / name)) for name in LVLMS} | {
        "clip": load_encoder(tiny_checkpoints.save_clip(root / "clip")),
        "siglip": load_encoder(tiny_checkpoints.save_siglip(root / "siglip")),
    }


def noise(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Random bytes as an image; with transparency where the mode has it."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(values, "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def stock(model: Any, images: list[Image.Image]) -> torch.Tensor:
    # image by image: the processors of tiles take several for those of one question
    each = [model.image_processor(images=[i], return_tensors="pt", **model.processing)["pixel_values"] for i in images]
    return torch.cat(each)


@pytest.mark.parametrize("name", [*LVLMS, "clip", "siglip"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bit_equal_to_the_stock_processor(models: dict[str, Any], name: str, height: int, width: int) -> None:
    model = models[name]
    images = [noise(height, width, seed) for seed in range(2)]
    batch = model.pixels(images)
    assert batch.x.dtype == torch.float32
    assert batch.x.shape == (2, 3, *model.canvas(images[0]))
    assert torch.equal(model.pixel_values(batch), stock(model, images))
    assert [m["size"] for m in batch.meta] == [(height, width)] * 2


@pytest.mark.parametrize("name", [*DIFFERENT, "siglip"])
@pytest.mark.parametrize("mode", MODES)
def test_bit_equal_in_every_colour_mode(models: dict[str, Any], name: str, mode: str) -> None:
    image = noise(70, 90, 3, mode)
    assert torch.equal(models[name].pixel_values(models[name].pixels([image])), stock(models[name], [image]))


@given(st.integers(1, 260), st.integers(1, 260), st.integers(0, 9), st.sampled_from(DIFFERENT))
@settings(max_examples=50, deadline=None)
def test_bit_equal_at_any_size(models: dict[str, Any], height: int, width: int, seed: int, name: str) -> None:
    model = models[name]
    image = noise(height, width, seed)
    if model.grows and max(height, width) > 200 * min(height, width):
        with pytest.raises(UserError, match="aspect ratio"):
            model.canvas(image)
        return
    try:
        wanted = stock(model, [image])
    except ValueError:
        with pytest.raises(UserError, match="too thin"):
            model.canvas(image)
        return
    batch = model.pixels([image])
    assert batch.x.shape[-2:] == model.canvas(image)
    assert torch.equal(model.pixel_values(batch), wanted)


def test_an_image_that_nothing_is_left_of_is_told_in_one_line(models: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="113x1 px are too thin"):
        models["mistral3"].pixels([noise(1, 113, 0)])


def test_pixels_are_exact_multiples_of_one_255th(models: dict[str, Any]) -> None:
    ramp = np.arange(256, dtype=np.uint8).repeat(28).reshape(56, 128)  # every level, 3,136 = 56 * 56 px kept
    image = Image.fromarray(np.stack([ramp[:, :56], ramp[:, 36:92], ramp[:, 72:]], -1))
    expected = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    for name in ("llava", "qwen2.5"):
        x = models[name].pixels([image]).x[0]
        assert torch.equal(x, torch.from_numpy(expected))
        assert len(x.unique()) == 256


@pytest.mark.parametrize("name", ["llava", "clip"])
def test_other_normalisations_are_honoured(models: dict[str, Any], name: str, tmp_path: Path) -> None:
    save = tiny_checkpoints.save_llava if name == "llava" else tiny_checkpoints.save_clip
    folder = save(tmp_path)
    odd = tiny_checkpoints.clip_processor(56, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.5, 0.7])
    odd.save_pretrained(folder)
    model = (load_model if name == "llava" else load_encoder)(folder)
    image = noise(60, 60)
    values = model.pixel_values(model.pixels([image]))
    assert torch.equal(values, stock(model, [image]))
    assert not torch.equal(values, stock(models[name], [image]))


def test_a_processor_that_resizes_to_a_fixed_shape_or_pads(tmp_path: Path) -> None:
    loaded = load_model(tiny_checkpoints.save_llava(tmp_path))
    variants = [
        tiny_checkpoints.clip_processor(56, do_center_crop=False),
        LlavaImageProcessorPil(size={"height": 56, "width": 56}, do_center_crop=False),
        LlavaImageProcessorPil(size={"shortest_edge": 56}, do_center_crop=False, do_pad=True),
    ]
    for processor in variants:
        # not every canvas is one that the tower takes, which `load_model` would refuse
        model = type(loaded)(loaded.hf, loaded.tokenizer, processor, name="variant")
        for height, width in SIZES:
            image = noise(height, width)
            batch = model.pixels([image])
            assert batch.x.shape[-2:] == model.canvas(image)
            assert torch.equal(model.pixel_values(batch), stock(model, [image]))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pad_geometry_is_the_original_llava(models: dict[str, Any], height: int, width: int) -> None:
    llava = models["llava"]
    padded = type(llava)(llava.hf, llava.tokenizer, llava.image_processor, name="pad", geometry="pad")
    image = noise(height, width)
    # by hand: a canvas of the mean colour, the image in its middle, one bicubic resize
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = [122, 116, 104]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = np.asarray(image)
    resized = Image.fromarray(square).resize((56, 56), Image.Resampling.BICUBIC)
    batch = padded.pixels([image])
    assert padded.canvas(image) == (56, 56)
    assert torch.equal(batch.x[0], torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255)
    # transformers' own padding, where its processor is told to
    own = LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_pad=True)
    assert torch.equal(padded.pixel_values(batch), own(images=[image], return_tensors="pt")["pixel_values"])


def test_pad_geometry_keeps_a_square_image(models: dict[str, Any]) -> None:
    image = noise(31, 31)
    assert np.array_equal(np.asarray(pad_to_square(image, (0.5, 0.5, 0.5))), np.asarray(image))


def test_qwen_has_no_pad_geometry(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pad is for LLaVA"):
        load_model(tiny_checkpoints.save_qwen(tmp_path), geometry="pad")


def test_qwen_meta_names_the_grid(models: dict[str, Any]) -> None:
    model = models["qwen2.5"]
    batch = model.pixels([noise(150, 90)])
    assert batch.meta == ({"size": (150, 90), "canvas": (140, 84), "grid": (1, 10, 6)},)
    processed = model.image_processor(images=[noise(150, 90)], return_tensors="pt")
    assert torch.equal(model.image_grid_thw(batch), processed["image_grid_thw"])
    wide = models["qwen3"].pixels([noise(90, 150)])
    assert wide.meta == ({"size": (90, 150), "canvas": (96, 160), "grid": (1, 6, 10)},)


def test_a_batch_shares_one_canvas(models: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="56x84, 84x56"):
        models["qwen2"].pixels([noise(84, 56), noise(56, 84)])
    with pytest.raises(UserError, match="no images"):
        models["llava"].pixels([])


def test_pixel_batch_indexing_and_replacing() -> None:
    x = torch.arange(3 * 3 * 2 * 2, dtype=torch.float32).reshape(3, 3, 2, 2)
    batch = PixelBatch(x, tuple({"id": i} for i in range(3)))
    assert len(batch) == 3
    picked = batch[[2, 0]]
    assert torch.equal(picked.x, x[[2, 0]])
    assert picked.meta == ({"id": 2}, {"id": 0})
    assert torch.equal(batch[1:].x, x[1:])
    assert batch[1:].meta == ({"id": 1}, {"id": 2})
    assert torch.equal(batch[-1].x, x[2:])
    assert len(batch[[]]) == 0
    assert batch.replace(x + 1).meta == batch.meta
    with pytest.raises(ValueError, match="keep its shape"):
        batch.replace(x[:2])
    with pytest.raises(ValueError, match="must be"):
        PixelBatch(x[0], ({},))


PHOTOS = sorted(Path(os.environ.get("LVLM_RADAPT_PHOTOS", "/nonexistent")).glob("images/*.jpg"))


@pytest.mark.skipif(not PHOTOS, reason="LVLM_RADAPT_PHOTOS names no folder with images/*.jpg")
@pytest.mark.parametrize("name", ["llava", "llava-next", "onevision", "qwen2.5", "qwen3", "glm", "clip", "siglip"])
def test_real_photos_are_bit_equal(models: dict[str, Any], name: str) -> None:
    model = models[name]
    for path in PHOTOS:
        with Image.open(path) as image:
            assert torch.equal(model.pixel_values(model.pixels([image])), stock(model, [image])), path.name
