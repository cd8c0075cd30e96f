"""Old import paths of public modules give the very same modules, and say where these are now."""

import ast
import sys
from importlib import import_module

import pytest

from lvlm_radapt import models
from lvlm_radapt.loading import load
from lvlm_radapt.utils.moved import MOVED
from tests.helpers.paths import ROOT

LEFT = ["embedded_models", "load_encoder", "load_model"]


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=MOVED[old]):
        module = import_module(old)
    assert module is import_module(MOVED[old])
    assert module.__spec__ is not None
    assert module.__spec__.name == MOVED[old]


@pytest.mark.parametrize("name", LEFT)
def test_names_that_left_a_package_are_still_found_there(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"is lvlm_radapt\.loading\.load\.{name} now"):
        assert getattr(models, name) is getattr(load, name)


def test_no_module_of_ours_uses_an_old_path() -> None:
    left = {f"lvlm_radapt.models.{name}" for name in LEFT}
    for file in (
        file for package in ("attacks", "eval_tasks", "lvlm_radapt") for file in (ROOT / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            named = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            if isinstance(node, ast.ImportFrom):
                named = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
            assert not named & (MOVED.keys() | left), f"{file}:{node.lineno}"
