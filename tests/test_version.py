"""The version stands in one place, and every file that names it agrees."""

import tomllib
from importlib.metadata import version

import yaml

from tests.helpers.paths import ROOT


def test_the_version_is_shown_and_cited(cli) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert cli("--version") == (0, f"lvlm-radapt {declared}\n", "")
    assert version("lvlm-radapt") == declared
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == declared
