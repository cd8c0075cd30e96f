"""What `make wheel` ships: the program, its presets and the embedded models, but not how those are trained."""

import subprocess
import sys
from configparser import ConfigParser
from email import message_from_string
from importlib import import_module
from zipfile import ZipFile

import pytest

from lvlm_radapt.loading.locate import embedded_models
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    for module in ("build", "hatchling", "editables"):
        pytest.importorskip(module)
    out = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return ZipFile(path)


def of_metadata(wheel: ZipFile, name: str) -> str:
    (path,) = (one for one in wheel.namelist() if one.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_the_wheel_holds_what_runs_and_nothing_else(wheel: ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
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


def test_the_readme_renders_as_on_a_package_index(wheel: ZipFile) -> None:
    """By the library that the index uses; what it cannot render is None there."""
    markdown = pytest.importorskip("readme_renderer.markdown")
    metadata = message_from_string(of_metadata(wheel, "METADATA"))
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = markdown.render(str(metadata.get_payload()))
    assert page is not None
    for element in ("<h1", "<table", "<pre", "<img"):
        assert element in page
    assert "```" not in page


def test_other_programs_find_their_entry_points(wheel: ZipFile) -> None:
    """Each names something that is there, in a module that nothing of ours imports."""
    points = ConfigParser()
    points.optionxform = str  # type: ignore[assignment,method-assign]
    points.read_string(of_metadata(wheel, "entry_points.txt"))
    assert set(points) >= {"lmms_eval.models", "console_scripts"}
    for group in points:
        for target in points[group].values():
            module, _, name = target.partition(":")
            assert callable(getattr(import_module(module), name))
    ours = [path for room in ("lvlm_radapt", "eval_tasks", "attacks") for path in (ROOT / room).rglob("*.py")]
    imported = [
        path for path in ours if "lvlm_radapt.harnesses" in path.read_text() and path.parent.name != "harnesses"
    ]
    assert imported == []
