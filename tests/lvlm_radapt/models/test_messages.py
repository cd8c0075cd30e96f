"""Qwen-style chat messages, with and without its helper package."""

import base64
import importlib.machinery
import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvlm_radapt import load_model
from lvlm_radapt.models.messages import read_messages
from lvlm_radapt.utils.errors import UserError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    return path


def turn(image: Any, *texts: str, **more: Any) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image, **more}, *({"type": "text", "text": text} for text in texts)]
    return [{"role": "user", "content": content}]


def test_every_way_to_hold_an_image(picture: Path) -> None:
    expected = np.asarray(Image.open(picture))
    data = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    for source in (picture, str(picture), picture.as_uri(), data, Image.open(picture)):
        image, text = read_messages(turn(source, "What?", "And why?"))
        assert np.array_equal(np.asarray(image), expected)
        assert text == "What?\nAnd why?"


def test_they_ask_the_model(picture: Path) -> None:
    model = load_model("tiny-qwen")
    image, text = read_messages(turn(picture, "what color is the background?"))
    assert model.generate(model.pixels([image]), [text])


def test_sizes_and_addresses_go_to_qwen_vl_utils_where_it_is(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for messages in (turn(str(picture), "What?", min_pixels=4), turn("https://example.org/a.png", "What?")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "qwen_vl_utils", None)  # type: ignore[arg-type]
            patch.setattr("importlib.util.find_spec", lambda _name: None)
            with pytest.raises(UserError, match="needs qwen-vl-utils"):
                read_messages(messages)
        helper = types.ModuleType("qwen_vl_utils")
        helper.__spec__ = importlib.machinery.ModuleSpec("qwen_vl_utils", None)
        helper.fetch_image = lambda part: Image.new("RGB", (len(part["image"]), 1))  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "qwen_vl_utils", helper)
            image, _ = read_messages(messages)
            assert image.size == (len(messages[0]["content"][0]["image"]), 1)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "give one turn"),
        ([{"role": "system", "content": "x"}], "give one turn"),
        (turn("nowhere.png", "What?"), "'nowhere.png' does not open"),
        (turn("data:image/png;base64,!!", "What?"), "does not open"),
        (turn(7, "What?"), "not int"),
        ([{"role": "user", "content": "What?"}], "0 images in the turn"),
        ([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], "type 'video' is not supported"),
        ([{"role": "user", "content": turn(1)[0]["content"] * 2}], "2 images in the turn"),
    ],
)
def test_bad_messages_are_one_line(messages: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read_messages(messages)
    assert "\n" not in str(caught.value)


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(base64.b64decode("AAAA") + io.BytesIO(b"no picture").read())
    with pytest.raises(UserError, match="does not open"):
        read_messages(turn(path, "What?"))
