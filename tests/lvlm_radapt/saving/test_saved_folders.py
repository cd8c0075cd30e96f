"""What is saved of every family, opened by transformers alone: our pixels, our prompts, our answers.

Sources are tiny checkpoints with the small files of released ones, and an original LLaVA, which pads images and whose
tokenizer begins every piece of text with a space.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from typer.testing import CliRunner

from lvlm_radapt import RAdaptConfig, load_encoder, load_model, robustify
from lvlm_radapt.cli import app
from lvlm_radapt.models import LVLM
from lvlm_radapt.models.conversations import Conversation
from lvlm_radapt.saving.export import export_model
from lvlm_radapt.saving.fold import fold_model
from lvlm_radapt.saving.plain_weights import save_stock
from tests.helpers import original_llava, released, tiny_checkpoints
from tests.helpers.families import CORE, FAMILIES, FEW
from tests.helpers.slow import slow

QUESTION = "What is this?"


def picture(seed: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (84, 112, 3), dtype=np.uint8))


def exported(model: LVLM, folder: Path) -> LVLM:
    export_model(robustify(model), folder)
    return model


def stock(model: LVLM, folder: Path) -> LVLM:
    """As `finetune` and `robustify --replace` write it."""
    folder.mkdir()
    save_stock(model, folder)
    return model


def folded(model: LVLM, folder: Path) -> LVLM:
    fold_model(robustify(model, RAdaptConfig(cutoff=None)), folder)
    return model


WAYS: dict[str, Callable[[LVLM, Path], LVLM]] = {"export": exported, "stock": stock, "fold": folded}
# transformers' processor and model read an export of any family; of a stock folder, shared code writes what they read
CASES = [
    slow(name, way) if family.variant or (way == "stock" and name not in CORE) else (name, way)
    for name, family in FAMILIES.items()
    for way in WAYS
    if way != "fold" or name in ("qwen2", "qwen2.5")
]


def check_alike(name: str, model: LVLM, folder: Path) -> None:
    """transformers' processor and model of `folder` give what `model` gives."""
    image = picture()
    processor = released.stock_processor(name, folder)
    inputs = processor.apply_chat_template(
        released.asked(image, QUESTION),
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", enable_thinking=False,
    )  # fmt: skip
    batch = model.pixels([image])
    assert torch.equal(model.pixel_values(batch).reshape(inputs["pixel_values"].shape), inputs["pixel_values"])
    assert model.prompt_ids(batch, [QUESTION])[0] == inputs["input_ids"][0].tolist()
    hf = transformers.AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    out = hf.generate(**inputs, max_new_tokens=6, do_sample=False)
    answer = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert model.generate(batch, [QUESTION], 6) == [answer]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_transformers_alone_does_the_same(name: str, way: str, tmp_path: Path) -> None:
    folder = tmp_path / f"{name}-{way}"
    check_alike(name, WAYS[way](load_model(released.write(name, tmp_path / "source")), folder), folder)


@pytest.mark.parametrize("name", ["llava", "qwen2.5"])
def test_a_conversation_of_ones_own_goes_with_it(name: str, tmp_path: Path) -> None:
    mine = Conversation("mine", "You are “a pig” 🐷.", "{system} 'USER': <image>\\n\n{text}\" {{}} ASSISTANT:")
    model = load_model(released.write(name, tmp_path / "source"), conversation=mine)
    check_alike(name, stock(model, tmp_path / "saved"), tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert again.text.prompt(QUESTION, 4) == model.text.prompt(QUESTION, 4)


def llama_tokenizer() -> Any:
    """One token a letter, as Llama's own is made: `legacy` decides what begins behind a special token."""
    letters = [chr(i) for i in range(33, 123) if chr(i) not in '"#$%&*+/<=>@[]^`\\'] + ["▁", "\n"]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    assert len(vocab) <= original_llava.IMAGE_ID
    return transformers.LlamaTokenizer(vocab=vocab, merges=[])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = original_llava.write_original(
        tmp_path_factory.mktemp("original"), original_llava.stock_llava(), tower=True, shards=1
    )
    for file in folder.glob("*token*"):
        if file.name != "pytorch_model.bin":
            file.unlink()
    llama_tokenizer().save_pretrained(folder)
    return folder


def finetuned(source: Path, folder: Path) -> None:
    """By the command itself, in one step."""
    images = folder.with_name("images")
    images.mkdir()
    for number in range(4):
        picture(number).save(images / f"{number}.png")
    words = ["finetune", str(source), "--method", "fare", "--images", str(images), "--out", str(folder)]
    done = CliRunner().invoke(app, [*words, "--steps", "1", "--batch-size", "2", "--lr", "0.01", "--device", "cpu"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", FEW)
def test_a_fine_tuned_folder_of_every_family(name: str, tmp_path: Path) -> None:
    """Its weights are other ones than the source's; images and prompts come to it as to the source."""
    source = load_model(released.write(name, tmp_path / "source"))
    finetuned(tmp_path / "source", tmp_path / "tuned")
    tuned = load_model(tmp_path / "tuned")
    check_alike(name, tuned, tmp_path / "tuned")
    batch = source.pixels([picture()])
    assert torch.equal(tuned.pixels([picture()]).x, batch.x)
    assert tuned.text.prompt(QUESTION, 4) == source.text.prompt(QUESTION, 4)
    assert not torch.equal(tuned.features(batch), source.features(batch))


ENCODERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "clip": (tiny_checkpoints.save_clip, "CLIPImageProcessorPil"),
    "siglip": (tiny_checkpoints.save_siglip, "SiglipImageProcessorPil"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_fine_tuned_folder_of_every_encoder(name: str, tmp_path: Path) -> None:
    save, processor = ENCODERS[name]
    source = load_encoder(save(tmp_path / "source"))
    finetuned(tmp_path / "source", tmp_path / "tuned")
    tuned = load_encoder(tmp_path / "tuned")
    batch = tuned.pixels([picture()])
    inputs = getattr(transformers, processor).from_pretrained(tmp_path / "tuned")(picture(), return_tensors="pt")
    assert torch.equal(tuned.pixel_values(batch), inputs["pixel_values"])
    stock = transformers.AutoModel.from_pretrained(tmp_path / "tuned").eval()
    with torch.no_grad():
        embedded = stock.get_image_features(**inputs).pooler_output
        torch.testing.assert_close(tuned.image_features(batch), embedded, rtol=1e-5, atol=1e-5)
        assert not torch.equal(source.image_features(batch), embedded)


@pytest.mark.parametrize("way", ["export", "stock", "finetune"])
def test_of_an_original_llava_too(original: Path, way: str, tmp_path: Path) -> None:
    """With its padding and the spaces of its tokenizer; and in this package with its geometry."""
    folder = tmp_path / f"original-{way}"
    if way == "finetune":
        finetuned(original, folder)
        model = again = load_model(folder)
    else:
        model = WAYS[way](load_model(original), folder)
        again = load_model(folder)
    check_alike("llava", model, folder)
    base = load_model(original)
    assert (again.geometry, base.geometry) == ("pad", "pad")
    batch = base.pixels([picture()])
    assert torch.equal(again.pixels([picture()]).x, batch.x)
    assert again.generate(batch, [QUESTION], 6) == model.generate(batch, [QUESTION], 6)
    space = model.tokenizer.convert_tokens_to_ids("▁")
    ids = base.text.prompt(QUESTION, 1)
    assert again.text.prompt(QUESTION, 1) == ids
    assert ids[ids.index(model.text.image_id) + 1] == space


@pytest.mark.parametrize("name", ["llava", "onevision"])
def test_of_a_release_without_a_processor_config(name: str, tmp_path: Path) -> None:
    """The first releases had none: what the processor must know is the model's to say."""
    source = released.write(name, tmp_path / "source")
    (source / "processor_config.json").unlink()
    check_alike(name, stock(load_model(source), tmp_path / "saved"), tmp_path / "saved")
