"""Text in Markdown files: names, answers and captions of others stay text there."""

from __future__ import annotations


def as_text(text: str) -> str:
    """The text on one line, with no HTML, emphasis, code, link, image or end of a table's cell in it."""
    text = " ".join(text.split())
    for mark in ("\\", "|", "*", "_", "`"):
        text = text.replace(mark, "\\" + mark)
    return text.replace("<", "&lt;").replace("](", "]\\(")
