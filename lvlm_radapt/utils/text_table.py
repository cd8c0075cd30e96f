"""One table of texts in every form it is shown in: Markdown, CSV and the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import rich.box
import rich.table
from rich.text import Text


@dataclass(frozen=True)
class TextTable:
    """A heading and rows of as many cells. right: the columns that stand on the right, as numbers do; all but the first
    if left out. Names, answers and captions of others stay text in every form."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    right: range | None = None

    def to_markdown(self) -> str:
        """A pipe table."""
        marks = ["---:" if column in self._right else "---" for column in range(len(self.head))]
        lines = [list(map(as_text, self.head)), marks, *([as_text(str(cell)) for cell in row] for row in self.rows)]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)

    def to_csv(self) -> str:
        """Numbers at full precision; None is an empty field."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.head, *self.rows])
        return out.getvalue()

    def to_rich(self, *, min_width: int | None = None) -> rich.table.Table:
        """For the terminal, without lines between the columns; min_width: of the first one."""
        table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False, collapse_padding=True, show_edge=False)
        for column, name in enumerate(self.head):
            right = column in self._right
            table.add_column(
                name, justify="right" if right else "left", no_wrap=right, min_width=None if column else min_width
            )
        for row in self.rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
        return table

    @property
    def _right(self) -> Iterable[int]:
        return range(1, len(self.head)) if self.right is None else self.right


def as_text(text: str) -> str:
    """The text on one line of Markdown, with no HTML, emphasis, code, link, image or end of a table's cell in it."""
    text = " ".join(text.split())
    for mark in ("\\", "|", "*", "_", "`"):
        text = text.replace(mark, "\\" + mark)
    return text.replace("<", "&lt;").replace("](", "]\\(")
