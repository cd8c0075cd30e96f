"""The chat on a terminal, or in a pipe: there stdout holds the answers alone, and everything else goes to stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from attacks.eps import eps_text
from lvlm_radapt.chat import commands
from lvlm_radapt.chat.commands import Side
from lvlm_radapt.chat.session import Attacked, OnText, Session
from lvlm_radapt.utils.errors import UserError, with_notes
from lvlm_radapt.utils.printing import PlainConsole, one_line, readable

_STYLES: dict[Side, str] = {"plain": "red", "defended": "green"}


class Terminal:
    """Reads lines, lets the session do what they ask for, and shows what comes of it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.talks = sys.stdin.isatty()  # else a script speaks, and needs no prompt
        self.out = PlainConsole()
        self.err = PlainConsole(stderr=True, soft_wrap=True)

    def run(self, image: Path | None, *, hint: str | None) -> None:
        """Talk until the end of the input or /quit. image: to begin with; hint: a line said first."""
        session = self.session
        if session.given_defence and session.defence is not None:
            self._note(f"{session.model.label} has no defence: beside it answers the same model with the training-free "
                       f"one, {session.defence.describe()}")  # fmt: skip
        if hint is not None:
            self._note(hint)
        if self.talks:
            self._note("/help lists the commands; Ctrl-D ends")
        if image is not None:
            self._show(image)
        for line in self._lines():
            try:
                with self._one_line():
                    command = commands.parse(line)
                    if command == "/quit":
                        return
                    if command is not None:
                        self._do(command)
            except KeyboardInterrupt:
                self._note("stopped")

    def _lines(self) -> Iterator[str]:
        if self.talks:
            with contextlib.suppress(ImportError):  # where there is none, lines cannot be edited
                import readline  # noqa: F401
        while True:
            try:
                line = input(self._prompt()) if self.talks else sys.stdin.readline()
            except EOFError:
                self._note("")
                return
            except KeyboardInterrupt:
                self._note("\nCtrl-D ends")
                continue
            if not self.talks and not line:
                return
            yield line

    def _prompt(self) -> str:
        session = self.session
        state: list[str] = [] if session.compare or session.defence is None else [session.sides[0]]
        if session.is_attacked:
            state.append("attacked")
        return f"[{', '.join(state)}] > " if state else "> "

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self.err.print(Text.assemble(("error: ", "red"), one_line(str(error))))
        except torch.OutOfMemoryError as error:
            what = with_notes("the accelerator's memory does not suffice", error)
            self.err.print(Text(f"error: {what}: /reset, or load with --max-pixels (Qwen) or --quantize"))

    def _do(self, command: commands.Command) -> None:
        session = self.session
        match command:
            case commands.Ask(text):
                self._answer(text)
            case commands.ShowImage(path):
                self._show(path)
            case commands.Attack():
                self._attack(command)
            case commands.Defend(on):
                new = session.defend(on)
                what = f": {session.defence.describe()}" if on and session.defence is not None else ""
                self._note(f"defence {'on' if on else 'off'}{', the training-free one' if new else ''}{what}")
            case commands.Save(folder):
                session.save(folder)
                self._note(f"saved in {folder}")
            case "/reset":
                session.reset()
                self._note("a new conversation, about the clean image")
            case "/help":
                self._note(commands.HELP)

    def _show(self, path: Path) -> None:
        high, wide = self.session.show(path)
        self._note(f"{path}: the model sees {wide}x{high} pixels")

    def _attack(self, order: commands.Attack) -> None:
        columns = (TextColumn("attack"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.err, transient=True, disable=not self.err.is_terminal) as bar:
            task = bar.add_task("attack", total=order.steps)
            found = self.session.attack(order, lambda step: bar.update(task, completed=step.done))
        again = bool(self.session.exchanges)
        self._note(_attack_text(order, found) + ("; asked again:" if again else ""))
        if again:
            self._answer(None)

    def _answer(self, question: str | None) -> None:
        """Ask, or the last question again; show the answers as they come."""
        session = self.session

        def ask(on_text: OnText) -> dict[Side, str]:
            exchange = session.ask_again(on_text) if question is None else session.ask(question, on_text)
            return exchange.answers

        if not session.compare:
            stream, answer = Stream(self.out), None
            try:
                (answer,) = ask(lambda _, text: stream.show(text)).values()
                stream.show(answer, last=True)
            finally:
                stream.close(answered=answer is not None)
        elif self.out.is_terminal:
            so_far: dict[Side, str] = dict.fromkeys(session.sides, "")
            with Live(console=self.out, get_renderable=lambda: _columns(so_far), refresh_per_second=10):
                so_far |= ask(lambda side, text: so_far.update({side: text}))
        else:
            for side, text in ask(lambda side, text: None).items():
                self.out.print(f"{side}: {text}", soft_wrap=True)

    def _note(self, text: str) -> None:
        self.err.print(Text(text, style="dim"))


class Stream:
    """Writes what a growing text has grown by."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.written = ""

    def show(self, text: str, *, last: bool = False) -> None:
        # an unfinished character, and what may yet change by it, waits
        text = readable(text if last else text.rstrip("\ufffd"))
        if not text.startswith(self.written):  # the tokenizer joins words otherwise than it seemed
            if not last:
                return
            self._write("\n")
            self.written = ""
        self._write(text[len(self.written) :])
        self.written = text

    def close(self, *, answered: bool) -> None:
        if answered or self.written:
            self._write("\n")

    def _write(self, text: str) -> None:
        self.console.file.write(text)
        self.console.file.flush()


def _columns(answers: dict[Side, str]) -> Table:
    table = Table(expand=True, box=None, padding=(0, 2, 0, 0))
    for side in answers:
        table.add_column(side, ratio=1, overflow="fold", header_style=f"bold {_STYLES[side]}")
    table.add_row(*answers.values())
    return table


def _attack_text(order: commands.Attack, found: Attacked) -> str:
    if found.text is None:
        aim, loss = "on its image tokens", f"distance {found.before:.2f} -> {found.after:.2f}"
    else:
        aim = f"{'away from' if order.target is None else 'towards'} {found.text!r}"
        loss = f"loss {found.before:.2f} -> {found.after:.2f} nats a token"
    budget = f"eps {eps_text(order.eps)}, {order.steps} steps, largest change {found.linf}/255"
    said = f"attacked the {found.on} model {aim}: {loss} ({budget})"
    return f"{said}; the gradient was zero throughout: this attack says nothing" if found.zero_grad else said
