"""A model behind an endpoint: it answers, and gives neither losses nor gradients."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, NoReturn

import torch
from PIL import Image

from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel
from lvlm_radapt.models.conversations import Prompt, turns
from lvlm_radapt.models.endpoint import FILTERED, AnswerStore, Endpoint, Reply
from lvlm_radapt.utils.errors import Unfinished, UserError
from lvlm_radapt.utils.images import png_bytes

_PROBE = "What is in the image?"


class ApiModel(LVLM):
    """The model behind `endpoint`, on the input canvas of `canvas_of`, the surrogate.

    An image is sent as the PNG file that a batch names (`PixelBatch.with_files`), byte for byte. Without one its 8-bit
    pixels are sent, in the same encoding. Every answer goes to the store at once, and none that is there is asked for
    again. parallel: requests at a time, at most. price: dollars for a million tokens in and out.

    The endpoint applies its own conversation template. UserError for a canvas that is a stack of views.
    """

    answers_only: ClassVar[bool] = True

    def __init__(
        self,
        endpoint: Endpoint,
        canvas_of: PixelModel,
        *,
        name: str,
        parallel: int = 8,
        price: tuple[float, float] | None = None,
    ) -> None:
        if canvas_of.views_apart:
            raise UserError(
                f"--surrogate {canvas_of.name} lays an image out as a stack of views, which is no picture: choose one "
                f"with a plain canvas for {name}"
            )
        self.hf = None
        self.name, self.endpoint, self.canvas_of = name, endpoint, canvas_of
        self.parallel, self.price = parallel, price
        self.geometry, self.image_backend = canvas_of.geometry, canvas_of.image_backend
        self.tower_name = self.revision = self.tuned_from = self.attached = None
        self.max_pixels = canvas_of.max_pixels
        self.eot_draws = 1
        self.fingerprint = endpoint.fingerprint()
        self._store: AnswerStore = _Memory()

    def canvas(self, image: Image.Image) -> tuple[int, int]:
        return self.canvas_of.canvas(image)

    def pixels(self, images: Sequence[Image.Image]) -> PixelBatch:
        return self.canvas_of.pixels(images)

    def adopted(self, batch: PixelBatch) -> PixelBatch | None:
        return batch

    @property
    def device(self) -> torch.device:
        """Where the canvas is made."""
        return self.canvas_of.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the surrogate: what the endpoint computes in is not known."""
        return self.canvas_of.dtype

    @property
    def radapt(self) -> None:
        """None: what stands behind an endpoint cannot be seen."""
        return None

    def size_words(self, batch: PixelBatch) -> str:
        return PixelModel.size_words(self, batch)

    def conversation_settings(self) -> None:
        """None: the endpoint applies its own template."""
        return

    def check_texts(self, prompt: Prompt, targets: Iterable[str]) -> None:
        """Any text can be sent."""

    def count_tokens(self, prompt: Prompt, target: str) -> None:
        """None: the endpoint's tokenizer is not here."""
        return

    def facts(self) -> dict[str, Any]:
        """What run.json says of it in place of weights."""
        return {
            "endpoint": self.endpoint.url,
            "fingerprint": self.fingerprint,
            "canvas_of": self.canvas_of.label,
            "dtype": None,
            "attn": None,
            "device": "endpoint",
        }

    def remarks(self) -> list[str]:
        said = [f"{self.name} answers at {self.endpoint.url}, in its own conversation template"]
        if self.fingerprint is None:
            said.append("the endpoint lists no models: a change of its model is not noticed")
        return said

    def keep_answers(self, store: AnswerStore) -> None:
        """Use `store` from now on, and find out whether the endpoint sees images at all. UserError where not."""
        self._store = store
        blank = self.pixels([Image.new("RGB", (224, 224), "white")])
        without, seen = self._answers([(_PROBE, None), (_PROBE, _png(blank))], most=1)
        if None not in (without.prompt_tokens, seen.prompt_tokens) and seen.prompt_tokens == without.prompt_tokens:
            raise UserError(
                f"{self.endpoint.url} counts {seen.prompt_tokens} tokens for a question with an image and without: "
                f"{self.name} does not see images, serve one that does"
            )

    def usage(self) -> dict[str, Any]:
        """What the run's answers cost so far, by the endpoint's own counts."""
        paid = self._store.paid
        tokens = [sum(getattr(one, f"{what}_tokens") or 0 for one in paid) for what in ("prompt", "completion")]
        uncounted = sum(one.prompt_tokens is None for one in paid)
        told: dict[str, Any] = {
            "requests": len(paid),
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "answers_without_counts": uncounted,
            "sent_again": sum(one.retries for one in paid),
            "filtered": sum(one.finish == FILTERED for one in paid),
            "drawn": sum(not one.greedy for one in paid),
            "answered_as": sorted({one.model for one in paid if one.model is not None}),
        }
        if self.price is not None:
            cost = sum(count * price for count, price in zip(tokens, self.price, strict=True)) / 1e6
            told |= {"price_per_million": list(self.price), "cost": round(cost, 6)}
        return told

    @torch.no_grad()
    def generate(
        self,
        batch: PixelBatch,
        prompts: Sequence[Prompt],
        max_new_tokens: int = 20,
        on_text: Callable[[list[str]], None] | None = None,
    ) -> list[str]:
        """The endpoint's answers. UserError and Unfinished as for `Endpoint`; what was answered is in the store."""
        self._check_count(batch, prompts=prompts)
        files = [meta.get("file") for meta in batch.meta]
        asked = [
            (prompt, _png(batch[i]) if file is None else file.read_bytes())
            for i, (prompt, file) in enumerate(zip(prompts, files, strict=True))
        ]
        said = [reply.text for reply in self._answers(asked, most=max_new_tokens)]
        if on_text is not None:
            on_text(said)
        return said

    def _answers(self, asked: Sequence[tuple[Prompt, bytes | None]], most: int) -> list[Reply]:
        keys = [self._key(prompt, png, most) for prompt, png in asked]
        todo = {key: one for key, one in zip(keys, asked, strict=True) if key not in self._store}
        if todo:
            self._fetch(todo, most)
        return [self._store[key] for key in keys]

    def _fetch(self, todo: dict[str, tuple[Prompt, bytes | None]], most: int) -> None:
        """Ask for these; those that are answered are in the store, whatever happens to others."""

        def one(key: str, prompt: Prompt, png: bytes | None) -> None:
            self._store[key] = self.endpoint.ask(turns(prompt), png, most, once=f"{self._store.salt}/{key}")

        pool = ThreadPoolExecutor(self.parallel, thread_name_prefix="endpoint")
        try:
            futures = [pool.submit(partial(one, key, *what)) for key, what in todo.items()]
            errors = _first_errors(futures)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        self._check_unchanged(todo)
        if errors:
            left = sum(key not in self._store for key in todo)
            error = errors[0]
            if not isinstance(error, UserError | Unfinished):
                raise error
            raise type(error)(f"{error}; {left} of {len(todo)} requests are open, all answers are saved: --resume")

    def _check_unchanged(self, keys: Iterable[str]) -> None:
        """Unfinished where another model stands behind the endpoint now: these answers may be its own, and go."""
        with suppress(Unfinished):  # no list to be had now: what was answered before counts
            now = self.endpoint.fingerprint()
            if now == self.fingerprint:
                return
            self._store.drop(keys)
            raise UserError(
                f"{self.endpoint.url} changed its model during the run (/models: {self.fingerprint}, now {now}): serve "
                f"the first one and go on with --resume, or begin another run; the last answers are not counted"
            )

    def _key(self, prompt: Prompt, png: bytes | None, most: int) -> str:
        parts = [self.endpoint.model, str(most), "" if png is None else hashlib.sha256(png).hexdigest(), *turns(prompt)]
        return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()

    def _inside(self, *args: Any, **more: Any) -> NoReturn:
        raise UserError(f"{self.name} gives answers alone: neither its loss nor its network can be had")

    tower = property(_inside)
    tower_input = features = loss = image_embeds = image_tokens = embed_prompts = _inside
    _positions = _canvas_bytes = _inside


class _Memory(dict[str, Reply]):
    """Answers of a model that is asked outside of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.salt = secrets.token_hex(8)

    @property
    def paid(self) -> list[Reply]:
        return list(self.values())

    def drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.pop(key, None)
        self.salt = secrets.token_hex(8)


def _first_errors(futures: Sequence[Future[None]]) -> list[Exception]:
    """The errors of those that failed; once one has, those that have not begun do not begin."""
    errors: list[Exception] = []
    for future in futures:
        try:
            if not future.cancelled():
                future.result()
        except Exception as error:
            errors.append(error)
            for other in futures:
                other.cancel()
    return errors


def _png(batch: PixelBatch) -> bytes:
    """The one image of the batch, as a run folder would keep it."""
    return png_bytes((batch.x[0] * 255).round().to("cpu").byte().numpy())
