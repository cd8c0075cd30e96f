"""What a line of the chat asks for."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from lvlm_radapt.utils.budget import check_8bit_budget, parse_eps
from lvlm_radapt.utils.errors import UserError

Side = Literal["plain", "defended"]
"""The model without its defence, and with it."""

Loss = Literal["e2e", "embedding"]
"""What an attack raises: a text's loss through the whole model, or the distance of the image tokens."""

HELP = """\
/image FILE             talk about this image; begins a new conversation
/attack [eps=4/255] [steps=20] [on=plain|defended] [loss=e2e|embedding] [target=TEXT]
                        change the image within eps (Linf) so that the last answer gets as unlikely as can be, or
                        TEXT as likely, or (embedding) the image tokens as far from the clean ones as can be; the
                        model that speaks is attacked, with --compare the defended one
/defend on|off          switch the defence
/save DIR               write both images and the transcript into a new folder
/reset                  forget the conversation and the attack
/help, /quit            this text; end (Ctrl-D too). Ctrl-C stops an answer or an attack
Anything else is said to the model."""


@dataclass(frozen=True)
class Ask:
    text: str


@dataclass(frozen=True)
class ShowImage:
    path: Path


@dataclass(frozen=True)
class Attack:
    """eps: in units of the [0, 1] pixel range (Linf). on: None for the model that speaks. target: None to make the
    answer at hand unlikely."""

    eps: float
    steps: int
    on: Side | None
    target: str | None
    loss: Loss = "e2e"

    def __post_init__(self) -> None:
        """UserError for a budget that rounds to nothing."""
        check_8bit_budget(self.eps, "Linf")

    @property
    def reads_answer(self) -> bool:
        """Whether it attacks an answer; else the image tokens."""
        return self.loss == "e2e"


@dataclass(frozen=True)
class Defend:
    on: bool


@dataclass(frozen=True)
class Save:
    folder: Path


Word = Literal["/reset", "/help", "/quit"]
"""A command that takes nothing is its own word."""
Command: TypeAlias = Ask | ShowImage | Attack | Defend | Save | Word

_NAMES = ("/image", "/attack", "/defend", "/save", "/reset", "/help", "/quit")


def parse(line: str) -> Command | None:
    """The command in a line; None for a blank one. UserError, one line, for what cannot be understood."""
    line = line.strip()
    if not line:
        return None
    if not line.startswith("/"):
        return Ask(_text(line))
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    match name:
        case "/image":
            return ShowImage(_path(name, rest, "FILE"))
        case "/attack":
            return _attack(rest)
        case "/defend":
            if rest not in ("on", "off"):
                raise UserError(f"/defend takes on or off, got {rest!r}")
            return Defend(rest == "on")
        case "/save":
            return Save(_path(name, rest, "DIR"))
        case "/reset" | "/help" | "/quit":
            if rest:
                raise UserError(f"{name} takes nothing more, got {rest[:40]!r}")
            return name
    near = difflib.get_close_matches(name, _NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else "see /help"
    raise UserError(f"there is no command {name[:40]!r}: {hint}")


def _path(name: str, text: str, what: str) -> Path:
    text = _unquoted(text)
    if not text:
        raise UserError(f"{name} needs a path: {name} {what}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"{name}: there is no folder {text[:60]!r}") from error


def _attack(rest: str) -> Attack:
    """`target=` takes the rest of the line, so that a text needs no quotes."""
    head, has_target, target = f" {rest}".partition(" target=")
    given: dict[str, str] = {}
    for word in head.split():
        key, equals, value = word.partition("=")
        if not equals or key not in ("eps", "steps", "on", "loss"):
            raise UserError(f"/attack does not take {word[:40]!r}: give eps=, steps=, on=, loss= or, last, target=TEXT")
        if key in given:
            raise UserError(f"/attack: {key} is given twice")
        given[key] = value
    if has_target:
        given["target"] = _unquoted(target.strip())
        if given.get("loss") == "embedding":
            raise UserError("/attack: loss=embedding needs no text, leave target= out")
    return Attack(
        eps=parse_eps(given.get("eps", "4/255")),
        steps=_steps(given.get("steps", "20")),
        on=_one_of(Side, "on", given["on"]) if "on" in given else None,
        target=_target(given["target"]) if "target" in given else None,
        loss=_one_of(Loss, "loss", given.get("loss", "e2e")),
    )


def _steps(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) >= 1):
        raise UserError(f"/attack: steps must be a whole number from 1, got {text[:40]!r}")
    return int(text)


def _one_of(known: Any, key: str, text: str) -> Any:
    """`text`, if it is one of the words of the Literal `known`."""
    if text not in get_args(known):
        raise UserError(f"/attack: {key} must be {' or '.join(get_args(known))}, got {text[:40]!r}")
    return text


def _target(text: str) -> str:
    if not text.strip():
        raise UserError("/attack: target= needs the text that the model is to say")
    return _text(text)


def _text(line: str) -> str:
    """What a model can read: bytes that are no text become question marks."""
    return line.encode("utf-8", "replace").decode("utf-8")


def _unquoted(text: str) -> str:
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text
