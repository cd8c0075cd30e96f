"""The house stands on layers: a module imports from its own layer and from earlier ones, and no circle is left."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

LAYERS = (
    "attacks",
    "lvlm_radapt.utils",
    "lvlm_radapt.plots",
    "lvlm_radapt.towers",
    "lvlm_radapt.defences",
    "lvlm_radapt.models",
    "lvlm_radapt.loading",
    "lvlm_radapt.saving",
    "lvlm_radapt.training",
    "eval_tasks.config",
    "eval_tasks.metrics",
    "eval_tasks.data",
    "eval_tasks.crafting",
    "eval_tasks.audit",
    "eval_tasks.tasks",
    "eval_tasks.run",
    "eval_tasks.report",
    "eval_tasks.api",
)
LEAVES = len(LAYERS)
"""What remains of `lvlm_radapt` may know all of these: experiments, analysis, chat, cli, embedded models."""

LOADING = (
    {"api", "first_input", "load_options", "quantised", "weights", "adapter_files", "export_files"},
    {"locate", "hf", "tokenizer", "image_processor"},
    {"from_state_dict"},
    {"open_clip", "llava_original"},
    {"stock"},
    {"replace_tower"},
    {"adapter", "export"},
    {"load"},
    {"guides"},
)
"""The layers of `lvlm_radapt.loading`: files, parts of a checkpoint, layouts, undefended models and what uses them."""


def _modules(root: Path) -> dict[str, Path]:
    found = {}
    for package in ("attacks", "lvlm_radapt", "eval_tasks"):
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                yield other
                yield from _statements(other)
        else:
            yield node
            yield from _statements(node)


def _imports(path: Path, modules: Mapping[str, Path]) -> set[str]:
    """Our modules that the file imports, inside functions too."""
    names: set[str] = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name if name in modules else str(node.module) for name in whole}
    return names & modules.keys()


def _layer(module: str) -> int:
    if module in ("lvlm_radapt", "eval_tasks"):  # their names are looked up on first use
        return LAYERS.index("lvlm_radapt.utils")
    return next((n for n, name in enumerate(LAYERS) if f"{module}.".startswith(f"{name}.")), LEAVES)


@cache
def _graph(root: Path) -> dict[str, set[str]]:
    modules = _modules(root)
    return {name: _imports(path, modules) for name, path in modules.items()}


def _upward(graph: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    return {(one, other) for one, used in graph.items() for other in used if _layer(other) > _layer(one)}


def _circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One import circle, or nothing."""
    done: set[str] = set()

    def search(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        for other in sorted(graph[module]):
            if found := search(other, [*way, module]):
                return found
        done.add(module)
        return []

    return next(filter(None, (search(module, []) for module in sorted(graph))), [])


def test_every_import_is_from_an_earlier_layer() -> None:
    assert sorted(_upward(_graph(ROOT))) == []


def test_loading_has_layers_of_its_own() -> None:
    level = {f"lvlm_radapt.loading.{name}": n for n, names in enumerate(LOADING) for name in names}
    used = {one: other for one, other in _graph(ROOT).items() if one.startswith("lvlm_radapt.loading.")}
    assert used.keys() == level.keys()
    assert [(a, b) for a, others in used.items() for b in others if level.get(b, -1) > level[a]] == []


def test_modules_import_each_other_in_no_circle() -> None:
    assert _circle(_graph(ROOT)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import lvlm_radapt.models.base",
        "from lvlm_radapt.models import base",
        "def f():\n  from lvlm_radapt import cli",
    ],
)
def test_an_import_of_a_later_layer_is_found(source: str, tmp_path: Path) -> None:
    for file, text in {"towers/clip.py": source, "models/base.py": "", "cli/__init__.py": ""}.items():
        path = tmp_path / "lvlm_radapt" / file
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    assert len(_upward(_graph(tmp_path))) == 1


def test_what_only_type_checkers_read_is_no_import(tmp_path: Path) -> None:
    (tmp_path / "attacks").mkdir()
    (tmp_path / "lvlm_radapt").mkdir()
    (tmp_path / "lvlm_radapt" / "cli.py").write_text("")
    (tmp_path / "attacks" / "pgd.py").write_text("if TYPE_CHECKING:\n  import lvlm_radapt.cli\n")
    assert _upward(_graph(tmp_path)) == set()


def test_a_circle_is_found() -> None:
    assert sorted(_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == ["b", "c"]


def _compared_names(tree: ast.AST) -> Iterator[int]:
    """Lines where the name of a kind of attack or task decides, outside a class that has this name itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            continue
        if isinstance(node, ast.Compare):
            left = node.left
            asked = isinstance(left, ast.Attribute) and left.attr in ("kind", "style", "loss")
            asked |= isinstance(left, ast.Name) and left.id == "loss"
            constants = [one for part in node.comparators for one in ast.walk(part) if isinstance(one, ast.Constant)]
            if asked and any(isinstance(one.value, str) for one in constants):
                yield node.lineno
        yield from _compared_names(node)


def test_no_code_asks_for_the_name_of_an_attack_or_a_task() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in _modules(ROOT).values()
        for line in _compared_names(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize("source", ["x = plan.loss == 'e2e'", "def f(task):\n  return task.kind in ('vqa', 'choice')"])
def test_a_compared_name_is_found(source: str) -> None:
    assert list(_compared_names(ast.parse(source)))
