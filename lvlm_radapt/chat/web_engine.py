"""One model that many people chat with at once: whose turn it is, and each one's own settings of the defence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor

from attacks.eight_bit import from_8bit
from lvlm_radapt.chat.commands import Side
from lvlm_radapt.chat.session import Session
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import inject, injected_anchor, injected_white, remove
from lvlm_radapt.defences.radapt.modules import GaussianFilter
from lvlm_radapt.models.base import LVLM
from lvlm_radapt.models.robustify import robustify
from lvlm_radapt.towers.base import normalised_white
from lvlm_radapt.utils.errors import UserError

_LONGEST_LINE = 16


class Engine:
    """The model, its defence and the line of attacks. A model without a defence gets the training-free one.

    Filter and anchor are hooks, which belong to the model and not to a thread: a pass with one's settings ends before
    a pass with another's begins. Attacks give way after every step.
    """

    def __init__(self, model: LVLM) -> None:
        self.model = model
        self.given_defence = model.radapt is None
        if model.radapt is None:
            robustify(model)
        assert model.radapt is not None
        self.settings: RAdaptConfig = model.radapt
        self.attacks = Line(_LONGEST_LINE)
        self.decoder = ThreadPoolExecutor(1, "decoder")
        """Decodes and scales all images: one at a time, and in one thread, as each thread keeps memory it has freed."""
        self._white = normalised_white(model.image_mean, model.image_std)
        # an anchor that is other on each grid is taken from the tower itself
        self._anchor = injected_anchor(model.hf) if injected_white(model.hf) is None else None
        self._turn = threading.Lock()

    def session(self, *, max_new_tokens: int) -> WebSession:
        """A new user's chat."""
        with self._turn:  # between taking a defence out and putting another in, the model has none
            return WebSession(self, max_new_tokens=max_new_tokens)

    @contextmanager
    def turn(self, side: Side, settings: RAdaptConfig) -> Iterator[None]:
        """Inside, nobody else uses the model, and it has no defence, or the one with these settings."""
        with self._turn:
            if side == "plain":
                with self.model.undefended():
                    yield
            else:
                self._set(settings)
                yield

    def _set(self, settings: RAdaptConfig) -> None:
        if settings != self.model.radapt:
            remove(self.model.hf)
            inject(self.model.hf, settings, self._anchor, white=self._white)


class WebSession(Session):
    """A chat of one of the engine's users, made by `Engine.session`; `settings` are those of the defence that user
    talks to."""

    def __init__(self, engine: Engine, *, max_new_tokens: int) -> None:
        super().__init__(engine.model, compare=True, max_new_tokens=max_new_tokens)
        self.engine = engine
        self.settings = engine.settings

    @property
    def defence(self) -> RAdaptConfig:
        return self.settings

    @property
    def clean(self) -> Tensor | None:
        """uint8 [3, H, W]: the image on the model's canvas."""
        return None if self._clean is None else (self._clean.x[0].cpu().double() * 255).round().byte()

    @property
    def attacked(self) -> Tensor | None:
        """uint8 [3, H, W]: what the attack made of it."""
        return None if self._attacked is None else self._attacked[0].cpu()

    def filtered(self) -> Tensor | None:
        """uint8 [3, H, W]: the image of the conversation behind the defence's filter."""
        now = self.clean if self.attacked is None else self.attacked
        cutoff = self.settings.cutoff
        if now is None or cutoff is None:
            return now
        blur = GaussianFilter(cutoff, self.settings.cutoff_unit, self.settings.boundary)
        return (blur(from_8bit(now[None]))[0].clamp(0, 1) * 255).round().byte()

    def answer_now(self, on_text: Callable[[str], None]) -> str:
        """What the defended model says to the last question as things are, outside the conversation."""
        *before, last = self.exchanges
        return self._say("defended", last.question, before, on_text)

    def _as(self, side: Side) -> AbstractContextManager[object]:
        return self.engine.turn(side, self.settings)


class Line:
    """Who comes first is served first, one at a time."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._waiting: list[object] = []
        self._lock = threading.Lock()

    def join(self) -> object:
        """A place at the end; UserError where the line is too long already."""
        with self._lock:
            if len(self._waiting) >= self._longest:
                raise UserError(f"{len(self._waiting)} attacks are waiting already: try again later")
            place = object()
            self._waiting.append(place)
            return place

    def ahead(self, place: object) -> int:
        """How many come before."""
        with self._lock:
            return self._waiting.index(place)

    def leave(self, place: object) -> None:
        """Give the place up, served or not."""
        with self._lock:
            self._waiting.remove(place)
