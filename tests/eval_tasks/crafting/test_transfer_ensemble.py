"""Images made on several surrogates at once, for a model that none of them is."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from attacks import random_noise
from eval_tasks.crafting.batches import SampleBatch
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.crafting.source_model import SourceModel
from eval_tasks.run.records import read_run
from lvlm_radapt import load_encoder, load_model
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.loading.load import load_surrogate
from lvlm_radapt.models.base import PixelBatch

EPS = 16 / 255


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(out, count=4)
    return out


@pytest.fixture(scope="module")
def batch(data):
    images = [Image.open(path) for path in sorted((data / "val2014").glob("*.png"))[:2]]
    return load_model("tiny-llava").pixels(images)


def crafted(several, batch, **settings):
    attack = make_attack("transfer-ensemble", eps=EPS, steps=8, settings=settings)
    known = SampleBatch(samples=[None] * len(batch), batch_size=2)
    made = attack.craft(SourceModel(several, batch), batch, known, [1, 2])
    return batch.replace(made.pixels.float() / 255)


def likeness(model, first: PixelBatch, second: PixelBatch, pooled=False):
    with torch.no_grad():
        seen = [SourceModel(model, one) for one in (first, second)]
        tokens = [model.features(one.view).float() for one in seen]
    if pooled:
        tokens = [one.mean(dim=1, keepdim=True) for one in tokens]
    return float(cosine_similarity(*tokens, dim=-1).mean())


def test_every_surrogate_sees_something_else(batch):
    several = load_surrogate("tiny-clip,tiny-qwen")
    attacked = crafted(several, batch)
    assert float((attacked.x - batch.x).abs().max()) <= EPS + 1e-6
    noisy = batch.replace(random_noise(batch.x, eps=EPS, norm="Linf", seed=[1, 2]))
    for name in ("tiny-clip", "tiny-qwen"):
        model = load_encoder(name) if name == "tiny-clip" else load_model(name)
        far, noise = (1 - likeness(model, batch, one) for one in (attacked, noisy))
        assert far > 2 * noise


def test_a_target_image_draws_the_images_to_it(batch, tmp_path, data):
    target = sorted((data / "val2014").glob("*.png"))[3]
    surrogate = load_surrogate("tiny-clip")
    height, width = batch.x.shape[-2:]
    shown = torch.from_numpy(np.array(Image.open(target).convert("RGB").resize((width, height))))
    wanted = batch.replace((shown.permute(2, 0, 1).float() / 255).expand_as(batch.x))
    attacked = crafted(surrogate, batch, target_image=str(target))
    before, after = (likeness(surrogate, one, wanted, pooled=True) for one in (batch, attacked))
    assert after > before


def test_a_run_names_its_surrogates_and_is_the_same_again(cli, data, tmp_path):
    words = ["eval", "tiny-llava", "--task", "vqav2", "--data", data, "--attack", "transfer-ensemble", "--samples", 3]
    flags = ["--surrogate", "tiny-clip,tiny-qwen", "--steps", 2, "--eps", "16/255"]
    for out, size in (("one", 3), ("other", 2)):
        code, _, err = cli(*words, *flags, "--chunk-size", size, "--out", tmp_path / out)
        assert code == 0, err
    one, other = (read_run(tmp_path / out) for out in ("one", "other"))
    assert one.settings["attack"]["surrogate"] == "tiny-clip,tiny-qwen"
    assert one.settings["attack"]["threat"] == "transfer"
    assert [s.adversarial.steps for s in one.samples] == [2] * 3
    assert [s.adversarial.linf for s in one.samples] == pytest.approx([s.adversarial.linf for s in other.samples])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--attack", "e2e", "--threat", "transfer", "--surrogate", "tiny-qwen,tiny-clip"), "takes one surrogate"),
        (("--attack", "transfer-ensemble", "--surrogate", "tiny-qwen,tiny-qwen"), "names a model twice"),
        (("--attack", "transfer-ensemble", "--surrogate", "tiny-qwen,"), "names between commas"),
        (("--attack", "transfer-ensemble", "--threat", "adaptive"), "is for --threat transfer"),
        (("--attack", "transfer-ensemble"), "name a --surrogate"),
        (
            ("--attack", "transfer-ensemble", "--surrogate", "tiny-clip", "--attack-set", "target_image=absent.png"),
            "cannot read image absent.png",
        ),
        (
            ("--attack", "transfer-ensemble", "--surrogate", "tiny-clip", "--attack-set", "smallest_crop=2"),
            "smallest_crop",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(cli, data, tmp_path, flags, said):
    words = ["eval", "tiny-llava", "--task", "vqav2", "--data", data, "--samples", 2, "--out", tmp_path / "run"]
    code, _, err = cli(*words, *flags)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
