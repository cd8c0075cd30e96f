"""Plug-ins by name: three kinds of names, what each may be, one clear line for what is wrong, and which code it was."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.plugins import available, origin, read_settings, resolve
from tests.helpers.plugins import Kind


@dataclass(frozen=True)
class Ours(Kind):
    """A built-in one."""

    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.strength <= 0:
            raise UserError(f"strength is {self.strength}: give a number above 0")


OURS = {"ours": Ours}

OUTSIDE = """
from tests.helpers.plugins import Kind

class Blur(Kind):
    def __init__(self, size, *, rounds=1):
        self.size, self.rounds = size, rounds

class Broken(Kind):
    def __init__(self):
        raise RuntimeError("no\\ngood")

READY = Blur(7)

def function():
    return READY
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that one works in, with modules of one's own; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ""])
    (tmp_path / "outside_one.py").write_text(OUTSIDE)
    (tmp_path / "outside_syntax.py").write_text("def (")
    (tmp_path / "outside_exit.py").write_text("import sys\nsys.exit('left')")
    (tmp_path / "outside_needs.py").write_text("import a_package_that_is_not_there")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("outside_")]:
        del sys.modules[name]


def package(folder: Path, name: str, version: str, points: str) -> None:
    """An installed package, as pip leaves it: its metadata beside its module."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(f"{name}\n")
    (info / "entry_points.txt").write_text(points)


def test_ours_by_name_with_settings() -> None:
    assert resolve("kind", "ours", OURS, Kind) == Ours()
    assert resolve("kind", "ours", OURS, Kind, {"strength": 2}) == Ours(2)


def test_a_class_and_an_object_of_a_python_call() -> None:
    ready = Ours(3)
    assert resolve("kind", Ours, OURS, Kind, {"strength": 3}) == ready
    assert resolve("kind", ready, OURS, Kind) is ready


def test_a_path_finds_a_module_in_the_folder_one_works_in(outside: Path) -> None:
    made = resolve("kind", "outside_one:Blur", OURS, Kind, {"size": 3, "rounds": 2})
    assert (made.size, made.rounds) == (3, 2)
    assert resolve("kind", "outside_one:READY", OURS, Kind).size == 7


def test_a_module_of_that_folder_shadows_nothing_that_is_installed(outside: Path) -> None:
    (outside / "colorsys.py").write_text("raise SystemExit('shadowed')")
    with pytest.raises(UserError, match="the module colorsys has no Blur"):
        resolve("kind", "colorsys:Blur", OURS, Kind)


def test_a_plug_in_runs_only_when_it_is_named(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(outside, "outside_one", "1.2", "[lvlm_radapt.kinds]\nblur = outside_one:Blur\n")
    monkeypatch.syspath_prepend(outside)
    assert available("kind", OURS) == {"blur": "outside_one", "ours": ""}
    resolve("kind", "ours", OURS, Kind)
    assert "outside_one" not in sys.modules
    made = resolve("kind", "blur", OURS, Kind, {"size": 3})
    assert "outside_one" in sys.modules
    assert origin(made) == {
        "name": "outside_one:Blur",
        "version": "1.2",
        "sha256": hashlib.sha256(OUTSIDE.encode()).hexdigest(),
    }


def test_an_entry_point_does_not_replace_ours(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(outside, "outside_one", "1.2", "[lvlm_radapt.kinds]\nours = outside_one:Blur\n")
    monkeypatch.syspath_prepend(outside)
    assert resolve("kind", "ours", OURS, Kind) == Ours()
    assert available("kind", OURS) == {"ours": ""}


def test_origin_of_ours_and_of_code_without_package_or_file(outside: Path) -> None:
    assert origin(UserError) is None
    assert origin(resolve("kind", "outside_one:READY", OURS, Kind))["version"] is None
    words = "from lvlm_radapt.utils.plugins import origin\nclass Mine: pass\nprint(origin(Mine()))"
    said = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "{'name': '__main__:Mine', 'version': None, 'sha256': None}"


def two_packages(folder: Path) -> None:
    for name in ("outside_a", "outside_b"):
        package(folder, name, "1", f"[lvlm_radapt.kinds]\ntwice = {name}:Blur\n")


def lost_module(folder: Path) -> None:
    package(folder, "outside_lost", "1", "[lvlm_radapt.kinds]\nlost = outside_gone:Blur\n")


WRONG: dict[str, tuple[str, dict[str, object], str]] = {
    "a name nobody has": ("blurr", {}, "kind 'blurr' is unknown: choose one of lost, ours, twice, or name your own as"),
    "a file for a module": ("./outside_one.py:Blur", {}, "is no path: write pkg.module:Name, without .py and folders"),
    "no name in the module": ("outside_one:", {}, "is no path: write pkg.module:Name"),
    "a module that is not there": ("outside_none:Blur", {}, "kind outside_none:Blur does not import: ModuleNotFound"),
    "a module that needs another": ("outside_needs:Blur", {}, "No module named 'a_package_that_is_not_there'"),
    "a module that is no Python": ("outside_syntax:Blur", {}, "does not import: SyntaxError: "),
    "a module that ends the process": ("outside_exit:Blur", {}, "does not import: SystemExit: left"),
    "a name that the module lacks": ("outside_one:Blurr", {}, "the module outside_one has no Blurr"),
    "a function": ("outside_one:function", {}, "is no Kind: name a class that inherits from it"),
    "another class": ("pathlib:Path", {}, "is no Kind: name a class that inherits from it"),
    "a constructor that fails": ("outside_one:Broken", {}, "cannot be made: RuntimeError: no good"),
    "a setting out of range": ("ours", {"strength": 0}, "kind ours cannot be made: strength is 0: give a number above"),
    "a setting it does not know": ("ours", {"stregth": 2}, "kind ours has no setting stregth: known are strength"),
    "a setting where there are none": ("outside_one:Broken", {"a": 1}, "has no setting a: it has none"),
    "a setting that is lacking": ("outside_one:Blur", {"rounds": 2}, "needs the setting size"),
    "settings beside an object": ("outside_one:READY", {"size": 2}, "is an object with its settings made: leave size"),
    "one name in two packages": ("twice", {}, "kind twice is in several packages, outside_a, outside_b: uninstall"),
    "a package without its module": ("lost", {}, "kind lost of outside_lost does not import: ModuleNotFoundError"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(case: str, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, settings, expected = WRONG[case]
    makers: list[Callable[[Path], None]] = [two_packages, lost_module]
    for make in makers:
        make(outside)
    monkeypatch.syspath_prepend(outside)
    with pytest.raises(UserError) as refused:
        resolve("kind", named, OURS, Kind, settings)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_settings_of_a_command_line() -> None:
    pairs = ["a=60", "b=0.5", "c=true", "d=4/255", 'e="60"', "f=", "g=NaN", "h=x=y", "i=" + "[" * 100_000]
    read = read_settings(pairs)
    assert read.pop("i") == "[" * 100_000
    assert read == {"a": 60, "b": 0.5, "c": True, "d": "4/255", "e": "60", "f": "", "g": "NaN", "h": "x=y"}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (["quality"], "setting 'quality' is not KEY=VALUE"),
        (["=60"], "setting '=60' is not KEY=VALUE"),
        (["a=1", "a=2"], "setting a is given twice"),
    ],
)
def test_settings_that_are_none(pairs: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        read_settings(pairs)
