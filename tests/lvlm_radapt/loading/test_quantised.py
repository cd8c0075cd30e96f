"""Language models in 4 and 8 bits: what is quantised, and that the attack's gradients through it are right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attacks import apgd
from eval_tasks.metrics import bootstrap_ci
from lvlm_radapt import RAdaptConfig, load_model, robustify
from lvlm_radapt.embedded import scenes
from lvlm_radapt.loading import quantised as quantised_module
from lvlm_radapt.loading.quantised import quantisation_of
from lvlm_radapt.models import LVLM
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints
from tests.helpers.families import FAMILIES, FEW
from tests.helpers.quantised import dequantised

PROMPTS = ["What is this?", "describe the small red circle on the left with a word"]
TARGETS = ["a pig", "two large blue squares and one small green circle on the right"]


@pytest.fixture(scope="module", autouse=True)
def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: family.save(root / name) for name, family in FAMILIES.items()}


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (112, 84, 3), dtype=np.uint8))


def loss_and_gradient(model: LVLM, images: list[Image.Image]) -> tuple[Tensor, Tensor]:
    batch = model.pixels(images)
    x = batch.x.clone().requires_grad_()
    losses = model.loss(batch.replace(x), PROMPTS[: len(images)], TARGETS[: len(images)])
    return losses.detach(), torch.autograd.grad(losses.sum(), x)[0].flatten(1)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("name", FEW)
def test_gradients_are_those_of_the_dequantised_model(folders: dict[str, Path], name: str, kind: Any) -> None:
    model = robustify(load_model(folders[name], quantize=kind), RAdaptConfig(cutoff=60, alpha=0.3))
    assert quantisation_of(model.hf) == kind
    plain = robustify(dequantised(model, load_model(folders[name])), RAdaptConfig(cutoff=60, alpha=0.3))
    images = [noise(0), noise(1)]
    model.generate(model.pixels(images), PROMPTS, 3)  # the forward without gradients that can spoil later ones
    loss, gradient = loss_and_gradient(model, images)
    expected_loss, expected = loss_and_gradient(plain, images)
    cosine = torch.cosine_similarity(gradient, expected)
    if kind == "4bit":
        torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-4)
        assert cosine.min() > 0.9999
    else:  # the activations are rounded too, and with them how much of each expert a token gets
        torch.testing.assert_close(loss, expected_loss, rtol=0.05, atol=0.05)
        assert cosine.min() >= (0.98 if "experts" in str(model.hf) else 0.99)


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.parametrize("name", FEW)
def test_only_the_language_model_is_quantised(
    folders: dict[str, Path], bitsandbytes: Any, name: str, kind: Any
) -> None:
    model = load_model(folders[name], quantize=kind, dtype=torch.bfloat16)
    wanted = {"4bit": bitsandbytes.nn.Linear4bit, "8bit": bitsandbytes.nn.Linear8bitLt}[kind]
    for path, module in model.hf.named_modules():
        if isinstance(module, nn.Linear):
            assert isinstance(module, wanted) == path.startswith(("model.language_model", "model.text_model")), path
    experts = [weight for path, weight in model.hf.named_parameters() if "experts." in path and weight.ndim == 3]
    assert {weight.dtype for weight in experts} <= {torch.bfloat16}  # as docs/families.md warns
    assert model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.tower.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert model.generate(model.pixels([noise(2)]), PROMPTS[:1], 3)


def test_the_repacking_that_spoils_gradients_is_off_in_every_4_bit_layer(
    folders: dict[str, Path], bitsandbytes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)  # as on the CPUs that do it
    model = load_model(folders["llava"], quantize="4bit")
    layers = [module for module in model.hf.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.slow
def test_an_attack_through_8_bits_is_no_weaker() -> None:
    model, plain = load_model("tiny-llava", quantize="8bit"), load_model("tiny-llava")
    dequantised(model, plain)
    drawn = [scenes.sample_scene("validation", 7, i) for i in range(16)]
    batch = model.pixels([scenes.render(scene) for scene in drawn])
    prompts = ["Provide a short caption for this image."] * len(drawn)
    captions = [scenes.caption(scene) for scene in drawn]

    def craft(source: LVLM) -> Tensor:
        def loss(x: Tensor, index: list[int]) -> Tensor:
            return source.loss(batch[index].replace(x), prompts, captions)

        return apgd(loss, batch.x, eps=4 / 255, steps=8).x_adv

    def harm(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model.loss(batch.replace(x), prompts, captions)

    through, around = harm(craft(model)), harm(craft(plain))
    assert through.mean() > 3 * harm(batch.x).mean()
    assert bootstrap_ci((through - around).tolist()).high >= 0


def test_bad_requests_are_one_line(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quantize '3bit' is unknown, choose 4bit or 8bit"):
        load_model(folders["llava"], quantize="3bit")  # type: ignore[arg-type]
    monkeypatch.setattr(quantised_module, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match="needs bitsandbytes: pip install"):
        load_model(folders["llava"], quantize="4bit")


def test_an_adapter_opens_over_a_quantised_language_model(tmp_path: Path) -> None:
    from lvlm_radapt.saving.adapter import save_adapter

    folder = tiny_checkpoints.save_llava(tmp_path / "llava")
    save_adapter(robustify(load_model(folder), RAdaptConfig(cutoff=30)), tmp_path / "adapter")
    model = load_model(tmp_path / "adapter", quantize="4bit")
    assert quantisation_of(model.hf) == "4bit"
    assert model.radapt == RAdaptConfig(cutoff=30)
