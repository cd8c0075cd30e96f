"""The web chat's visitors: each has a session, settings of the defence and a view of its own; they share one model."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from attacks.eight_bit import from_8bit
from lvlm_radapt.chat.commands import Attack, Side
from lvlm_radapt.chat.session import Attacked, Session, Step
from lvlm_radapt.chat.web_guard import Upload
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import inject, injected_anchor, injected_white, remove
from lvlm_radapt.defences.radapt.modules import GaussianFilter
from lvlm_radapt.models.base import LVLM
from lvlm_radapt.models.robustify import robustify
from lvlm_radapt.towers.base import normalised_white
from lvlm_radapt.utils.errors import UserError, with_notes
from lvlm_radapt.utils.images import open_image

FORMATS = ("PNG", "JPEG", "WEBP")
LONGEST_QUESTION = 2000  # characters
_MOST_PIXELS = 25_000_000
_MOST_WAITING = 16  # attacks
_PULSE = 0.1  # seconds between two looks at the work
_PATIENCE = 2.0  # seconds that new work waits for work that is about to end


class Engine:
    """The model that all visitors share. A model without a defence gets the training-free one.

    Filter and anchor are hooks of the model, not of a thread. So one visitor's pass ends before another's begins.
    Attacks give way after every step.
    """

    def __init__(self, model: LVLM) -> None:
        self.model = model
        if model.radapt is None:
            robustify(model)
        assert model.radapt is not None
        self.settings: RAdaptConfig = model.radapt
        self.attacks: list[Visitor] = []
        """Whose attacks are served, in this order, one at a time."""
        self.decoder = ThreadPoolExecutor(1, "decoder")
        """Decodes and scales all images, one at a time, as each thread keeps memory that it has freed."""
        self.lock = threading.Lock()
        self._white = normalised_white(model.image_mean, model.image_std)
        # the tower itself makes an anchor that differs from grid to grid
        self._anchor = injected_anchor(model.hf) if injected_white(model.hf) is None else None

    @contextmanager
    def turn(self, side: Side, settings: RAdaptConfig) -> Iterator[None]:
        """Inside, nobody else uses the model. It has no defence, or the one with these settings."""
        with self.lock:
            if side == "plain":
                with self.model.undefended():
                    yield
                return
            if settings != self.model.radapt:
                remove(self.model.hf)
                inject(self.model.hf, settings, self._anchor, white=self._white)
            yield


@dataclasses.dataclass
class View:
    """What there is to be seen beside the session itself. Images: uint8 [3, H, W]."""

    notice: str = ""
    stage: Literal["waiting", "asking", "attacking", "done", "stopped"] = "done"
    ahead: int = 0
    """How many attacks come before the visitor's own."""
    order: Attack | None = None
    losses: list[float] = dataclasses.field(default_factory=list)
    """Of the last attack, by step."""
    point: Tensor | None = None
    """Where the attack stands that is running."""
    found: tuple[Attack, Attacked] | None = None
    """What made the session's attacked image."""
    asked: str = ""
    again: bool = False
    """The question that is being answered, and whether it is the last one once more."""
    said: dict[Side, str] = dataclasses.field(default_factory=dict)
    """Its answers so far."""
    tuned: tuple[str, str] | None = None
    """The question, and the defended model's answer with the settings as they are now."""


class Visitor(Session):
    """A session and its view. `asking`, `attacking` and so on are generators: each yields when there is something new
    to be seen. One of them runs at a time; another is refused with a notice."""

    def __init__(self, engine: Engine, *, max_new_tokens: int) -> None:
        with engine.lock:  # while settings change, the model has no defence for a moment
            super().__init__(engine.model, compare=True, max_new_tokens=max_new_tokens)
        self.engine = engine
        self.settings = engine.settings
        self.view = View()
        self.working = False
        self._one = threading.Lock()
        self._stop = threading.Event()

    @property
    def defence(self) -> RAdaptConfig:
        return self.settings

    @property
    def clean(self) -> Tensor | None:
        """uint8 [3, H, W]: the image on the model's canvas."""
        return None if self._clean is None else _bytes(self._clean.x[0])

    @property
    def attacked(self) -> Tensor | None:
        """uint8 [3, H, W]: what the attack made of it."""
        return None if self._attacked is None else self._attacked[0].cpu()

    def filtered(self) -> Tensor | None:
        """uint8 [3, H, W]: the conversation's image behind the filter."""
        now = self.clean if self.attacked is None else self.attacked
        cutoff = self.settings.cutoff
        if now is None or cutoff is None:
            return now
        return _bytes(
            GaussianFilter(cutoff, self.settings.cutoff_unit, self.settings.boundary)(from_8bit(now[None]))[0]
        )

    def stop(self) -> None:
        """End the running work after its step or token."""
        self._stop.set()

    def showing(self, image: Image.Image, name: str) -> Iterator[None]:
        """Begin anew with this image."""
        return self._beginning(lambda: (image, name))

    def uploading(self, take: Callable[[], Upload]) -> Iterator[None]:
        """Begin anew with an image that somebody sent."""

        def decode() -> tuple[Image.Image, str]:
            sent = take()  # only now, so that few wait in memory
            return open_image(sent, FORMATS, _MOST_PIXELS), sent.name

        return self._beginning(decode)

    def asking(self, question: str) -> Iterator[None]:
        """Both models' answers."""
        return self._do(lambda: self._answer(_checked(question)))

    def attacking(self, order: Attack, question: str) -> Iterator[None]:
        """Attack the image and ask again. An attack on an answer asks the question first, if none was asked yet."""

        def work() -> None:
            if self.clean is None:
                raise UserError("choose an image first")
            if order.reads_answer and not self.exchanges:
                self._answer(_checked(question))
            self._attack(order)
            if self.exchanges:
                self._answer(None)

        return self._do(work)

    def tuning(self, cutoff: float | None, alpha: float, mix: Literal["interpolate", "add"]) -> Iterator[None]:
        """Other settings of the defence, and the defended model's answer with them to the last question."""

        def work() -> None:
            self.settings = dataclasses.replace(self.settings, cutoff=cutoff, alpha=alpha, mix=mix)
            if self.exchanges:
                *before, last = self.exchanges

                def told(text: str) -> None:
                    self.view.tuned = (last.question, text)
                    self._check()

                told(self._say("defended", last.question, before, told))

        return self._do(work)

    def resetting(self) -> Iterator[None]:
        """Forget the conversation and the attack."""

        def work() -> None:
            self.reset()
            self.view = View()

        return self._do(work)

    def _as(self, side: Side) -> AbstractContextManager[object]:
        return self.engine.turn(side, self.settings)

    def _beginning(self, decode: Callable[[], tuple[Image.Image, str]]) -> Iterator[None]:
        def work() -> None:
            self.engine.decoder.submit(lambda: self.begin(*decode())).result()
            self.view = View()

        return self._do(work)

    def _answer(self, question: str | None) -> None:
        """Ask this, or the last question again."""
        view = self.view
        view.stage, view.said = "asking", {}
        view.again, view.asked = question is None, question or self.exchanges[-1].question

        def told(side: Side, text: str) -> None:
            view.said = {**view.said, side: text}
            self._check()

        try:
            if question is None:
                self.ask_again(told)
            else:
                self.ask(question, told)
        finally:
            view.stage, view.said = "done", {}

    def _attack(self, order: Attack) -> None:
        view, line = self.view, self.engine.attacks
        if len(line) >= _MOST_WAITING:
            raise UserError(f"{len(line)} attacks are waiting already: try again later")
        line.append(self)
        view.stage, view.order, view.losses = "waiting", order, []

        def told(step: Step) -> None:
            view.losses = [*view.losses, step.loss]
            view.point = _bytes(step.x[0])
            self._check()

        try:
            while (ahead := line.index(self)) > 0:
                view.ahead = ahead
                self._check()
                self._stop.wait(_PULSE)
            view.stage = "attacking"
            view.found = order, self.attack(order, told)
            view.stage = "done"
        except BaseException:
            view.stage = "stopped"
            raise
        finally:
            line.remove(self)
            view.point = None

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Halt

    def _do(self, work: Callable[[], None]) -> Iterator[None]:
        if not self._one.acquire(timeout=_PATIENCE):
            self.view.notice = "one thing at a time: wait for the work in hand, or stop it"
            yield
            return
        self._stop.clear()
        self.view.notice, self.working = "", True

        def run() -> None:
            notice = "an error of the program: the server's terminal tells more"
            try:
                notice = _in_words(work)
            finally:
                self.view.notice = notice or self.view.notice
                self.working = False
                self._one.release()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                yield
                thread.join(_PULSE)
            yield
        except GeneratorExit:  # the page was closed
            self.stop()
            raise


class _Halt(Exception):
    """The visitor has pressed stop."""


def _bytes(x: Tensor) -> Tensor:
    return (x.detach().cpu().double().clamp(0, 1) * 255).round().byte()


def _in_words(work: Callable[[], None]) -> str:
    """What there is to say after the work: nothing, if all went well."""
    try:
        work()
    except _Halt:
        return "stopped"
    except UserError as error:
        return " ".join(str(error).split())
    except torch.OutOfMemoryError as error:
        what = with_notes("the accelerator's memory does not suffice", error)
        return f"{what}: begin a new conversation, or load the model with --max-pixels (Qwen) or --quantize"
    return ""


def _checked(question: str) -> str:
    question = question.strip()
    if not question:
        raise UserError("ask something first")
    if len(question) > LONGEST_QUESTION:
        raise UserError(f"a question has at most {LONGEST_QUESTION} characters, this one {len(question)}")
    return question
