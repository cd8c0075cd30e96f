"""Old import paths of public modules give the very same modules, and say where these are now."""

import subprocess
import sys
from importlib import import_module

import pytest

from lvlm_radapt import models
from lvlm_radapt.loading import load
from lvlm_radapt.utils.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_new_module(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=MOVED[old]):
        module = import_module(old)
    assert module is import_module(MOVED[old])
    assert module.__spec__ is not None
    assert module.__spec__.name == MOVED[old]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embedded_models", "load_encoder", "load_model"])
def test_names_that_left_a_package_are_still_found_there(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"is lvlm_radapt\.loading\.load\.{name} now"):
        assert getattr(models, name) is getattr(load, name)


def test_no_module_of_ours_uses_an_old_path() -> None:
    walk = (
        "import attacks, importlib, pkgutil, warnings, lvlm_radapt, eval_tasks\n"
        "warnings.filterwarnings('error', message='.*the old path')\n"
        "for package in (lvlm_radapt, eval_tasks, attacks):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not found.name.endswith('__main__') and not found.name.endswith('_template'):\n"
        "            importlib.import_module(found.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", walk], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
