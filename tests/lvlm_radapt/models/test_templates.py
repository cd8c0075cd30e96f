"""Chat templates where released checkpoints keep them: a text-only one with the tokenizer, another with the
processor. What counts is transformers' own processor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_radapt import load_model
from tests.helpers import released
from tests.helpers.failures import one_line
from tests.helpers.families import CORE, FAMILIES, FEW
from tests.helpers.released import Templates, asked, stock_processor, templates_of, write
from tests.helpers.slow import slow

QUESTION = "What is this?"


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 84, 3), dtype=np.uint8))


PLACES: tuple[released.Place, ...] = ("chat_template.json", "chat_template.jinja", "processor_config.json")
# shared code finds the template, so that of most families one place is enough
PLACED = [
    slow(name, place) if family.variant or (place != PLACES[0] and name not in CORE) else (name, place)
    for name, family in FAMILIES.items()
    for place in PLACES
]


@pytest.mark.parametrize(("name", "place"), PLACED)
def test_prompts_and_pixels_are_the_processor_s_own(name: str, place: released.Place, tmp_path: Path) -> None:
    folder = write(name, tmp_path / "model", templates_of(name), place)
    model, processor = load_model(folder), stock_processor(name, folder)
    image = picture()
    theirs = processor.apply_chat_template(
        asked(image, QUESTION),
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", enable_thinking=False,
    )  # fmt: skip
    batch = model.pixels([image])
    assert model.prompt_ids(batch, [QUESTION])[0] == theirs["input_ids"][0].tolist()
    assert torch.equal(model.pixel_values(batch).reshape(theirs["pixel_values"].shape), theirs["pixel_values"])
    assert model.tokenizer.chat_template == processor.chat_template == templates_of(name).processor


@pytest.mark.parametrize("name", ["llava", "llava-next", "onevision"])
def test_a_text_only_template_alone_is_not_taken(name: str, tmp_path: Path) -> None:
    """It fails at a list of parts, or prints it: the family's usual conversation is used then."""
    text_only = write(name, tmp_path / "text", templates_of(name))
    (text_only / "chat_template.json").unlink()
    bare = write(name, tmp_path / "bare", templates_of(name))
    (bare / "chat_template.json").unlink()
    released.merge(bare / "tokenizer_config.json", chat_template=None)
    model = load_model(text_only)
    assert model.text.prompt(QUESTION, 4) == load_model(bare).text.prompt(QUESTION, 4)
    assert "content" not in (model.tokenizer.chat_template or "")


@pytest.mark.parametrize("name", FEW)
def test_the_tokenizer_s_template_is_taken_where_it_knows_images(name: str, tmp_path: Path) -> None:
    templates = Templates(templates_of(name).processor, templates_of(name).processor)
    both, one = (write(name, tmp_path / place, templates) for place in ("both", "one"))
    (one / "chat_template.json").unlink()
    assert load_model(one).text.prompt(QUESTION, 4) == load_model(both).text.prompt(QUESTION, 4)


@pytest.mark.parametrize("name", FEW)
def test_a_processor_s_template_that_takes_no_image_is_one_line_at_once(name: str, tmp_path: Path) -> None:
    folder = write(name, tmp_path / "model", Templates(templates_of("onevision").tokenizer, ""))
    with one_line("chat template does not render an image and a question .*can only concatenate str"):
        load_model(folder)
    assert load_model(folder, conversation="vicuna_v1").text.prompt(QUESTION, 1)


def test_a_template_that_refuses_a_prompt_is_one_line(tmp_path: Path) -> None:
    refusing = templates_of("llava").processor + (
        "{% if messages | length > 1 %}{{ raise_exception('one turn, please') }}{% endif %}"
    )
    model = load_model(write("llava", tmp_path / "model", Templates(refusing, "")))
    with one_line(r"model: its chat template does not render .*one turn, please.*vicuna_v1"):
        model.text.prompt((QUESTION, "a pig", "why"), 1)


@pytest.mark.parametrize(("content", "said"), [("{", "cannot read its chat template"), ("{}", "chat_template")])
def test_damaged_template_files_are_one_line(content: str, said: str, tmp_path: Path) -> None:
    folder = write("llava", tmp_path / "model", templates_of("llava"))
    (folder / "chat_template.json").write_text(content)
    with one_line(said):
        load_model(folder)


def test_of_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    folder = write("llava", tmp_path / "model", templates_of("llava"), "chat_template.jinja")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    assert load_model(folder).tokenizer.chat_template == templates_of("llava").processor
