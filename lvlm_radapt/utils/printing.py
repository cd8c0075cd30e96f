"""What reaches the terminal. Text is text: no markup and no emoji names are read in it, and nothing in it drives the
terminal. Every command prints through these functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Control characters but tab and line end, line and paragraph separators, those that turn the direction of writing, and
# surrogates, which stand for bytes that are no text.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def readable(text: str) -> str:
    """The text with an escaped form, such as \\x1b, for every character that could drive a terminal or is none."""
    return _UNSAFE.sub(_escaped, text)


def one_line(text: str) -> str:
    """The readable text on one line."""
    return readable(" ".join(text.split()))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class PlainConsole(Console):
    """A console that shows text as it is, readable. `stderr` and `soft_wrap` are rich's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def tell(self, text: str) -> None:
        """Print one line, however long: a path can be copied from it."""
        self.print(one_line(text), soft_wrap=True)

    def render_str(self, text: str, **settings: Any) -> Text:
        # here, before the width is measured
        return super().render_str(readable(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else readable(text), style, control)
