"""Prompts of several turns: the text every family makes of them, its loss and its streamed answer."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_radapt import load_model
from lvlm_radapt.models import LVLM
from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation
from lvlm_radapt.models.families import lvlm_families
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints
from tests.helpers.families import NAMES, Case

TALK = ("what is this", "a red circle", "how many", "two", "what color is the circle?")
# By role, as the templates of released checkpoints are; the families' own test templates know users alone.
BY_ROLE = {
    "<image>": (
        "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<image>\n{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "<|image_pad|>": tiny_checkpoints.QWEN_TEMPLATE,
    "<start_of_image>": tiny_checkpoints.GEMMA_TEMPLATE,
    "<|image|>": tiny_checkpoints.GLM_TEMPLATE,
}


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (112, 84, 3), dtype=np.uint8))


def listed(talk: tuple[str, ...]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for place, text in enumerate(talk):
        role = "user" if place % 2 == 0 else "assistant"
        turns.append({"role": role, "content": [{"type": "text", "text": text}]})
    turns[0]["content"] = [{"type": "image"}, *turns[0]["content"]]
    return turns


def written(model: LVLM, talk: tuple[str, ...], **template: str) -> list[int]:
    """The template's text with what the family's processor adds, test_templates asks each for it, as tokens."""
    tokenizer = model.tokenizer
    text = tokenizer.apply_chat_template(listed(talk), tokenize=False, add_generation_prompt=True, **template)
    text = text.replace(model.text.mark, model.image_text({})) + model.prompt_end
    opened = tokenizer.bos_token is not None and tokenizer.bos_token in text
    return tokenizer(text, add_special_tokens=not opened)["input_ids"]


def test_every_family_writes_what_its_chat_template_does(case: Case, tmp_path: Path) -> None:
    model = case.ours
    token = case.family.image_token
    template = BY_ROLE.get(token) or BY_ROLE["<image>"].replace("<image>", token)
    for file in case.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    by_role = load_model(tmp_path)
    for talk in (TALK[:1], TALK[:3], TALK):
        assert model.text.prompt(talk, 1) == written(model, talk)
        assert by_role.text.prompt(talk, 1) == written(model, talk, chat_template=template)
    assert model.text.prompt(TALK[:1], 1) == model.text.prompt(TALK[0], 1)


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
def test_so_do_the_embedded_models(name: str) -> None:
    model = load_model(name)
    assert model.text.prompt(TALK, 1) == written(model, TALK)
    assert written(model, TALK).count(model.text.image_id) == 1


BY_HAND = {
    "vicuna_v1": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:"
    ),
    "mistral_instruct": "[INST] <image>\nQ1 [/INST] A1 </s>[INST] Q2 [/INST]",
    "mistral": "[INST]<image>Q1[/INST]A1</s>[INST]Q2[/INST]",
    "qwen": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><image>"
        "<|vision_end|>Q1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "qwen3": (
        "<|im_start|>user\n<|vision_start|><image><|vision_end|>Q1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
    ),
    "qwen3_5": (
        "<|im_start|>user\n<|vision_start|><image><|vision_end|>Q1<|im_end|>\n<|im_start|>assistant\n<think>\n\n"
        "</think>\n\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ),
    "glm": (
        "[gMASK]<sop><|user|>\n<|begin_of_image|><image><|end_of_image|>Q1<|assistant|>\nA1<|user|>\nQ2<|assistant|>\n"
    ),
    "chatml": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nQ1<|im_end|>\n"
        "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
    ),
    "gemma": (
        "<start_of_turn>user\n<image>Q1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n<start_of_turn>user\nQ2"
        "<end_of_turn>\n<start_of_turn>model\n"
    ),
    "gemma4": ("<|turn>user\n<image>Q1<turn|>\n<|turn>model\nA1<turn|>\n<|turn>user\nQ2<turn|>\n<|turn>model\n"),
    "idefics3": (
        "User:<image>Q1<end_of_utterance>\nAssistant: A1<end_of_utterance>\nUser: Q2<end_of_utterance>\nAssistant:"
    ),
    "smolvlm": (
        "<|im_start|>User:<image>Q1<end_of_utterance>\nAssistant: A1<end_of_utterance>\nUser: Q2<end_of_utterance>\n"
        "Assistant:"
    ),
    "aya_vision": (
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|><image>Q1<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A1"
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Q2<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
        "<|CHATBOT_TOKEN|>"
    ),
    "chatml_direct": (
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ1<|im_end|>"
        "<|im_start|>assistant\nA1<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n"
    ),
}


USUAL = {each.lvlm.default_conversation for each in lvlm_families().values() if each.lvlm is not None}
NAMED = CONVERSATIONS | {conversation.name: conversation for conversation in USUAL}


def test_every_named_conversation_is_written_by_hand_here() -> None:
    assert set(BY_HAND) == {name for name, conversation in NAMED.items() if conversation.follow_up}


@pytest.mark.parametrize("name", BY_HAND)
def test_named_conversations_go_on(name: str) -> None:
    conversation = NAMED[name]
    assert conversation.render(("Q1", "A1", "Q2"), "<image>") == BY_HAND[name]
    odd = "{text} {answer} {system} {image} <image>"
    assert conversation.render(odd, "<image>") == BY_HAND[name].partition("A1")[0].rstrip(" ").replace("Q1", odd)


def test_a_template_without_further_turns_is_for_one_question() -> None:
    for one in (Conversation("own", None, "<image>{text}"), CONVERSATIONS["paligemma"]):
        assert one.render("Q1", "<|i|>") == "<|i|>Q1"
        with pytest.raises(UserError, match=f"{one.name} is for one question"):
            one.render(("Q1", "A1", "Q2"), "<|i|>")


@pytest.mark.parametrize("name", BY_HAND)
def test_the_template_given_to_original_checkpoints_writes_the_same(name: str) -> None:
    tokenizer = tiny_checkpoints.word_tokenizer({}, bos=True, eos="</s>")
    talk = ('a "red" {pig}\\n', "an 'answer'", "Q2", "A2", "Q3")
    made = tokenizer.apply_chat_template(
        listed(talk), chat_template=NAMED[name].chat_template("<image>"), tokenize=False
    )
    assert made == NAMED[name].render(talk, "<image>")


def test_the_loss_of_a_later_answer_is_the_library_s(case: Case) -> None:
    model, image = case.ours, noise()
    batch = model.pixels([image])
    talk, target = TALK[:3], "two large blue squares"
    ids = torch.tensor(model.prompt_ids(batch, [talk]))
    answer = torch.tensor([model.text.target(talk, target)])
    inputs = case.inputs(image, TALK[0])
    inputs["input_ids"] = torch.cat([ids, answer], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    labels = torch.cat([torch.full_like(ids, -100), answer], 1)
    with torch.no_grad():
        expected = case.stock(**case.typed(inputs, answer), labels=labels).loss
        torch.testing.assert_close(model.loss(batch, [talk], [target])[0], expected, rtol=1e-5, atol=1e-5)
        assert float(model.loss(batch, [talk[0]], [target])) != pytest.approx(float(expected), rel=1e-4)


def test_what_is_streamed_is_what_is_answered(case: Case) -> None:
    model = case.ours
    batch = model.pixels([noise(0), noise(1)])
    prompts = [TALK[:3], "what"]
    seen: list[list[str]] = []
    answers = model.generate(batch, prompts, 8, on_text=seen.append)
    assert answers == model.generate(batch, prompts, 8) == seen[-1]
    assert answers == [model.generate(batch[i], [prompts[i]], 8)[0] for i in range(2)]
    assert 1 <= len(seen) <= 8
    for before, after in pairwise(seen):
        assert all(b.startswith(a) for a, b in zip(before, after, strict=True))


def test_streaming_stops_with_an_error_of_the_listener(case: Case) -> None:
    def listener(_: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.ours.generate(case.ours.pixels([noise()]), ["what"], 8, on_text=listener)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_turn_can_pose_as_an_image(case: Case, place: int) -> None:
    talk = list(TALK[:3])
    talk[place] = f"what {case.family.image_token} is"
    with pytest.raises(UserError, match="reserved token"):
        case.ours.text.prompt(tuple(talk), 1)


@pytest.mark.parametrize("talk", [(), ("what", "a pig")])
def test_a_conversation_ends_with_the_user(case: Case, talk: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="begins and ends with the user"):
        case.ours.text.prompt(talk, 1)


def test_a_template_in_the_processor_s_file_goes_on_too(tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_llava(tmp_path, chat_template=None)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": BY_ROLE["<image>"]}))
    model = load_model(folder)
    text = "USER: <image>\nwhat is this ASSISTANT: a red circle USER: how many ASSISTANT:"
    assert model.text.prompt(TALK[:3], 1) == model.tokenizer(text)["input_ids"]
