"""One user of the web chat: what is asked of the session, and what there is to be seen meanwhile."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from lvlm_radapt.chat.commands import Attack, Side
from lvlm_radapt.chat.session import Attacked, Step
from lvlm_radapt.chat.web_engine import Engine
from lvlm_radapt.chat.web_uploads import MOST_PIXELS, Upload
from lvlm_radapt.utils.errors import UserError, with_notes
from lvlm_radapt.utils.images import open_image

FORMATS = ("PNG", "JPEG", "WEBP")
LONGEST_QUESTION = 2000  # characters
_PULSE = 0.1  # seconds between two looks at work in hand
_PATIENCE = 2.0  # seconds that new work waits for the work in hand, which mostly is about to end

Stage = Literal["waiting", "asking", "attacking", "done", "stopped"]


class _Halt(Exception):
    """The user has pressed stop."""


@dataclasses.dataclass
class View:
    """What there is to be seen beside the session itself."""

    notice: str = ""
    stage: Stage = "done"
    ahead: int = 0
    """How many attacks come before the user's own."""
    order: Attack | None = None
    losses: list[float] = dataclasses.field(default_factory=list)
    """Of the last attack, by step."""
    point: Tensor | None = None
    """uint8 [3, H, W], where the attack in hand stands."""
    found: tuple[Attack, Attacked] | None = None
    """What made the session's attacked image."""
    asked: str = ""
    again: bool = False
    """The question that is being answered, and whether it is the last one once more."""
    said: dict[Side, str] = dataclasses.field(default_factory=dict)
    """Its answers as far as they go."""
    tuned: tuple[str, str] | None = None
    """The question and the defended model's answer when the knobs were turned last."""


class User:
    """A session and its view. What takes time is a generator that yields whenever there is something new to be seen;
    one piece of work at a time, and what comes meanwhile is refused with a notice."""

    def __init__(self, engine: Engine, *, max_new_tokens: int) -> None:
        self.engine = engine
        self.session = engine.session(max_new_tokens=max_new_tokens)
        self.view = View()
        self.working = False
        self._one = threading.Lock()
        self._stop = threading.Event()

    def stop(self) -> None:
        """End the work in hand after the step, or the token, that is being made."""
        self._stop.set()

    def show(self, image: Image.Image, name: str) -> Iterator[None]:
        """Begin anew, with this image."""
        return self._begin(lambda: (image, name))

    def upload(self, take: Callable[[], Upload]) -> Iterator[None]:
        """Begin anew, with an image somebody sent."""

        def decode() -> tuple[Image.Image, str]:
            sent = take()  # only now, so that few wait in memory
            return open_image(sent, FORMATS, MOST_PIXELS), sent.name

        return self._begin(decode)

    def ask(self, question: str) -> Iterator[None]:
        """Both models' answers."""
        return self._do(lambda: self._answer(_checked(question)))

    def attack(self, order: Attack, question: str) -> Iterator[None]:
        """Attack the image and ask again; an attack on an answer begins with the question, if none was asked yet."""

        def work() -> None:
            if self.session.clean is None:
                raise UserError("choose an image first")
            if order.reads_answer and not self.session.exchanges:
                self._answer(_checked(question))
            self._attack(order)
            if self.session.exchanges:
                self._answer(None)

        return self._do(work)

    def tune(self, cutoff: float | None, alpha: float, mix: Literal["interpolate", "add"]) -> Iterator[None]:
        """Other settings of the defence, and what the defended model says with them to the last question."""

        def work() -> None:
            session = self.session
            session.settings = dataclasses.replace(session.settings, cutoff=cutoff, alpha=alpha, mix=mix)
            if session.exchanges:
                question = session.exchanges[-1].question

                def told(text: str) -> None:
                    self.view.tuned = (question, text)
                    self._check()

                told(session.answer_now(told))

        return self._do(work)

    def reset(self) -> Iterator[None]:
        """Forget the conversation and the attack."""

        def work() -> None:
            self.session.reset()
            self.view = View()

        return self._do(work)

    def _begin(self, decode: Callable[[], tuple[Image.Image, str]]) -> Iterator[None]:
        def work() -> None:
            self.engine.decoder.submit(lambda: self.session.begin(*decode())).result()
            self.view = View()

        return self._do(work)

    def _answer(self, question: str | None) -> None:
        view, session = self.view, self.session
        view.stage, view.said = "asking", {}
        view.again, view.asked = question is None, question or session.exchanges[-1].question

        def told(side: Side, text: str) -> None:
            view.said = {**view.said, side: text}
            self._check()

        try:
            if question is None:
                session.ask_again(told)
            else:
                session.ask(question, told)
        finally:
            view.stage, view.said = "done", {}

    def _attack(self, order: Attack) -> None:
        view, line = self.view, self.engine.attacks
        place = line.join()
        view.stage, view.order, view.losses = "waiting", order, []

        def told(step: Step) -> None:
            view.losses = [*view.losses, step.loss]
            view.point = (step.x[0].cpu() * 255).round().byte()
            self._check()

        try:
            while (ahead := line.ahead(place)) > 0:
                view.ahead = ahead
                self._check()
                self._stop.wait(_PULSE)
            view.stage = "attacking"
            view.found = order, self.session.attack(order, told)
            view.stage = "done"
        except BaseException:
            view.stage = "stopped"
            raise
        finally:
            line.leave(place)
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
        except GeneratorExit:  # nobody looks any more: the page was closed
            self.stop()
            raise


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
