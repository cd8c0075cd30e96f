"""The documentation as one site, by Sphinx: guides, the API from its docstrings, the commands from their flags.

python -m sphinx -b html docs site
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

import lvlm_radapt

project = "lvlm-radapt"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
root_doc = "index"
html_theme = "furo"
html_title = "lvlm-radapt"
html_static_path: list[str] = []
exclude_patterns = ["images"]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
default_role = "code"
smartquotes = False  # flags begin with two hyphens
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
suppress_warnings = ["myst.xref_missing"]  # files of the repository, which are no pages of the site

GUIDES = {
    "Use it": ["install", "harden", "llava", "qwen", "families", "encoders", "data", "chat", "serve", "operations"],
    "Measure": ["attacks", "numbers", "papers", "r-adapt", "finetune", "results", "photos"],
    "Know it": ["holds", "how-it-works", "limits", "security", "extend"],
    "Reference": ["commands", "api/index"],
}
"""Pages in the order of the side bar."""

MODULES = (
    "lvlm_radapt",
    "lvlm_radapt.plot",
    "lvlm_radapt.models.base",
    "lvlm_radapt.models.family",
    "lvlm_radapt.models.messages",
    "lvlm_radapt.utils.errors",
    "attacks",
    "attacks.autoattack",
    "attacks.blackbox",
    "attacks.classification",
    "attacks.eps",
    "attacks.lowfrequency",
    "attacks.norms",
    "attacks.suite",
    "eval_tasks.api",
    "eval_tasks.audit",
    "eval_tasks.config.presets",
    "eval_tasks.crafting.attack",
    "eval_tasks.crafting.batches",
    "eval_tasks.crafting.make_attack",
    "eval_tasks.data",
    "eval_tasks.metrics",
    "eval_tasks.report.build_table",
    "eval_tasks.report.leaderboard",
    "eval_tasks.report.page",
    "eval_tasks.report.table_formats",
    "eval_tasks.run.evaluate",
    "eval_tasks.run.options",
    "eval_tasks.run.records",
    "eval_tasks.tasks.base",
    "eval_tasks.tasks.make_task",
    "eval_tasks.tasks.text",
)
"""What people build on: its names change only on purpose."""


class CommandHelp(SphinxDirective):
    """`command-help:: eval`: the arguments and flags of a command, as the program itself has them."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        lines = command_help(self.arguments[0].split())
        node = nodes.container()
        nested_parse_with_titles(self.state, StringList(lines, source="the command line"), node)
        return node.children


def command_help(words: list[str]) -> list[str]:
    """The help of a command in reStructuredText."""
    import typer

    from lvlm_radapt.cli import app

    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    lines = [*as_rst((command.help or "").splitlines()), ""]
    for one in command.params:
        if one.name == "help":
            continue
        names = ", ".join([*one.opts, *one.secondary_opts]) if one.opts[0].startswith("-") else one.name.upper()
        told = " ".join(as_rst([getattr(one, "help", None) or ""]))
        needed = "Required. " if one.required else ""
        lines += [f"``{names}``", f"    {needed}{told or 'See above.'}", ""]
    return lines


def as_rst(lines: list[str]) -> list[str]:
    """A docstring of ours as reStructuredText: `code` in backticks, and a list item for each `name: meaning` line."""
    made: list[str] = []
    inside = False
    for line in lines:
        text = line.strip()
        shown = _inline(re.split(r"(`[^`]*`)", text))
        named = re.match(r"((?:\w|\\_|, )+): ", shown)
        if named and len(named[1]) < 50:
            made += ["", f"- **{named[1]}**: {shown[named.end() :]}"]
            inside = True
        elif not text:
            made.append("")
            inside = False
        else:
            made.append(f"  {shown}" if inside else shown)
    return made


def _inline(pieces: list[str]) -> str:
    """Text and `code` by turns, with what reStructuredText would read as markup escaped."""
    made = ""
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            made += re.sub(r"([\\*|_])", r"\\\1", piece)
            continue
        glued = bool(re.match(r"\w", pieces[number + 1]))
        made += f"`{piece}`" + ("\\ " if glued else "")
    return made


def _docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def _with_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """The side bar's contents, which index.md does not show where it is read as a file."""
    if page == "index":
        for title, pages in GUIDES.items():
            source[0] += "\n```{toctree}\n:hidden:\n:caption: " + title + "\n\n" + "\n".join(pages) + "\n```\n"


def _api_pages(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "api"
    for stale in folder.glob("*.rst"):
        stale.unlink()
    folder.mkdir(exist_ok=True)
    for name in lvlm_radapt.__all__:  # they are imported on first use, which autodoc does not wait for
        setattr(lvlm_radapt, name, getattr(lvlm_radapt, name))
    for name in MODULES:
        imported = "   :imported-members:\n" if name in ("lvlm_radapt", "attacks", "eval_tasks.api") else ""
        text = f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n   :members:\n{imported}"
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")
    contents = "API\n===\n\n.. toctree::\n\n" + "".join(f"   {name}\n" for name in MODULES)
    (folder / "index.rst").write_text(contents, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.add_directive("command-help", CommandHelp)
    app.connect("builder-inited", _api_pages)
    app.connect("source-read", _with_contents)
    app.connect("autodoc-process-docstring", _docstring)
