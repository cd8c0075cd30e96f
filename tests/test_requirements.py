"""The locked set-up: what `make setup` and `make test-compat` install is what pyproject.toml asks for."""

import re
import tomllib
from collections.abc import Iterator

import pytest
from packaging.markers import Environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = {"3.11": "3.11.7", "3.12": "3.12.1", "3.13": "3.13.0"}


def linux(python: str) -> Environment:
    """The markers' values on Linux with that Python."""
    return {
        "implementation_name": "cpython",
        "implementation_version": PYTHONS[python],
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": PYTHONS[python],
        "python_version": python,
        "sys_platform": "linux",
    }


def asked() -> Iterator[Requirement]:
    """Everything that pyproject.toml requires, also by an extra or to build."""
    project = PROJECT["project"]
    lines = [project["dependencies"], *project["optional-dependencies"].values()]
    lines += [PROJECT["build-system"]["requires"], *PROJECT["dependency-groups"].values()]
    yield from (Requirement(line) for group in lines for line in group)


def locked(text: str, python: str) -> dict[str, Version]:
    """Versions by name that pip installs from a requirements file's text on Linux."""
    found = {}
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        requirement = Requirement(re.sub(r" --hash=\S+", "", line)) if re.match(r"\w", line) else None
        if requirement and (requirement.marker is None or requirement.marker.evaluate(linux(python))):
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is locked twice for Python {python}"
            found[name] = Version(pin.version)
    return found


def shortfalls(versions: dict[str, Version], python: str) -> list[str]:
    """Requirements of pyproject.toml that the versions leave out or do not meet on that Python."""
    missed = []
    for requirement in asked():
        if requirement.marker is not None and not requirement.marker.evaluate(linux(python)):
            continue
        version = versions.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            missed.append(f"{requirement}: {version}")
    return missed


def read(name: str) -> str:
    return (ROOT / "requirements" / name).read_text()


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_meets_every_requirement(python: str) -> None:
    missed = shortfalls(locked(read("lock.txt") + read("torch.txt"), python), python)
    assert not missed, f"run `make lock`: {missed}"


def test_the_oldest_set_meets_every_requirement_at_its_lower_bound() -> None:
    """Its own lower bound each: a bound that another package's bound overrules has never been tried."""
    versions = locked(read("oldest.txt"), "3.11")
    missed = []
    for requirement in asked():
        (floor,) = (Version(bound.version) for bound in requirement.specifier if bound.operator == ">=")
        if requirement.name != "torch" and versions.get(canonicalize_name(requirement.name)) != floor:
            missed.append(f"{requirement}: {versions.get(canonicalize_name(requirement.name))}")
    assert not missed, f"run `make lock`, or raise the lower bound in pyproject.toml: {missed}"


def test_a_requirement_that_the_lock_misses_is_seen() -> None:
    text = read("lock.txt") + read("torch.txt")
    without = re.sub(r"^typer==.*\n", "", text, flags=re.MULTILINE)
    assert [miss.partition(">")[0] for miss in shortfalls(locked(without, "3.12"), "3.12")] == ["typer"]
    older = re.sub(r"^typer==\S+", "typer==0.12.0", text, flags=re.MULTILINE)
    assert [miss.partition(">")[0] for miss in shortfalls(locked(older, "3.12"), "3.12")] == ["typer"]
    marked = re.sub(r"^numpy==.*python_full_version >= '3.12'.*\n", "", text, flags=re.MULTILINE)
    assert not shortfalls(locked(marked, "3.11"), "3.11")
    assert [miss.partition(">")[0] for miss in shortfalls(locked(marked, "3.13"), "3.13")] == ["numpy"]


@pytest.mark.parametrize("name", ["lock.txt", "oldest.txt"])
def test_every_locked_file_has_a_hash_and_no_package_index_is_named(name: str) -> None:
    text = read(name)
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        assert not re.match(r"\w", line) or re.search(r"--hash=sha256:[0-9a-f]{64}", line), line
    assert "://" not in text
    assert not re.search(r"^--?(index|extra-index|find-links|i\b|f\b)", text, re.MULTILINE)
