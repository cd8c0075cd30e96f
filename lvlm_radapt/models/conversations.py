"""Conversation templates: what stands around the user's words, by name or written by the user."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from lvlm_radapt.utils.errors import UserError

Prompt: TypeAlias = str | tuple[str, ...]
"""The user's words; or those of a conversation, user and model in turn, the user's first and last. The image belongs
to the first turn."""

IMAGE = "<image>"
_PLACE = re.compile(r"<image>|\{(?:system|text|answer)\}")


@dataclass(frozen=True)
class Conversation:
    """How a question is put to the model.

    template: the first turn, with the places `<image>`, `{text}` (the user's words) and, where there is a system
        prompt, `{system}`. system: that prompt; None: there is none.
    follow_up: how it goes on, with the places `{answer}` (what the model said) and `{text}`; None: it does not.

    UserError for places that are missing, and for a system prompt without its place.
    """

    name: str
    system: str | None
    template: str
    follow_up: str | None = None

    def __post_init__(self) -> None:
        for place in (IMAGE, "{text}"):
            if self.template.count(place) != 1:
                raise UserError(f"the template of conversation {self.name} must contain {place} once")
        if self.template.count("{system}") != (0 if self.system is None else 1):
            raise UserError(
                f"conversation {self.name} must have system and the place {{system}} once in its template, or neither"
            )

    def render(self, prompt: Prompt, image_token: str) -> str:
        """The whole text of the prompt, with one image token; marks of places in the user's words stay as they are.

        UserError for several turns where the template does not say how they follow each other.
        """
        first, *later = turns(prompt)
        if later and self.follow_up is None:
            raise UserError(f"conversation {self.name} is for one question: its template has no further turns")
        parts = [_filled(self.template, {IMAGE: image_token, "{system}": self.system or "", "{text}": first})]
        for answer, text in zip(later[::2], later[1::2], strict=True):
            parts.append(_filled(self.follow_up or "", {"{answer}": answer, "{text}": text}))
        return "".join(parts)

    def chat_template(self, image_token: str) -> str:
        """The jinja template that writes what `render` does, for programs that take chat messages, image first."""
        before, rest = self.template.replace("{system}", self.system or "").split(IMAGE)
        between, after = rest.split("{text}")
        image = f"{{% if part['type'] == 'image' %}}{{{{ {_literal(image_token + between)} }}}}{{% else %}}"
        words = f"{{% for part in message['content'] %}}{image}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}"
        first = f"{{{{ {_literal(before)} }}}}{words}{{{{ {_literal(after)} }}}}"
        refusal = _literal(f"conversation {self.name} is for one question")
        answer = later = f"{{{{ raise_exception({refusal}) }}}}"
        if self.follow_up is not None:
            answering, rest = self.follow_up.split("{answer}")
            asking, after = rest.split("{text}")
            answer = f"{{{{ {_literal(answering)} }}}}{words}"
            later = f"{{{{ {_literal(asking)} }}}}{words}{{{{ {_literal(after)} }}}}"
        return (
            f"{{% for message in messages %}}{{% if message['role'] == 'assistant' %}}{answer}"
            f"{{% elif loop.first %}}{first}{{% else %}}{later}{{% endif %}}{{% endfor %}}"
        )

    def settings(self) -> dict[str, Any]:
        """What run.json says of it."""
        return {"name": self.name, "system": self.system, "template": self.template}


def turns(prompt: Prompt) -> tuple[str, ...]:
    """The turns of a prompt; ValueError unless the user's are the first and the last."""
    listed = (prompt,) if isinstance(prompt, str) else prompt
    if len(listed) % 2 == 0:
        raise ValueError(f"a conversation begins and ends with the user's words, so {len(listed)} turns are none")
    return listed


def conversation_of(name: str, system: str | None = None, template: str | None = None) -> Conversation:
    """The built-in conversation of that name, with another system prompt where one is given; or, under a name of its
    own, one with that template.

    UserError for a name that is unknown and has no template, for a built-in name with another template, and for a
    system prompt that the template has no place for.
    """
    known = CONVERSATIONS.get(name)
    if known is None:
        if template is None:
            choice = ", ".join(CONVERSATIONS)
            raise UserError(f"conversation {name!r} is unknown: choose one of {choice}, or give it a template")
        return Conversation(name, system, template)
    if template not in (None, known.template):
        raise UserError(f"conversation {name} is built in with another template: leave template out, or rename it")
    return known if system is None else replace(known, system=system)


def _literal(text: str) -> str:
    """`text` as jinja takes it; it reads escapes as Python does, which knows no pairs of surrogates."""
    return json.dumps(text, ensure_ascii=False)


def _filled(template: str, values: dict[str, str]) -> str:
    # in one pass: what is put in may look like a place itself
    return _PLACE.sub(lambda place: values.get(place[0], place[0]), template)


_HELPFUL = "You are a helpful assistant."
_CHATML_TURN = "{answer}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
_QWEN_QUESTION = "<|im_start|>user\n<|vision_start|><image><|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
_GEMMA_TURN = "{text}<end_of_turn>\n<start_of_turn>model\n"
_GEMMA_NEXT = f"<end_of_turn>\n<start_of_turn>user\n{_GEMMA_TURN}"
_NO_THOUGHTS = "<think>\n\n</think>\n\n"
_IDEFICS_TURN = "{text}<end_of_utterance>\nAssistant:"
_IDEFICS_NEXT = f"<end_of_utterance>\nUser: {_IDEFICS_TURN}"

CONVERSATIONS: dict[str, Conversation] = {
    conversation.name: conversation
    for conversation in (
        Conversation(
            "vicuna_v1",
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
            "helpful, detailed, and polite answers to the user's questions.",
            "{system} USER: <image>\n{text} ASSISTANT:",
            " {answer}</s>USER: {text} ASSISTANT:",
        ),
        Conversation("qwen", _HELPFUL, "<|im_start|>system\n{system}<|im_end|>\n" + _QWEN_QUESTION, _CHATML_TURN),
        Conversation("qwen3", None, _QWEN_QUESTION, _CHATML_TURN),
        Conversation("qwen3_5", None, _QWEN_QUESTION + _NO_THOUGHTS, _CHATML_TURN + _NO_THOUGHTS),
        Conversation(
            "glm",
            None,
            "[gMASK]<sop><|user|>\n<|begin_of_image|><image><|end_of_image|>{text}<|assistant|>\n",
            "{answer}<|user|>\n{text}<|assistant|>\n",
        ),
        Conversation(
            "chatml",
            _HELPFUL,
            "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<image>\n{text}<|im_end|>\n"
            "<|im_start|>assistant\n",
            _CHATML_TURN,
        ),
        Conversation("mistral_instruct", None, "[INST] <image>\n{text} [/INST]", " {answer} </s>[INST] {text} [/INST]"),
        Conversation("mistral", None, "[INST]<image>{text}[/INST]", "{answer}</s>[INST]{text}[/INST]"),
        Conversation(
            "chatml_direct",
            "Answer the questions.",
            "<|im_start|>system\n{system}<|im_end|><|im_start|>user\n<image>\n{text}<|im_end|><|im_start|>assistant\n",
            "{answer}<|im_end|><|im_start|>user\n{text}<|im_end|><|im_start|>assistant\n",
        ),
        Conversation("gemma", None, f"<start_of_turn>user\n<image>{_GEMMA_TURN}", f"{{answer}}{_GEMMA_NEXT}"),
        Conversation(
            "gemma4",
            None,
            "<|turn>user\n<image>{text}<turn|>\n<|turn>model\n",
            "{answer}<turn|>\n<|turn>user\n{text}<turn|>\n<|turn>model\n",
        ),
        Conversation("paligemma", None, "<image>{text}"),
        Conversation("idefics3", None, f"User:<image>{_IDEFICS_TURN}", f" {{answer}}{_IDEFICS_NEXT}"),
        Conversation("smolvlm", None, f"<|im_start|>User:<image>{_IDEFICS_TURN}", f" {{answer}}{_IDEFICS_NEXT}"),
    )
}
"""The built-in ones, by name."""
