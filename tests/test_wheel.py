"""What `make wheel` ships: the program, its presets and the embedded models, but not how those are trained."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from lvlm_radapt.loading.locate import embedded_models
from tests.helpers.paths import ROOT


def test_the_wheel_holds_what_runs_and_nothing_else(tmp_path: Path) -> None:
    for module in ("build", "hatchling", "editables"):
        pytest.importorskip(module)
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in held} == {"attacks", "eval_tasks", "lvlm_radapt"}
    for folder in embedded_models().values():
        for path in folder.iterdir():
            assert f"lvlm_radapt/embedded/weights/{folder.name}/{path.name}" in held
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"lvlm_radapt/configs/{path.relative_to(ROOT / 'configs').as_posix()}" in held
    for package in ("attacks", "eval_tasks", "lvlm_radapt"):
        for path in (ROOT / package).rglob("*.*"):
            if path.suffix in (".py", ".j2", ".css"):
                assert path.relative_to(ROOT).as_posix() in held
