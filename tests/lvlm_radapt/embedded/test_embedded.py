"""The embedded models: what is shipped, that they see, and that an attack on them is one."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open

from lvlm_radapt import RAdaptConfig, load_encoder, load_model, robustify
from lvlm_radapt.embedded import scenes
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.loading.locate import EMBEDDED, embedded_models
from tests.helpers.evaluations import evaluation, score
from tests.helpers.slow import slow

LVLMS = ("tiny-llava", "tiny-qwen")
CLASSES = {
    "tiny-llava": transformers.LlavaForConditionalGeneration,
    "tiny-qwen": transformers.Qwen2_5_VLForConditionalGeneration,
    "tiny-clip": transformers.CLIPModel,
    "tiny-clip-fare": transformers.CLIPModel,
    "tiny-clip-tecoa": transformers.CLIPModel,
}


def _tensors(name: str) -> dict[str, torch.Tensor]:
    with safe_open(embedded_models()[name] / "model.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict


@pytest.mark.parametrize("name", EMBEDDED)
def test_shipped_small_in_half_precision_and_in_transformers_own_layout(name):
    folder = embedded_models()[name]
    assert sum(f.stat().st_size for f in folder.iterdir()) < 15e6
    assert {t.dtype for t in _tensors(name).values()} == {torch.float16}
    _, info = CLASSES[name].from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_the_tower_of_tiny_llava_is_tiny_clips():
    llava, clip = _tensors("tiny-llava"), _tensors("tiny-clip")
    prefix = next(k for k in llava if k.endswith("embeddings.class_embedding")).removesuffix(
        "embeddings.class_embedding"
    )
    own = next(k for k in clip if k.endswith("embeddings.class_embedding")).removesuffix("embeddings.class_embedding")
    last = "encoder.layers.5."
    read = [
        k.removeprefix(prefix)
        for k in llava
        if k.startswith(prefix) and not k.startswith((prefix + last, prefix + "post_layernorm"))
    ]
    assert len(read) > 5 * 16
    assert all(torch.equal(llava[prefix + k], clip[own + k]) for k in read)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("scenes")
    for name in LVLMS:
        write_scenes(root / name, count=64, seed=5, mixed=name == "tiny-qwen")
    return {name: root / name for name in LVLMS}


def _run(model, data, out, attack, steps=None, task="vqav2", samples=64):
    asked = evaluation(task, data, attack, steps=steps, samples=samples, seed=3, batch_size=64)
    return score(model, asked, out)


@pytest.mark.parametrize(
    ("name", "steps", "samples"), [("tiny-llava", 5, 16), slow("tiny-llava", 5, 32), slow("tiny-qwen", 20, 32)]
)
def test_it_answers_and_an_attack_breaks_it_where_noise_does_not(name, steps, samples, tmp_path, data):
    model = load_model(name)
    noise = _run(model, data[name], tmp_path / "noise", "noise", samples=samples).metrics
    attacked = _run(model, data[name], tmp_path / "e2e", "e2e", steps=steps, samples=samples).metrics
    clean = attacked["clean"]["vqa_accuracy"]
    assert clean >= 80
    assert attacked["adversarial"]["vqa_accuracy"] < clean / 2
    low, high = noise["clean"]["ci95"]
    assert low <= noise["adversarial"]["vqa_accuracy"] <= high


@pytest.mark.parametrize("name", LVLMS)
def test_it_describes_and_the_defence_changes_it_until_it_is_taken_out(name, data, tmp_path):
    model = load_model(name)
    stock = _run(model, data[name], tmp_path / "stock", "none", task="coco", samples=16)
    assert stock.metrics["clean"]["cider"] > 200  # a templated caption of another scene scores about half of it
    protected = robustify(load_model(name), RAdaptConfig(cutoff=15, alpha=0.5))
    changed = _run(protected, data[name], tmp_path / "radapt", "none", task="coco", samples=16)
    outputs = [[r.clean.output for r in run.samples] for run in (stock, changed)]
    assert outputs[0] != outputs[1]
    with protected.undefended():
        again = _run(protected, data[name], tmp_path / "twin", "none", task="coco", samples=16)
    assert [r.clean.output for r in again.samples] == outputs[0]


def test_tiny_clip_tells_captions_apart():
    encoder = load_encoder("tiny-clip")
    drawn = [scenes.sample_scene("test", 11, i) for i in range(128)]
    images = encoder.image_features(encoder.pixels([scenes.render(s) for s in drawn]))
    texts = encoder.text_features([scenes.caption(s) for s in drawn])
    scores = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T
    right = [
        int(scores[i, [(i + j) % 128 for j in range(16)]].argmax()) == 0 for i in range(128)
    ]  # its own caption against those of the next 15 scenes
    assert sum(right) / 128 >= 0.75


def test_tiny_qwen_sees_every_grid(tmp_path, data):
    model = load_model("tiny-qwen")
    run = _run(model, data["tiny-qwen"], tmp_path / "run", "none", samples=128)
    from eval_tasks.data import load_task, open_image

    canvas = {s.id: model.canvas(open_image(s.image)) for s in load_task("vqav2", data["tiny-qwen"])}
    by_grid: dict[tuple[int, int], list[float]] = {}
    for record in run.samples:
        by_grid.setdefault(canvas[record.id], []).append(record.clean.score)
    assert set(by_grid) == set(scenes.MIXED)
    assert all(sum(v) / len(v) >= 70 for v in by_grid.values())
