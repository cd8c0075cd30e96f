"""The documentation holds: its commands parse, its links lead somewhere, every public name is explained."""

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

import lvlm_radapt.cli
from eval_tasks.config.presets import load_attack, load_protocol, load_task_config
from lvlm_radapt.utils.budget import parse_eps
from lvlm_radapt.utils.plugins import is_plugin
from tests.helpers.cli import commands_of
from tests.helpers.pages import PAGES, blocks
from tests.helpers.paths import ROOT
from tests.helpers.scripts import script

OURS = ("lvlm_radapt", "attacks", "eval_tasks")
conf, draw = script("docs/conf.py"), script("docs/draw.py")


def commands(page: Path) -> list[str]:
    """What stands after the program's name, in blocks (under a launcher, too) and in running text."""
    found = []
    for language, block in blocks(page):
        if language in ("", "sh", "text"):
            for line in block.replace("\\\n", " ").splitlines():
                match = re.search(r"(?:^\s*(?:\$ )?|exec |-m )(?:lvlm-radapt|lvlm_radapt) ([\w-]+\b[^'#|]*)", line)
                found += [match[1]] if match else []
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return found + re.findall(r"`lvlm-radapt ([a-z]+ [^`]*--[^`]*)`", prose)


def parsed(words: list[str]) -> click.Context:
    """The command's arguments as the program reads them, without running it."""
    command = commands_of(lvlm_radapt.cli.app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"there is no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command.make_context(command.name or "", list(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses_and_names_tasks_attacks_and_presets_that_exist(page):
    for text in commands(page):
        words = shlex.split(text)
        try:
            given = parsed(words).params
        except Exception as error:
            raise AssertionError(f"{page.name}: lvlm-radapt {text}: {getattr(error, 'message', error)}") from error
        if words[0] not in ("eval", "audit"):
            continue
        if not is_plugin("task", given["task"]) and not given["task"].endswith(".yaml"):
            load_task_config(given["task"])
        if given.get("images_from"):
            continue  # that run says which attack
        if is_plugin("attack", given["attack"] or "none"):
            continue
        attack = load_attack(given["attack"] or "none")
        if given.get("preset"):
            load_protocol(given["preset"])
        for eps in (given["eps"] or "4/255").split(","):
            parse_eps(eps, given["norm"] or attack.settings.get("norm", "Linf"))


def test_the_commands_are_found_where_they_stand():
    found = {page.name: commands(page) for page in PAGES}
    assert any(text.startswith("harden tiny-llava") for text in found["README.md"])
    operations = found["operations.md"]
    assert sum("runs/c.jsonl" in text for text in operations) == 1  # over two lines, inside quotes, under srun
    assert sum(text.endswith("--attack e2e --out runs/a") for text in operations) == 1  # accelerate
    with pytest.raises(Exception, match="No such option"):
        parsed(shlex.split("eval tiny-llava --task coco --data d --out o --no-such-flag"))
    with pytest.raises(AssertionError, match="no command"):
        parsed(["robustifie", "tiny-llava"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_make_target_leads_somewhere(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for link in links:
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), f"{page.name}: {link}"
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, f"{page.name}: {link}"
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^    )make ([\w-]+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_compile_and_import_names_that_exist(page):
    for language, block in blocks(page):
        for node in ast.walk(ast.parse(block)) if language == "python" else ():
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}"), ast.unparse(node)


def test_the_captions_file_of_the_data_page_is_one_that_the_program_reads(tmp_path, cli, monkeypatch):
    (example,) = (block for language, block in blocks(ROOT / "docs" / "data.md") if language == "json")
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "mine" / "captions.json").write_text(example)
    for row in json.loads(example)["images"]:
        Image.new("RGB", (8, 8)).save(tmp_path / "mine" / "images" / row["file_name"])
    monkeypatch.chdir(tmp_path)
    (check,) = (text for text in commands(ROOT / "docs" / "data.md") if text.startswith("data check coco --data mine"))
    cli.done(*shlex.split(check))


def test_the_drawn_pictures_are_those_that_the_script_draws_and_small():
    images = ROOT / "docs" / "images"
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert (images / "how-it-works.svg").read_text(encoding="utf-8") == draw.how_it_works()
    assert (images / "answer.svg").read_text(encoding="utf-8") == draw.answer(results)
    assert (images / "curves.svg").read_text(encoding="utf-8") == draw.curves(results)
    for name in ("demo-light.png", "demo-dark.png"):
        assert (images / name).stat().st_size < 120_000
        with Image.open(images / name) as picture:
            assert picture.width > 1000


def test_every_figure_of_what_holds_stands_in_the_table_that_it_names():
    page = ROOT / "docs" / "holds.md"
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| \[[^]]+\]\((\w+\.md)[^|]*\|$", page.read_text(), re.MULTILINE)
    assert len(rows) > 10
    for figures, table in rows:
        text = re.sub(" [▲▼]", "", (page.parent / table).read_text())
        for figure in re.findall(r"[\d.]+(?: %)? \[[^]]+\]", figures):
            assert figure.replace(" %", "") in text, f"{figure} is not in {table}"


def sentences(text: str) -> Iterator[str]:
    """The sentences of a page's running text: no code, tables or links' addresses; a list item begins a sentence."""
    text = re.sub(r"```.*?```|<[^>]+>|!\[[^\]]*\]\([^)]*\)", "", text, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for paragraph in re.split(r"\n\s*\n|\n(?=[-*\d] )", text):
        lines = [line for line in paragraph.splitlines() if not line.startswith(("|", "#"))]
        yield from re.split(r"(?<=[.!?])\**\s+", " ".join(lines).strip())


def test_the_readme_is_short_and_so_are_its_sentences():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    long = [sentence for sentence in sentences(text) if len(sentence.split()) > 25]
    assert not long, "\n".join(long)


class Public:
    """A public function, class or method and what its docstring has to say."""

    def __init__(self, name: str, thing: object, module: str, *, inherited: str = "") -> None:
        self.name, self.thing, self.module = name, thing, module
        self.doc = getattr(thing, "__doc__", None) or inherited

    @cached_property
    def problems(self) -> list[str]:
        if not self.doc or self.doc.startswith(f"{self.name}("):  # the latter is what dataclasses write by themselves
            return ["has no docstring"]
        if not inspect.isfunction(self.thing):
            return []
        words = self.doc + " " + (sys.modules[self.thing.__module__].__doc__ or "")
        problems = []
        if re.search("Tensor|NDArray", " ".join(map(str, self.thing.__annotations__.values()))) and not re.search(
            r"\[[^\]]+\]|as for `", words
        ):
            problems.append("does not tell the shape of its tensors")
        if "raise UserError" in inspect.getsource(self.thing) and not re.search(
            "UserError|[Rr]aises as|errors as", words
        ):
            problems.append("does not tell that it raises UserError")
        return problems


def public() -> Iterator[Public]:
    for name in conf.MODULES:
        module = importlib.import_module(name)
        assert module.__doc__, f"{name} has no docstring"
        listed = getattr(module, "__all__", None)
        for key in listed or [key for key in vars(module) if not key.startswith("_")]:
            thing = getattr(module, key)
            home = getattr(thing, "__module__", "")
            if not (inspect.isclass(thing) or inspect.isfunction(thing)) or home.split(".")[0] not in OURS:
                continue
            if listed is None and home != name:
                continue
            yield Public(key, thing, name)
            for part, value in vars(thing).items() if inspect.isclass(thing) else ():
                bare = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if not part.startswith("_") and inspect.isfunction(bare):
                    inherited = inspect.getdoc(getattr(thing, part)) or ""
                    yield Public(f"{key}.{part}", bare, name, inherited=inherited)


def test_every_public_name_tells_what_it_does_its_shapes_and_its_errors():
    found = list(public())
    assert found
    problems = [f"{one.module}: {one.name} {problem}" for one in found for problem in one.problems]
    assert not problems, "\n".join(problems)


def test_every_command_has_its_section_and_an_example() -> None:
    page = ROOT / "docs" / "commands.md"
    text = page.read_text(encoding="utf-8")
    named = {" ".join(words) for words in command_names(commands_of(lvlm_radapt.cli.app))}
    assert set(re.findall(r"^## (.+)$", text, re.MULTILINE)) == named
    assert set(re.findall(r"\{command-help\} (.+)$", text, re.MULTILINE)) == named
    assert {name for name in named if any(one.startswith(f"{name} ") or one == name for one in commands(page))} == named


def command_names(group: Any) -> Iterator[list[str]]:
    for name, command in group.commands.items():
        inner = [[name, *words] for words in command_names(command)] if hasattr(command, "commands") else [[name]]
        yield from inner


def test_a_docstring_becomes_a_list_of_its_arguments() -> None:
    text = ["Read `Sample`s of a* folder_.", "", "eps, norm: the budget", "    in pixels.", "", "Raises `E`."]
    assert conf.as_rst(text) == [
        "Read ``Sample``\\ s of a\\* folder\\_.", "", "", "- **eps, norm**: the budget", "  in pixels.", "",
        "Raises ``E``.",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_holds_the_public_names(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "-E", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for module in conf.MODULES:
        assert f'id="module-{module}"' in (tmp_path / "api" / f"{module}.html").read_text()
    shown = (tmp_path / "commands.html").read_text()
    assert "--images-from" in shown
    assert (tmp_path / "searchindex.js").is_file()
