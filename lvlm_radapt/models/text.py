"""From the user's words to token ids: conversation template, image placeholders, target tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any

from lvlm_radapt.models.conversations import CONVERSATIONS, Conversation, Prompt, turns
from lvlm_radapt.models.template_sandbox import rendered
from lvlm_radapt.utils.errors import UserError, first_sentence

PATIENCE = 10.0
"""Seconds that a chat template may take; the longest of known models takes milliseconds."""
_CHOOSE_ANOTHER = f"choose another, --conversation or a preset's conversation: {', '.join(CONVERSATIONS)}"


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The prompt as chat messages, the image in front of the first turn's words."""
    listed: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": text}]}
        for i, text in enumerate(turns(prompt))
    ]
    listed[0]["content"].insert(0, {"type": "image"})
    return listed


def renders_image(tokenizer: Any, chat_template: str, image_token: str) -> bool:
    """Whether this chat template writes a message's image; many text models' templates fail at one, or print it as
    Python does."""
    try:
        return image_token in rendered(tokenizer, chat_template, messages(""), PATIENCE)
    except Exception:  # a template is a program of the checkpoint's author
        return False


def renderer(
    tokenizer: Any, conversation: Conversation | None, *, image_token: str, chat_template: Any, model: str
) -> Callable[[Prompt], str]:
    """A function from a prompt to its whole text with one image token: in that conversation, or in the checkpoint's
    chat template where it is None. UserError, with the name `model`, where that template does not render: now, or at a
    later prompt."""
    if conversation is not None:
        return lambda prompt: conversation.render(prompt, image_token)

    def render(prompt: Prompt) -> str:
        try:
            return rendered(tokenizer, chat_template, messages(prompt), PATIENCE)
        except Exception as error:  # a template is a program of the checkpoint's author
            raise UserError(
                f"{model}: its chat template does not render an image and a question ({first_sentence(error)}): "
                f"{_CHOOSE_ANOTHER}"
            ) from error

    placed = render("").count(image_token)  # a template of no use is found before the first question
    if placed != 1:
        raise UserError(f"{model}: its chat template places {placed} images in a question about one: {_CHOOSE_ANOTHER}")
    return render


class PromptEncoder:
    """Token ids of prompts and targets.

    image_id: id of the placeholder that stands for one image position; mark: what `render` writes for the image;
    image_text: what is put in its place, with one image token for each run of them; prompt_end: what follows the
    rendered prompt; end_id: the token that ends an
    answer; target_prefix: what stands between prompt and answer (a space, or nothing after a line's end);
    placeholders: the strings that users' texts must not contain. conversation: the one that `render` writes; None
    for the checkpoint's own chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        render: Callable[[Prompt], str],
        *,
        image_id: int,
        mark: str,
        image_text: str,
        prompt_end: str,
        end_id: int,
        target_prefix: str,
        placeholders: Collection[str],
        conversation: Conversation | None = None,
    ) -> None:
        self.conversation = conversation
        self.image_id = image_id
        self.mark = mark
        self._image_token = tokenizer.convert_ids_to_tokens(image_id)
        self._image_text = image_text
        self._prompt_end = prompt_end
        self.end_id = end_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_id
        self._tokenizer = tokenizer
        self._render = render
        bos = tokenizer.bos_token
        self._opened = bos is not None and bos in self._written("", image_text)  # no tokenizer's work then
        self._prefix = target_prefix
        self._placeholders = tuple(placeholders)
        # an attack asks for the same texts at every step
        self._prompt_ids = lru_cache(maxsize=4096)(self._encode_prompt)
        self._target_ids = lru_cache(maxsize=4096)(self._encode_target)

    def prompt(self, prompt: Prompt, image_tokens: int, image_text: str | None = None) -> list[int]:
        """The whole prompt with `image_tokens` image placeholders, shared out evenly among those of `image_text`, the
        text that stands for the image: the encoder's own, unless one is given."""
        ids = self._prompt_ids(prompt, self._image_text if image_text is None else image_text)
        run = [self.image_id] * (image_tokens // ids.count(self.image_id))
        return [token for one in ids for token in (run if one == self.image_id else [one])]

    def target(self, prompt: Prompt, text: str) -> list[int]:
        """The answer's tokens after that prompt, end token last; outer whitespace of `text` is dropped."""
        return list(self._target_ids(prompt, text))

    def end_ids(self, generation_config: Any) -> set[int]:
        """All tokens at which generation stops: the end token and what the generation config adds."""
        extra = getattr(generation_config, "eos_token_id", None)
        extra = [] if extra is None else extra if isinstance(extra, list) else [extra]
        return {self.end_id, *(int(i) for i in extra)}

    def _encode_prompt(self, prompt: Prompt, image_text: str) -> tuple[int, ...]:
        for text in turns(prompt):
            self._refuse_placeholders(text)
        ids = self._tokens(self._written(prompt, image_text))
        placed, runs = ids.count(self.image_id), image_text.count(self._image_token)
        if placed != runs:
            raise UserError(
                f"the conversation template places {placed // runs} images in a prompt with one: {_CHOOSE_ANOTHER}"
            )
        return ids

    def _written(self, prompt: Prompt, image_text: str) -> str:
        return self._render(prompt).replace(self.mark, image_text) + self._prompt_end

    def _encode_target(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        self._refuse_placeholders(text)
        before = self._prompt_ids(prompt, self._image_text)
        answer = self._prefix + text.strip()
        whole = self._tokens(self._written(prompt, self._image_text) + answer)
        if whole[: len(before)] == before:
            ids = whole[len(before) :]
        else:  # a token would straddle the border; the prompt must stay what generation sees
            ids = tuple(self._tokenizer(answer, add_special_tokens=False)["input_ids"])
        return (*ids, self.end_id)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=not self._opened)["input_ids"])

    def _refuse_placeholders(self, text: str) -> None:
        for placeholder in self._placeholders:
            if placeholder in text:
                raise UserError(f"the text {text[:60]!r} contains the reserved token {placeholder}: remove it")
