"""The Python examples of the documentation run, and print what stands beside them."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from lvlm_radapt.embedded.dataset import write_scenes
from tests.helpers.pages import PAGES, blocks

EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (language, block) in enumerate(blocks(page))
    if language == "python" and "print(" in block
]


def expected(block: str) -> list[str]:
    """The comments behind the calls of print, in order."""
    found = []
    for line in block.splitlines():
        if line.lstrip().startswith("print("):
            shown = re.fullmatch(r".*\S  # (.*)", line)
            assert shown, f"what does this line print? {line}"
            found.append(shown[1])
    return found


def test_the_readme_has_an_example() -> None:
    assert any(str(example.id).startswith("README") for example in EXAMPLES)


@pytest.mark.parametrize("block", EXAMPLES)
def test_an_example_prints_what_stands_beside_it(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "test", count=4)  # the first of `lvlm-radapt data scenes --out test`
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "example", "exec"), {"__name__": "example"})
    assert printed.getvalue().splitlines() == expected(block)
