"""The pages of the documentation and the code blocks in them."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of the fenced blocks, also inside lists, and of indented ones ("")."""
    text = page.read_text()
    fence = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    yield from ((found[2], inspect.cleandoc("\n" + found[3])) for found in fence.finditer(text))
    yield from (("", found[0]) for found in re.finditer(r"(?:^    \S.*\n)+", fence.sub("", text), re.MULTILINE))
