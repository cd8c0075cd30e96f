"""A model spread over memory and disk by accelerate: the same losses, gradients and answers as in one piece."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lvlm_radapt import RAdaptConfig, export_model, load_model, robustify
from lvlm_radapt.models import LVLM
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.utils.errors import UserError
from tests.helpers.families import FAMILIES, FEW

PROMPTS = ["What is this?", "describe the small red circle on the left with a word"]
TARGETS = ["a pig", "yes"]
CONFIG = RAdaptConfig(cutoff=40, alpha=0.4)


def loss_and_gradient(model: LVLM) -> tuple[Tensor, Tensor]:
    images = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (112, 84, 3), dtype=np.uint8)) for i in range(2)
    ]
    batch = model.pixels(images)
    x = batch.x.clone().requires_grad_()
    losses = model.loss(batch.replace(x), PROMPTS, TARGETS)
    return losses.detach(), torch.autograd.grad(losses.sum(), x)[0]


def tower_and_rest(name: str, *, tower: str, rest: str) -> dict[str, int | str | torch.device]:
    """The vision side in one place, the language model in the other."""
    vision = [part for part in FAMILIES[name].record.unquantised if part != "lm_head"]
    language = "model.text_model" if name in ("idefics3", "smolvlm") else "model.language_model"
    places: dict[str, int | str | torch.device] = dict.fromkeys(vision, tower)
    places |= {language: rest, "lm_head": rest}
    # a parameter without a module of its own: accelerate has nothing to bring it back by
    return places | ({"model.image_newline": "cpu"} if name in ("llava-next", "onevision") else {})


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")  # that parameter
@pytest.mark.parametrize(("tower", "rest"), [("cpu", "disk"), ("disk", "cpu")])
@pytest.mark.parametrize("name", FEW)
def test_offloaded_equals_whole(name: str, tower: str, rest: str, tmp_path: Path) -> None:
    folder = FAMILIES[name].save(tmp_path / "model")
    whole = robustify(load_model(folder), CONFIG)
    places = {"device_map": tower_and_rest(name, tower=tower, rest=rest), "offload_folder": str(tmp_path / "offload")}
    if name.startswith("glm") and tower == "disk":  # transformers reads its learned positions past their own module
        with pytest.raises(UserError, match=r"question cannot be processed .* not on the expected device meta"):
            load_model(folder, **places)
        return
    spread = load_model(folder, **places)
    assert any(parameter.is_meta for parameter in spread.hf.parameters())
    spread = robustify(spread, CONFIG)
    for found, expected in zip(loss_and_gradient(spread), loss_and_gradient(whole), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    batch = spread.pixels([Image.new("RGB", (112, 84), "red")])
    assert spread.generate(batch, PROMPTS[:1], 6) == whole.generate(batch, PROMPTS[:1], 6)


def test_an_adapter_goes_with_a_spread_model_and_back(tmp_path: Path) -> None:
    folder = FAMILIES["llava"].save(tmp_path / "model")
    places = {
        "device_map": tower_and_rest("llava", tower="disk", rest="cpu"),
        "offload_folder": str(tmp_path / "offload"),
    }
    whole = robustify(load_model(folder), CONFIG)
    save_adapter(whole, tmp_path / "whole")
    spread = load_model(tmp_path / "whole", **places)
    save_adapter(robustify(load_model(folder, **places), CONFIG), tmp_path / "spread")
    for model in (spread, load_model(tmp_path / "spread")):
        assert model.radapt == CONFIG
        torch.testing.assert_close(loss_and_gradient(model), loss_and_gradient(whole), rtol=1e-5, atol=1e-6)


def test_auto_on_one_device_is_the_whole_model(tmp_path: Path) -> None:
    folder = FAMILIES["qwen2.5"].save(tmp_path / "model")
    model = load_model(folder, device_map="auto")
    if not torch.cuda.is_available():
        assert model.device == torch.device("cpu")
    found, expected = loss_and_gradient(model), loss_and_gradient(load_model(folder))
    torch.testing.assert_close([t.cpu() for t in found], list(expected), rtol=1e-3, atol=1e-4)


def test_bad_requests_are_one_line(tmp_path: Path) -> None:
    folder = FAMILIES["llava"].save(tmp_path / "model")
    with pytest.raises(UserError, match="device map 'everywhere' is unknown, choose one of auto"):
        load_model(folder, device_map="everywhere")
    with pytest.raises(UserError, match="device cuda and a device map exclude each other"):
        load_model(folder, device_map="auto", device="cuda")


def test_an_offloaded_model_is_not_exported(tmp_path: Path) -> None:
    folder = FAMILIES["llava"].save(tmp_path / "model")
    places = tower_and_rest("llava", tower="cpu", rest="disk")
    model = robustify(load_model(folder, device_map=places, offload_folder=str(tmp_path / "offload")), CONFIG)
    with pytest.raises(UserError, match="offloaded in part: open it without a device map"):
        export_model(model, tmp_path / "export")
    assert not (tmp_path / "export").exists()
