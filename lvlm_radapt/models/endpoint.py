"""An OpenAI-compatible endpoint: an image and a question in, a text out, whole or not at all."""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

from lvlm_radapt.utils.errors import Unfinished, UserError
from lvlm_radapt.utils.printing import one_line

if TYPE_CHECKING:
    from openai import OpenAI

KEY_VARIABLE = "OPENAI_API_KEY"
HALVES = 3
"""How often a half answer is asked for again. Rate limits and lost connections are the client's own business."""
PAUSE = 0.5
"""Seconds before a half answer is asked for again. Each further pause is twice as long."""
FILTERED = "content_filter"
"""How an answer ends that the endpoint's own filter cut off or refused."""
_CHANGING = ("created", "permission")  # servers make these anew for every answer
_SAID = 200  # characters of an endpoint's own words that a message shows


class Reply(BaseModel):
    """An answer, and what it cost. finish: why it ended; model: what the endpoint says has answered; retries: how often
    the request was sent again; greedy: whether temperature 0 was taken."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    text: str
    finish: str
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retries: int = 0
    greedy: bool = True


class AnswerStore(Protocol):
    """Where answers are kept as they come, by a key of what was asked."""

    @property
    def paid(self) -> list[Reply]:
        """All answers there ever were, those that were dropped too."""
        ...

    @property
    def salt(self) -> str:
        """A random text: what is asked under it is not what another run asks. `drop` draws another one."""
        ...

    def __contains__(self, key: object) -> bool: ...

    def __getitem__(self, key: str, /) -> Reply: ...

    def __setitem__(self, key: str, reply: Reply, /) -> None: ...

    def drop(self, keys: Iterable[str]) -> None:
        """Count these answers no more."""
        ...


class Endpoint:
    """A model behind a chat-completions endpoint. `client` retries, waits and holds the key.

    Raises UserError for what a user must mend (no endpoint, the key, the model's name, no images) and Unfinished for
    what may pass (rate limits, lost connections, half answers). No message holds the key. Safe to use from threads.
    """

    def __init__(self, client: OpenAI, model: str) -> None:
        self._client = client
        self.model = model
        self.url = str(client.base_url).rstrip("/")
        self._names: list[str] = []
        # what not every endpoint takes: where it is refused by name, it is left out or replaced
        self._length = "max_tokens"
        self._greedy: dict[str, Any] = {"temperature": 0}

    def fingerprint(self) -> str | None:
        """16 hexadecimal digits of what /models says of this model, or of all where it does not list it. None where
        there is no such page."""
        import openai

        with self._told():
            try:
                listed = [entry.to_dict() for entry in self._client.with_options(max_retries=2).models.list().data]
            except openai.NotFoundError:
                return None
            except (TypeError, AttributeError, ValueError):  # another page than a list of models
                return None
        self._names = sorted(str(entry.get("id")) for entry in listed)
        own = [entry for entry in listed if entry.get("id") == self.model]
        lasting = [{k: v for k, v in entry.items() if k not in _CHANGING} for entry in own] or self._names
        return hashlib.sha256(json.dumps(lasting, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def ask(self, turns: Sequence[str], png: bytes | None, most: int, *, once: str) -> Reply:
        """The answer, of at most `most` tokens, to a conversation: the user's words and the model's in turn. png: the
        image in front of the first words; None for none. once: the same text for the same request, so that an endpoint
        which reads the header Idempotency-Key answers and bills it once, however often it is sent."""
        messages: list[dict[str, Any]] = [
            {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)
        ]
        if png is not None:
            url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            image = {"type": "image_url", "image_url": {"url": url}}
            messages[0]["content"] = [image, {"type": "text", "text": turns[0]}]
        sent, why = 0, ""
        for attempt in range(HALVES):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            with self._told():
                answer, retries = self._create(messages, most, f"{once}/{attempt}")
            sent += retries + 1
            found = _whole(answer)
            if isinstance(found, Reply):
                return found.model_copy(update={"retries": sent - 1, "greedy": bool(self._greedy)})
            why = found
        raise Unfinished(f"{self.url} gave {HALVES} times a half answer ({why})")

    def _create(self, messages: list[dict[str, Any]], most: int, once: str) -> tuple[dict[str, Any] | str, int]:
        """The answer as JSON, or why it is none, and how often it was sent again."""
        import openai

        while True:
            settings = {"model": self.model, "messages": messages, self._length: most, **self._greedy}
            key = hashlib.sha256(f"{once}/{sorted(settings)}".encode()).hexdigest()  # no key may stand for two bodies
            try:
                raw = self._client.chat.completions.with_raw_response.create(
                    **settings, extra_headers={"Idempotency-Key": key}
                )
            except openai.BadRequestError as error:
                if getattr(error, "code", None) == FILTERED:
                    return {"choices": [{"message": {"content": ""}, "finish_reason": FILTERED}]}, 0
                if not self._adapted(settings, error):
                    raise
                continue
            try:
                answer = json.loads(raw.content)
            except ValueError:
                return "no JSON", raw.retries_taken
            return answer if isinstance(answer, dict) else "no JSON object", raw.retries_taken

    def _adapted(self, settings: Mapping[str, Any], error: Any) -> bool:
        """Whether the endpoint refused one of these settings that it may be asked without."""
        about = f"{getattr(error, 'param', '')} {error}"
        if "max_tokens" in settings and "max_completion_tokens" in about:
            self._length = "max_completion_tokens"
            return True
        if "temperature" in settings and "temperature" in about:
            self._greedy = {}
            return True
        return False

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Inside, the client's errors become ours, in one line without the key."""
        import openai

        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(
                f"{self.url} refuses the key ({self._words(error)}): set {KEY_VARIABLE} to one that it takes"
            ) from None
        except openai.NotFoundError as error:
            raise UserError(
                f"{self.url} has no model {self.model!r}, or is no whole base URL, as http://HOST:8000/v1 is one "
                f"({self._words(error)}){self._near()}"
            ) from None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise UserError(f"{self.url} refuses the request: {self._words(error)}") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Unreachable(f"{self.url} cannot be reached ({self._words(cause)})") from None
        except openai.OpenAIError as error:
            raise Unfinished(f"{self.url}: {self._words(error)}") from None

    def _near(self) -> str:
        near = difflib.get_close_matches(self.model, self._names, n=1, cutoff=0.0)
        return f": did you mean openai:{near[0]}?" if near else ""

    def _words(self, error: BaseException) -> str:
        body = getattr(error, "body", None)
        said = body.get("message") if isinstance(body, dict) else None
        text = one_line(str(said or error or type(error).__name__))
        key = self._client.api_key
        return (text.replace(key, "[the key]") if key else text)[:_SAID]


class Unreachable(Unfinished):
    """No connection, after all retries."""


def _whole(answer: dict[str, Any] | str) -> Reply | str:
    """The reply in a chat completion; why it is none where something of it is missing."""
    if isinstance(answer, str):
        return answer
    try:
        choice = answer["choices"][0]
        message, finish = choice["message"], choice["finish_reason"]
        text = message["content"]
    except (LookupError, TypeError):
        return "it has no choice with a message and a finish_reason"
    if not isinstance(finish, str):
        return "it does not say why it ended"
    usage = answer.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    asked, said = (count if isinstance(count, int) else None for count in counts)
    model = answer.get("model")
    return Reply(
        text=(text or "").strip() if isinstance(text, str | None) else str(text),
        finish=finish,
        model=model if isinstance(model, str) else None,
        prompt_tokens=asked,
        completion_tokens=said,
    )
