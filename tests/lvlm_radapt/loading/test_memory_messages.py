"""Memory that does not suffice: while weights are loaded, and for an image that is too large."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from attacks.auto_batch import out_of_memory
from eval_tasks.api import Evaluation
from eval_tasks.data import load_task
from eval_tasks.run.records import RunFolder
from lvlm_radapt import load_model, robustify
from lvlm_radapt.cli.resuming import resumable
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.loading.load import load_any
from lvlm_radapt.loading.load_options import LoadOptions
from lvlm_radapt.models import LVLM
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.saving.export import export_model
from lvlm_radapt.utils.errors import Unfinished
from tests.helpers import tiny_checkpoints
from tests.helpers.evaluations import evaluation, score
from tests.helpers.failures import one_line

LIMIT = 15_000  # px of a canvas that the tests' memory takes
OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 77 GiB.")


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.save_qwen(tmp_path_factory.mktemp("qwen"))


# while loading


@pytest.mark.parametrize(
    ("error", "given", "advice"),
    [
        (OUT, {}, r"float32 do not fit on cpu: use --dtype bfloat16 .* or --quantize 4bit or --device-map auto$"),
        (MemoryError(), {"dtype": torch.bfloat16}, r"bfloat16 .*: use --quantize 4bit or --device-map auto$"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), {"device_map": "auto"}, "on device map auto"),
    ],
)
def test_weights_that_do_not_fit_are_one_line_with_advice(
    qwen: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, given: dict[str, Any], advice: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(transformers.Qwen2_5_VLForConditionalGeneration, "from_pretrained", fail)
    with one_line(f"{qwen}: out of memory, its weights in .*{advice}"):
        load_model(qwen, **given)


def test_moving_to_the_device_counts_as_loading(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: LoadOptions, hf: Any) -> None:
        raise OUT

    monkeypatch.setattr(LoadOptions, "place", fail)
    with one_line("out of memory, its weights"):
        load_model(qwen)


def test_weights_go_straight_to_an_accelerator() -> None:
    assert LoadOptions("cuda:1").arguments()["device_map"] == {"": "cuda:1"}
    assert "device_map" not in LoadOptions("cpu").arguments()


# images that are too large


def test_max_pixels_shrinks_the_canvas_as_the_processor_itself_would(qwen: Path, tmp_path: Path) -> None:
    model, limited = load_model(qwen), load_model(qwen, max_pixels=10_000)
    image = photo(300, 200)
    high, wide = limited.canvas(image)
    assert high * wide <= 10_000 < model.canvas(image)[0] * model.canvas(image)[1]
    size = {"shortest_edge": 56 * 56, "longest_edge": 10_000}
    stock = transformers.Qwen2VLImageProcessorPil.from_pretrained(qwen, size=size)
    batch = limited.pixels([image])
    assert torch.equal(limited.pixel_values(batch), stock(images=[image], return_tensors="pt")["pixel_values"])
    assert limited.size_words(batch) == f"a canvas of {wide}x{high} px, {high * wide // 28**2} image tokens"
    robustify(limited)
    save_adapter(limited, tmp_path / "adapter")
    export_model(limited, tmp_path / "export")
    for saved in ("adapter", "export"):
        assert load_model(tmp_path / saved).canvas(image) == (high, wide)
    assert load_model(tmp_path / "adapter", max_pixels=20_000).canvas(image) != (high, wide)


def test_max_pixels_counts_a_canvas_once_whatever_its_processor_counts(tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_glm(tmp_path)
    model = load_model(folder, max_pixels=10_000)
    height, width = model.canvas(Image.new("RGB", (400, 300)))
    assert 7_000 < height * width <= 10_000
    with one_line("max pixels 3000 is below its least canvas, 3136 pixels"):
        load_model(folder, max_pixels=3_000)


def test_max_pixels_that_cannot_be(qwen: Path, tmp_path: Path) -> None:
    with one_line("max pixels 100 is below its least canvas, 3136 pixels"):
        load_model(qwen, max_pixels=100)
    llava = tiny_checkpoints.save_llava(tmp_path)
    with one_line("max pixels is for Qwen and GLM"):
        load_model(llava, max_pixels=10_000)
    with one_line("is an image encoder.*leave max pixels out"):
        load_any("tiny-clip", max_pixels=10_000)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ({"min_pixels": 3136, "max_pixels": 28_000}, "lacks shortest_edge and longest_edge"),
        ({"shortest_edge": 3136}, "lacks longest_edge"),
    ],
)
def test_a_size_that_lacks_a_limit_is_one_line(size: dict[str, int], said: str, qwen: Path, tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_qwen(tmp_path / "model")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": size}))
    with one_line(said):
        load_model(folder)
    limits = {"min_pixels": 3136, "max_pixels": 28_000}  # as Qwen2-VL was released
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": size} | limits))
    for more in ({}, {"max_pixels": 10_000}):
        wanted, found = load_model(qwen, **more), load_model(folder, **more)
        assert found.canvas(photo(300, 200)) == wanted.canvas(photo(300, 200))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Captions of five images, the second too large for the memory."""
    folder = tmp_path / "scenes"
    write_scenes(folder, count=5)
    large = load_task("coco", folder)[1].image
    assert isinstance(large, Path)
    photo(168, 112).save(large)
    return folder


def too_large(model: LVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient through the model fits for small canvases only."""
    whole = model.loss

    def loss(batch: Any, *texts: Any) -> torch.Tensor:
        if batch.x.shape[-1] * batch.x.shape[-2] > LIMIT:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(batch, *texts)

    monkeypatch.setattr(model, "loss", loss)


def settings(data: Path, **more: Any) -> Evaluation:
    return evaluation("coco", data, "e2e", eps="8/255", steps=2, samples=5, seed=1, chunk_size=4, **more)


def test_a_run_marks_an_image_that_is_too_large_as_failed_and_goes_on(
    qwen: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(qwen)
    wanted = {r.id: r for r in score(model, settings(data), tmp_path / "whole").samples}
    large = load_task("coco", data)[1].id
    assert large in wanted
    too_large(model, monkeypatch)
    run = score(model, settings(data), tmp_path / "run")
    assert [r.id for r in run.samples] == list(wanted)
    for record in run.samples:
        assert record.adversarial is not None
        if record.id == large:
            assert record.adversarial.failed == "out of memory with a canvas of 168x112 px, 24 image tokens"
            assert (record.adversarial.linf, record.adversarial.output) == (0.0, record.clean.output)
            assert RunFolder(run.path).load_image(large).shape == (3, 112, 168)
        else:
            assert record.adversarial == wanted[record.id].adversarial
    assert run.metrics["failed"] == 1
    assert any("1 samples failed" in note and "out of memory with a canvas" in note for note in run.metrics["notes"])


def test_an_image_that_fits_with_gradient_checkpointing_is_attacked(
    qwen: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {r.id: r for r in score(load_model(qwen), settings(data), tmp_path / "whole").samples}
    model = load_model(qwen)
    too_large(model, monkeypatch)
    switch_on = model.recompute_activations

    def recompute() -> bool:
        monkeypatch.setattr(f"{__name__}.LIMIT", 10**9)
        return switch_on()

    monkeypatch.setattr(model, "recompute_activations", recompute)
    run = score(model, settings(data), tmp_path / "run")
    assert {r.id: r.adversarial for r in run.samples} == {one: r.adversarial for one, r in wanted.items()}
    assert not model.recompute_activations()


def test_where_nothing_fits_the_run_ends_with_advice(
    qwen: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(qwen)
    monkeypatch.setattr(f"{__name__}.LIMIT", 0)
    too_large(model, monkeypatch)
    with pytest.raises(Unfinished, match=r"\(a canvas of 112x112 px, 16 image tokens\).*--max-pixels"), resumable("x"):
        score(model, settings(data), tmp_path / "run")


def test_an_answer_that_does_not_fit_names_the_size(
    qwen: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(qwen)

    def generate(*_: Any, **__: Any) -> list[str]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "generate", generate)
    with (
        pytest.raises(Unfinished, match=r"even for one image \(a canvas of \d+x\d+ px, \d+ image tokens\); .*go on"),
        resumable("x"),
    ):
        score(model, settings(data), tmp_path / "run")


def test_what_is_no_memory_error_is_raised_on(qwen: Path) -> None:
    assert not out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"), resumable("again"):
        raise RuntimeError("shapes do not match")
