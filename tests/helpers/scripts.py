"""Scripts outside of every package, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

from tests.helpers.paths import ROOT


def script(path: str) -> ModuleType:
    """The script at this path of the repository, imported."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
