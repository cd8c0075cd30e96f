"""The state of a chat: model, image, conversation, defence. It knows no terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from attacks import apgd, embedding_loss
from attacks.eight_bit import from_8bit, to_8bit
from attacks.eot import mean_over_draws
from attacks.eps import eps_text
from attacks.losses import LossFn
from eval_tasks.crafting.embedding import Embedding
from lvlm_radapt.chat.commands import Attack, Side
from lvlm_radapt.chat.transcript import write_transcript
from lvlm_radapt.defences.base import Defence, defence_document
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.models.base import LVLM, PixelBatch
from lvlm_radapt.models.robustify import robustify
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.images import open_image

OnText = Callable[[Side, str], None]
"""Gets an answer as far as it goes, after every token."""


@dataclass(frozen=True)
class Exchange:
    """A question, and what each side that was asked said to it about that image; first: what it said before an attack
    on that answer."""

    question: str
    answers: dict[Side, str]
    first: dict[Side, str]
    image: Literal["clean", "adversarial"]


@dataclass(frozen=True)
class Attacked:
    """An attack's outcome. before, after: mean NLL (nats a token) of `text` on the clean image, and on the attacked
    one as 8-bit image, or without a text the distance of the image tokens from the clean ones; linf: the largest
    change, in 8-bit levels."""

    on: Side
    text: str | None
    before: float
    after: float
    linf: int
    zero_grad: bool


@dataclass(frozen=True)
class Step:
    """An attack on its way: `done` steps of `total` are made (0 at the start point), and brought it to the image `x`
    ([1, 3, H, W] in [0, 1]), where `loss` is what `Attacked` calls before and after."""

    done: int
    total: int
    loss: float
    x: Tensor


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
        self.given_defence = compare and model.defence is None
        if self.given_defence:
            robustify(model)
        self.exchanges: list[Exchange] = []
        self.events: list[dict[str, Any]] = []
        self._defended = model.defence is not None
        self._clean: PixelBatch | None = None
        self._attacked: Tensor | None = None  # uint8, what _clean's pixels were made into

    @property
    def sides(self) -> tuple[Side, ...]:
        """Who answers, in that order."""
        if self.compare:
            return ("plain", "defended")
        return ("defended",) if self._defended else ("plain",)

    @property
    def defence(self) -> Defence | RAdaptConfig | None:
        """The defence in the model, be it switched off; None where there is none."""
        return self.model.defence

    @property
    def is_attacked(self) -> bool:
        return self._attacked is not None

    def show(self, path: Path) -> tuple[int, int]:
        """Begin a new conversation about this image; gives its canvas (height, width)."""
        return self.begin(open_image(path), str(path))

    def begin(self, image: Image.Image, name: str) -> tuple[int, int]:
        """`show` for an image that is open already; `name` is what the transcript calls it."""
        self._clean = self.model.pixels([image])
        self._forget()
        high, wide = self._clean.x.shape[-2:]
        self._note("image", file=name, canvas=[high, wide])
        return high, wide

    def ask(self, question: str, on_text: OnText) -> Exchange:
        """Say `question` to the model; its answer, or both sides'."""
        answers = self._answers(question, self.exchanges, on_text)
        self.exchanges.append(Exchange(question, answers, answers, self._image_name))
        return self.exchanges[-1]

    def ask_again(self, on_text: OnText) -> Exchange:
        """The last question once more, on the image as it is now; the new answer takes the old one's place."""
        *before, last = self.exchanges
        again = Exchange(last.question, self._answers(last.question, before, on_text), last.first, self._image_name)
        self.exchanges[-1] = again
        return again

    def attack(self, order: Attack, tell: Callable[[Step], None]) -> Attacked:
        """Change the clean image so that the last answer gets unlikely, the target likely, or the image tokens others.

        From then on the conversation is about the attacked 8-bit image.
        """
        clean, side = self._image(), order.on or self.sides[-1]
        if side == "defended" and self.defence is None:
            raise UserError("there is no defence to attack: switch it on with /defend on")
        if order.reads_answer:
            value, text = self._nll(clean, side, order.target)
        else:
            value, text = self._distance(clean, side), None
        sign = 1 if order.target is None else -1
        done = -2  # the clean image and the start point are no steps

        def loss(x: Tensor, index: list[int]) -> Tensor:
            nonlocal done
            found = value(x)
            done += 1
            if done >= 0:
                tell(Step(done, order.steps, float(found.detach()), x.detach()))
            return sign * found

        with self.model.naming_size(clean):
            found = apgd(loss, clean.x, eps=order.eps, steps=order.steps)
        if found.failed[0] is not None:
            raise UserError(f"the attack failed, {found.failed[0]}: the image stays as it was")
        pixels = to_8bit(found.x_adv, clean.x, eps=order.eps, norm="Linf")
        with torch.no_grad():
            first, then = float(value(clean.x)), float(value(from_8bit(pixels)))
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
            loss=order.loss,
            target=order.target,
            reference=None if order.target is not None else text,
            question=None if text is None else self.exchanges[-1].question,
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
        radapt = None if self.defence is None else self.defence.to_dict()
        defence = defence_document(self.model).get("defence", radapt)
        about = {
            "model": self.model.label,
            "defence": defence,
            "compare": self.compare,
            "max_new_tokens": self.max_new_tokens,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
        }
        write_transcript(folder, about, self.events, pictures)

    def _nll(self, clean: PixelBatch, side: Side, target: str | None) -> tuple[Callable[[Tensor], Tensor], str]:
        """How unlikely the target is, or else the side's first answer to the last question; and that text."""
        if not self.exchanges:
            raise UserError("there is no answer to attack yet: ask something first")
        *before, last = self.exchanges
        prompt = _prompt(side, last.question, before)
        text = _said(last.first, side) if target is None else target

        def loss_of(draw: int) -> LossFn:
            def nll(x: Tensor, index: list[int]) -> Tensor:
                with self._as(side):
                    return self.model.loss(_drawn(clean, draw).replace(x), [prompt], [text])

            return nll

        return self._over_draws(side, loss_of), text

    def _distance(self, clean: PixelBatch, side: Side) -> Callable[[Tensor], Tensor]:
        """How far the image tokens are from the clean ones, as `--attack embedding` has it."""
        usual = Embedding(name="embedding", eps=1.0)
        at, distance = usual.at, usual.distance

        def loss_of(draw: int) -> LossFn:
            def features(x: Tensor, index: list[int]) -> Tensor:
                with self._as(side):
                    return self.model.features(_drawn(clean, draw).replace(x), at=at)

            with torch.no_grad():
                return embedding_loss(features, features(clean.x, [0]), distance=distance)

        return self._over_draws(side, loss_of)

    def _over_draws(self, side: Side, loss_of: Callable[[int], LossFn]) -> Callable[[Tensor], Tensor]:
        """The mean of the losses over the draws of a random defence, on the side that has it."""
        loss = mean_over_draws(loss_of, self.model.draws if side == "defended" else 1)
        return lambda x: loss(x, [0])

    def _answers(self, question: str, before: Sequence[Exchange], on_text: OnText) -> dict[Side, str]:
        answers: dict[Side, str] = {}
        for side in self.sides:
            answers[side] = self._say(side, question, before, partial(on_text, side))
        self._note("turn", question=question, answers=dict(answers), image=self._image_name)
        return answers

    def _say(self, side: Side, question: str, before: Sequence[Exchange], on_text: Callable[[str], None]) -> str:
        batch = self._seen()
        with self.model.naming_size(batch), self._as(side):
            (answer,) = self.model.generate(
                batch, [_prompt(side, question, before)], self.max_new_tokens, on_text=lambda so_far: on_text(so_far[0])
            )
        return answer

    def _note(self, kind: str, **facts: Any) -> None:
        self.events.append({"kind": kind, **facts})

    def _image(self) -> PixelBatch:
        if self._clean is None:
            raise UserError("there is no image yet: show one with /image FILE")
        return self._clean

    def _seen(self) -> PixelBatch:
        """The image the conversation is about."""
        clean = self._image()
        return clean if self._attacked is None else clean.replace(from_8bit(self._attacked))

    @property
    def _image_name(self) -> Literal["clean", "adversarial"]:
        return "adversarial" if self.is_attacked else "clean"

    def _as(self, side: Side) -> AbstractContextManager[object]:
        """Every pass through the model is made inside it, and no other work is."""
        return self.model.undefended() if side == "plain" else nullcontext()

    def _forget(self) -> None:
        self.exchanges.clear()
        self._attacked = None


def _drawn(clean: PixelBatch, draw: int) -> PixelBatch:
    """The image with that draw of a random defence, which is not the one of the answers."""
    return clean.with_seeds([draw + 1])


def _prompt(side: Side, question: str, before: Sequence[Exchange]) -> tuple[str, ...]:
    said = (text for exchange in before for text in (exchange.question, _said(exchange.answers, side)))
    return (*said, question)


def _said(answers: dict[Side, str], side: Side) -> str:
    """What that side said; where it was not asked, what the other one did."""
    return answers[side] if side in answers else next(iter(answers.values()))
