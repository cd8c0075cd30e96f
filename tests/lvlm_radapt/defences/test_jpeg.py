"""JPEG as a defence: Pillow's own compression, a gradient that goes straight through, and no leak between images."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_radapt import load_model
from lvlm_radapt.defences.jpeg import Jpeg
from lvlm_radapt.embedded.scenes import render, sample_scene
from lvlm_radapt.utils.errors import UserError

QUESTION = "what color is the background?"


@pytest.fixture
def scenes() -> list[Image.Image]:
    return [render(sample_scene("test", 0, number)) for number in (1, 2, 3)]


@pytest.mark.parametrize("quality", [10, 75])
def test_the_model_sees_what_a_jpeg_file_would_show(scenes: list[Image.Image], quality: int) -> None:
    model = load_model("tiny-llava")
    batch = model.pixels(scenes)
    files = []
    for image in (batch.x * 255).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        files.append(Image.open(file))
    expected = model.normalise(torch.from_numpy(np.stack(files)).permute(0, 3, 1, 2).float() / 255)
    assert not torch.equal(model.pixel_values(batch), expected)
    Jpeg(quality).attach(model)
    assert torch.equal(model.pixel_values(batch), expected)


def test_the_gradient_goes_straight_through(scenes: list[Image.Image]) -> None:
    model = load_model("tiny-llava")
    batch = model.pixels(scenes)

    def slope_at(x: torch.Tensor) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        model.loss(batch.replace(leaf), [QUESTION] * 3, ["red"] * 3).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    defence = Jpeg(50)
    compressed = defence.pixels(batch.x, [0, 0, 0])
    stock = slope_at(compressed)  # of the undefended model at the compressed image
    defence.attach(model)
    assert bool(stock.abs().sum() > 0)
    assert torch.equal(slope_at(batch.x), stock)


def test_low_quality_changes_more(scenes: list[Image.Image]) -> None:
    x = load_model("tiny-llava").pixels(scenes).x
    far = [float((Jpeg(quality).pixels(x, [0] * 3) - x).abs().mean()) for quality in (5, 30, 95)]
    assert far[0] > far[1] > far[2] > 0


@pytest.mark.parametrize("quality", [0, 96, 75.0, True, "high"])
def test_a_quality_that_is_none(quality: object) -> None:
    with pytest.raises(UserError, match=r"quality is .*: give a whole number from 1 to 95"):
        Jpeg(quality)  # type: ignore[arg-type]
