"""The state of a chat: model, image, conversation, defence. It knows no terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks import apgd
from eval_tasks.data.images import open_image
from eval_tasks.eps import eps_text
from eval_tasks.quantise import from_8bit, to_8bit
from lvlm_radapt.chat.commands import Attack, Side
from lvlm_radapt.chat.transcript import write_transcript
from lvlm_radapt.config import RAdaptConfig
from lvlm_radapt.errors import UserError
from lvlm_radapt.models.base import LVLM, PixelBatch
from lvlm_radapt.models.robustify import robustify

OnText = Callable[[Side, str], None]
"""Gets an answer as far as it goes, after every token."""


@dataclass(frozen=True)
class Exchange:
    """A question, and what each side that was asked said to it; first: what it said before an attack on that answer."""

    question: str
    answers: dict[Side, str]
    first: dict[Side, str]


@dataclass(frozen=True)
class Attacked:
    """An attack's outcome. before, after: mean NLL (nats a token) of `text` on the clean image, and on the attacked
    one as 8-bit image; linf: the largest change, in 8-bit levels."""

    on: Side
    text: str
    before: float
    after: float
    linf: int
    zero_grad: bool


class Session:
    """A chat about one image, which belongs to the first turn.

    compare: the model answers twice, without its defence and with it; each side goes on from its own answers. A model
    without a defence gets the training-free one, for that or once it is switched on. events: all that happened, as
    JSON values.

    UserError, one line, leaves the state as it was; so does an answer or an attack that is interrupted.
    """

    def __init__(self, model: LVLM, *, compare: bool = False, max_new_tokens: int = 256) -> None:
        self.model = model
        self.compare = compare
        self.max_new_tokens = max_new_tokens
        self.given_defence = compare and model.radapt is None
        if self.given_defence:
            robustify(model)
        self.exchanges: list[Exchange] = []
        self.events: list[dict[str, Any]] = []
        self._defended = model.radapt is not None
        self._clean: PixelBatch | None = None
        self._attacked: Tensor | None = None  # uint8, what _clean's pixels were made into

    @property
    def sides(self) -> tuple[Side, ...]:
        """Who answers, in that order."""
        if self.compare:
            return ("plain", "defended")
        return ("defended",) if self._defended else ("plain",)

    @property
    def defence(self) -> RAdaptConfig | None:
        """The defence in the model, be it switched off; None where there is none."""
        return self.model.radapt

    @property
    def is_attacked(self) -> bool:
        return self._attacked is not None

    def show(self, path: Path) -> tuple[int, int]:
        """Begin a new conversation about this image; gives its canvas (height, width)."""
        image = open_image(path)
        self._clean = self.model.pixels([image])
        self._forget()
        high, wide = self._clean.x.shape[-2:]
        self._note("image", file=str(path), canvas=[high, wide])
        return high, wide

    def ask(self, question: str, on_text: OnText) -> Exchange:
        """Say `question` to the model; its answer, or both sides'."""
        answers = self._answers(question, self.exchanges, on_text)
        self.exchanges.append(Exchange(question, answers, answers))
        return self.exchanges[-1]

    def ask_again(self, on_text: OnText) -> Exchange:
        """The last question once more, on the image as it is now; the new answer takes the old one's place."""
        *before, last = self.exchanges
        again = Exchange(last.question, self._answers(last.question, before, on_text), last.first)
        self.exchanges[-1] = again
        return again

    def attack(self, order: Attack, tell: Callable[[int, int], None]) -> Attacked:
        """Change the clean image so that the last answer gets unlikely, or the target likely; tell(steps done, all).

        From then on the conversation is about the attacked 8-bit image.
        """
        clean, side = self._image(), order.on or self.sides[-1]
        if side == "defended" and self.defence is None:
            raise UserError("there is no defence to attack: switch it on with /defend on")
        if not self.exchanges:
            raise UserError("there is no answer to attack yet: ask something first")
        *before, last = self.exchanges
        prompt = _prompt(side, last.question, before)
        text, sign = (_said(last.first, side), 1) if order.target is None else (order.target, -1)
        done = -2  # the clean image and the start point are no steps

        def nll(x: Tensor) -> Tensor:
            return self.model.loss(clean.replace(x), [prompt], [text])

        def loss(x: Tensor, index: list[int]) -> Tensor:
            nonlocal done
            done += 1
            if done >= 0:
                tell(done, order.steps)
            return sign * nll(x)

        with self._as(side):
            found = apgd(loss, clean.x, eps=order.eps, steps=order.steps)
            if found.failed[0] is not None:
                raise UserError(f"the attack failed, {found.failed[0]}: the image stays as it was")
            pixels = to_8bit(found.x_adv, clean.x, eps=order.eps, norm="Linf")
            with torch.no_grad():
                first, then = float(nll(clean.x)), float(nll(from_8bit(pixels)))
        self._attacked = pixels
        levels = (pixels.double() - clean.x.double() * 255).abs().max()
        outcome = Attacked(side, text, first, then, round(float(levels)), bool(found.zero_grad[0]))
        self._note(
            "attack",
            on=side,
            eps=order.eps,
            eps_text=eps_text(order.eps),
            norm="Linf",
            steps=order.steps,
            target=order.target,
            reference=None if order.target is not None else text,
            question=last.question,
            loss_before=outcome.before,
            loss_after=outcome.after,
            linf_levels=outcome.linf,
        )
        return outcome

    def defend(self, on: bool) -> bool:
        """Switch the defence; whether the training-free one was put into a model that had none."""
        if self.compare:
            raise UserError("both models answer side by side: there is no defence to switch")
        new = on and self.defence is None
        if new:
            robustify(self.model)
        self._defended = on
        self._note("defend", on=on)
        return new

    def reset(self) -> None:
        """Forget the conversation and the attack; the clean image stays."""
        self._forget()
        self._note("reset")

    def save(self, folder: Path) -> None:
        """Write the images (if there are any) and the transcript into a new folder."""
        pictures = {}
        if self._clean is not None:
            pictures["canvas"] = (self._clean.x[0].double() * 255).round().to(torch.uint8)
        if self._attacked is not None:
            pictures["adversarial"] = self._attacked[0]
        defence = None if self.defence is None else self.defence.to_dict()
        about = {
            "model": self.model.label,
            "defence": defence,
            "compare": self.compare,
            "max_new_tokens": self.max_new_tokens,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
        }
        write_transcript(folder, about, self.events, pictures)

    def _answers(self, question: str, before: Sequence[Exchange], on_text: OnText) -> dict[Side, str]:
        clean = self._image()
        batch = clean if self._attacked is None else clean.replace(from_8bit(self._attacked))
        answers: dict[Side, str] = {}
        for side in self.sides:
            prompt = _prompt(side, question, before)

            def told(so_far: list[str], side: Side = side) -> None:
                on_text(side, so_far[0])

            with self._as(side):
                (answers[side],) = self.model.generate(batch, [prompt], self.max_new_tokens, on_text=told)
        self._note(
            "turn", question=question, answers=dict(answers), image="adversarial" if self.is_attacked else "clean"
        )
        return answers

    def _note(self, kind: str, **facts: Any) -> None:
        self.events.append({"kind": kind, **facts})

    def _image(self) -> PixelBatch:
        if self._clean is None:
            raise UserError("there is no image yet: show one with /image FILE")
        return self._clean

    def _as(self, side: Side) -> AbstractContextManager[object]:
        return self.model.undefended() if side == "plain" else nullcontext()

    def _forget(self) -> None:
        self.exchanges.clear()
        self._attacked = None


def _prompt(side: Side, question: str, before: Sequence[Exchange]) -> tuple[str, ...]:
    said = (text for exchange in before for text in (exchange.question, _said(exchange.answers, side)))
    return (*said, question)


def _said(answers: dict[Side, str], side: Side) -> str:
    """What that side said; where it was not asked, what the other one did."""
    return answers[side] if side in answers else next(iter(answers.values()))
