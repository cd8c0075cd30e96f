"""TTC and CSR: against plain loops over one image at a time, and what each does to an encoder that is known."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from lvlm_radapt import load_model
from lvlm_radapt.defences.csr import CSR
from lvlm_radapt.defences.encoder_steps import EncoderSteps
from lvlm_radapt.defences.ttc import TTC
from lvlm_radapt.embedded.scenes import render, sample_scene
from lvlm_radapt.loading.load import load_encoder
from lvlm_radapt.models import PixelModel
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints

QUESTION = "what color is the background?"
BOTH = pytest.mark.parametrize("defence", [TTC(tau=10), CSR(threshold=1.1)], ids=["ttc", "csr"])
"""With thresholds at which every image is changed."""


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return [render(sample_scene("test", 0, number)) for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def model() -> PixelModel:
    return load_encoder("tiny-clip")


@pytest.fixture(scope="module")
def x(model: PixelModel, scenes: list[Image.Image]) -> Tensor:
    return model.pixels(scenes).x


def bound(defence: EncoderSteps, model: PixelModel) -> EncoderSteps:
    fresh = type(defence)(**defence.to_dict())
    fresh.put_in(model)
    return fresh


def embedding(model: PixelModel) -> Callable[[Tensor], Tensor]:
    """Of one image [3, H, W], by transformers' own road."""

    def embed(image: Tensor) -> Tensor:
        return model.hf.get_image_features(pixel_values=model.normalise(image[None])).pooler_output[0]

    return embed


def plain_ttc(defence: TTC, image: Tensor, seed: int, embed: Callable[[Tensor], Tensor]) -> Tensor:
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(seed)) * 2 * defence.eps - defence.eps
    here, start = embed(image), (image + noise).clamp(0, 1)
    if float((embed(start) - here).norm() / here.norm()) >= defence.tau:
        return start
    at, total, mean = start, 1.0, start.clone()
    for number in range(1, defence.steps + 1):
        leaf = at.clone().requires_grad_()
        ((embed(leaf) - here.detach()) ** 2).sum().backward()
        assert leaf.grad is not None
        at = torch.max(torch.min(at + defence.step * leaf.grad.sign(), image + defence.eps), image - defence.eps)
        at = at.clamp(0, 1)
        total += math.exp(defence.beta * number)
        mean += math.exp(defence.beta * number) * at
    return mean / total


def plain_csr(defence: CSR, image: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
    high, wide = image.shape[1:]
    far = torch.fft.fftfreq(high)[:, None] ** 2 + torch.fft.fftfreq(wide)[None] ** 2
    response = torch.exp(-far * 224**2 / (2 * defence.radius**2))
    low = torch.fft.ifft2(torch.fft.fft2(image) * response).real.clamp(0, 1)
    own, wanted = embed(image).detach(), embed(low).detach()
    if float(torch.cosine_similarity(own, wanted, dim=0)) >= defence.threshold:
        return image
    at, seen = image, []
    for _ in range(defence.steps + 1):
        leaf = at.clone().requires_grad_()
        found = embed(leaf)
        score = torch.cosine_similarity(found, wanted, dim=0) - torch.cosine_similarity(found, own, dim=0)
        score.backward()
        assert leaf.grad is not None
        seen.append((score.item(), at))
        at = torch.max(torch.min(at + defence.step * leaf.grad.sign(), image + defence.eps), image - defence.eps)
        at = at.clamp(0, 1)
    return max(seen, key=lambda pair: pair[0])[1]


@pytest.mark.parametrize("defence", [TTC(), TTC(tau=10), TTC(tau=0), TTC(tau=10, steps=4, beta=0.5)])
def test_ttc_is_what_the_paper_describes(defence: TTC, model: PixelModel, x: Tensor) -> None:
    seeds, embed = [4, 5, 6], embedding(model)
    made = bound(defence, model).pixels(x, seeds)
    plain = torch.stack([plain_ttc(defence, image, seed, embed) for image, seed in zip(x, seeds, strict=True)])
    # the sign of a gradient of nearly zero may differ
    assert float(((made - plain).abs() > 1e-5).float().mean()) < 0.01
    assert not torch.equal(made, x)


@pytest.mark.parametrize("defence", [CSR(threshold=1.1), CSR(threshold=1.1, radius=10, steps=6, eps=8 / 255)])
def test_csr_is_what_the_paper_describes(defence: CSR, model: PixelModel, x: Tensor) -> None:
    embed = embedding(model)
    made = bound(defence, model).pixels(x, [0, 0, 0])
    plain = torch.stack([plain_csr(defence, image, embed) for image in x])
    assert float(((made - plain).abs() > 1e-5).float().mean()) < 0.01
    assert not torch.equal(made, x)


def test_csr_leaves_an_image_that_its_low_pass_resembles(model: PixelModel, x: Tensor) -> None:
    assert torch.equal(bound(CSR(threshold=-1), model).pixels(x, [0, 0, 0]), x)


def test_csr_moves_towards_the_low_pass_and_away_from_the_own_embedding() -> None:
    """An encoder of two numbers: the mean, which a low-pass keeps, and a wave, which it takes away."""
    wave = torch.tensor([1.0, -1.0]).repeat(16).expand(3, 32, 32) / (3 * 32 * 32)

    def embed(images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)), (images * wave).sum((1, 2, 3))], 1)

    image = (0.5 + 0.3 * torch.tensor([1.0, -1.0]).repeat(16).expand(3, 32, 32))[None]
    made = CSR(threshold=1.1, radius=10).changed(image, [0], embed)
    assert float(embed(made)[0, 1]) < float(embed(image)[0, 1]) - 0.01


@BOTH
def test_it_stays_in_its_box(defence: EncoderSteps, model: PixelModel, x: Tensor) -> None:
    made = bound(defence, model).pixels(x, [1, 2, 3])
    assert float((made - x).abs().max()) <= 4 / 255 + 1e-6
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1


@BOTH
@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
def test_language_models_are_defended_and_attacked_straight_through(
    name: str, defence: EncoderSteps, scenes: list[Image.Image]
) -> None:
    model = load_model(name)
    batch = model.pixels(scenes[:2]).with_seeds([7, 8])
    before = model.pixel_values(batch)
    stock = model.loss(batch, [QUESTION] * 2, ["red"] * 2)
    defence = type(defence)(**defence.to_dict())
    defence.attach(model)
    with pytest.raises(UserError, match="is in another model: make a second one"):
        defence.attach(load_encoder("tiny-clip"))
    leaf = batch.x.clone().requires_grad_()
    loss = model.loss(batch.replace(leaf), [QUESTION] * 2, ["red"] * 2)
    assert not torch.equal(loss, stock)
    loss.sum().backward()
    assert leaf.grad is not None
    assert bool((leaf.grad.abs().flatten(1).sum(1) > 0).all())
    with torch.inference_mode():
        assert len(model.generate(batch, [QUESTION] * 2, max_new_tokens=4)) == 2
    defence.detach(model)
    assert torch.equal(model.pixel_values(batch), before)


def test_a_model_of_views_is_refused(tmp_path: Path) -> None:
    model = load_model(tiny_checkpoints.save_llava_next(tmp_path))
    with pytest.raises(UserError, match="cuts an image into views"):
        TTC().attach(model)
    assert model.defence is None


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (TTC, {"steps": 1.5}, "steps is 1.5: give a number from 0 to 1000"),
        (TTC, {"eps": 4}, "eps is 4: give a number from 0 to 1"),
        (TTC, {"tau": "low"}, "tau is 'low'"),
        (CSR, {"radius": 0}, "radius is 0: give a number"),
        (CSR, {"threshold": float("nan")}, "threshold is nan"),
        (CSR, {"steps": True}, "steps is True"),
    ],
)
def test_settings_out_of_range(kind: type[EncoderSteps], settings: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        kind(**settings)  # type: ignore[arg-type]
