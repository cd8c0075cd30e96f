"""Rules of the tests themselves: none leans on another test, nor on what a package keeps private."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

OURS = ("attacks", "eval_tasks", "lvlm_radapt", "tools", "tests")
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.isidentifier()


def parts_of(file: Path) -> list[ast.AST]:
    """All of a file's syntax tree."""
    return [*ast.walk(ast.parse(file.read_text("utf-8")))]


def own_names(nodes: list[ast.AST]) -> set[str]:
    """Names that a file defines: functions, classes, variables and attributes that it sets."""
    defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    stored = [node for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)]
    return defined | {getattr(node, "attr", None) or getattr(node, "id", "") for node in stored}


@pytest.fixture(scope="module")
def kept_private() -> set[str]:
    """The private names of the packages."""
    files = [file for package in OURS[:4] for file in (ROOT / package).rglob("*.py")]
    return {name for file in files for name in own_names(parts_of(file)) if private(name)}


def imports(nodes: list[ast.AST]) -> Iterator[str]:
    """Modules and names in them, as dotted names."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.relative_to(ROOT / "tests").as_posix())
def test_it_imports_no_test_and_no_private_name(file: Path, kept_private: set[str]) -> None:
    nodes = parts_of(file)
    parts = [(name, part) for name in imports(nodes) for part in name.split(".")]
    assert [name for name, part in parts if part.startswith("test_")] == []
    assert [name for name, part in parts if private(part) and name.split(".")[0] in OURS] == []
    foreign = kept_private - own_names(nodes)
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    patched = {node.args[1].value for node in nodes if is_patch(node)}
    assert sorted(foreign & (used | patched)) == []


def is_patch(node: ast.AST) -> bool:
    """A call with an object and the name of one of its attributes."""
    return (
        isinstance(node, ast.Call)
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[1].value, str)
    )
