"""What can only be shown on CUDA: half precision, device moves, memory. `make test-gpu` where there is a GPU."""

import pytest
import torch

from attacks import apgd
from lvlm_radapt import RAdaptConfig, load_model, robustify
from lvlm_radapt.embedded import scenes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
QUESTION = "what color is the background?\nAnswer the question using a single word or phrase."


def _batch(model, count=16):
    drawn = [scenes.sample_scene("test", 2, i) for i in range(count)]
    return model.pixels([scenes.render(s) for s in drawn]), [s.background for s in drawn]


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_defended_loss_and_answers_agree_with_the_cpu(name, dtype):
    reference = robustify(load_model(name), RAdaptConfig(alpha=0.5))
    batch, answers = _batch(reference)
    prompts = [QUESTION] * len(batch)
    expected = reference.loss(batch, prompts, answers)
    model = robustify(load_model(name, device="cuda", dtype=dtype), RAdaptConfig(alpha=0.5))
    moved, _ = _batch(model)
    found = model.loss(moved, prompts, answers).cpu()
    assert torch.allclose(found, expected, atol=1e-3 if dtype == torch.float32 else 0.3)
    said, wanted = model.generate(moved, prompts), reference.generate(batch, prompts)
    assert sum(a == b for a, b in zip(said, wanted, strict=True)) >= len(wanted) - 1


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
def test_an_injected_model_moves_between_devices(name):
    model = robustify(load_model(name), RAdaptConfig(alpha=0.5))
    batch, _ = _batch(model, 4)
    prompts = [QUESTION] * 4
    before = model.generate(batch, prompts)
    model.hf.to("cuda")
    assert model.generate(batch.replace(batch.x.cuda()), prompts) == before
    model.hf.to("cpu")
    assert model.generate(batch, prompts) == before


def test_an_attack_in_half_precision_raises_the_loss_and_gives_its_memory_back():
    model = robustify(load_model("tiny-llava", device="cuda", dtype=torch.bfloat16), RAdaptConfig())
    batch, answers = _batch(model)
    prompts = [QUESTION] * len(batch)

    def attack():
        return apgd(
            lambda x, i: model.loss(batch[i].replace(x), [prompts[k] for k in i], [answers[k] for k in i]),
            batch.x,
            eps=4 / 255,
            steps=10,
        )

    with torch.no_grad():
        clean = model.loss(batch, prompts, answers)
    assert float(attack().loss.mean()) > float(clean.mean()) + 0.1
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    for _ in range(3):
        attack()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= held + 2**20


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_gradients_through_a_quantised_language_model_are_right(name, kind):
    pytest.importorskip("bitsandbytes")
    from tests.helpers.quantised import dequantised

    model = robustify(load_model(name, device="cuda", quantize=kind), RAdaptConfig(alpha=0.5))
    plain = robustify(dequantised(model, load_model(name, device="cuda")), RAdaptConfig(alpha=0.5))
    batch, answers = _batch(model, 4)
    prompts = [QUESTION] * 4
    model.generate(batch, prompts)

    def gradient(of):
        x = batch.x.clone().requires_grad_()
        return torch.autograd.grad(of.loss(batch.replace(x), prompts, answers).sum(), x)[0].flatten(1)

    assert torch.cosine_similarity(gradient(model), gradient(plain)).min() >= 0.99


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
def test_a_device_map_finds_the_gpu(name):
    model = robustify(load_model(name, device_map="auto"), RAdaptConfig(alpha=0.5))
    assert model.device.type == "cuda"
    batch, answers = _batch(model, 4)
    whole = robustify(load_model(name), RAdaptConfig(alpha=0.5))
    expected = whole.loss(_batch(whole, 4)[0], [QUESTION] * 4, answers)
    assert torch.allclose(model.loss(batch, [QUESTION] * 4, answers).cpu(), expected, atol=1e-3)
