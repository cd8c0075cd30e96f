"""A family is one record in its own file or package, and nothing else lists it."""

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from lvlm_radapt.loading.load import load_model
from lvlm_radapt.models import clip, families, family
from lvlm_radapt.models.families import encoder_families, lvlm_families
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.llava import FAMILY, LlavaLVLM
from tests.helpers import tiny_checkpoints
from tests.helpers.cli import Cli
from tests.helpers.failures import one_line
from tests.helpers.families import FAMILIES as ROWS
from tests.helpers.families import TABLE, Case
from tests.helpers.paths import ROOT

RECORD = """
from lvlm_radapt.models.family import Family
from lvlm_radapt.models.llava import FAMILY as LLAVA, LlavaLVLM

FAMILY = Family(
    checkpoints={checkpoints},
    lvlm=LlavaLVLM,
    towers=LLAVA.towers,
    image_processors=LLAVA.image_processors,
)
"""

Package = Callable[[str], Path]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Installs a package with one module `brings`, whose FAMILY is an entry point for families."""

    def install(source: str) -> Path:
        info = tmp_path / "brings-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brings\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{families.GROUP}]\nmine = brings:FAMILY\n")
        (tmp_path / "brings.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        forget()
        return tmp_path

    def forget() -> None:
        sys.modules.pop("brings", None)
        for known in (lvlm_families, encoder_families, families.image_processors):
            known.cache_clear()

    yield install
    monkeypatch.undo()
    forget()


def test_every_family_has_a_row_in_the_table_of_the_tests() -> None:
    listed = {family.available[kind] for kind, family in lvlm_families().items()}
    assert listed == {row.stock for row in TABLE if hasattr(transformers, row.stock)}


def documented() -> str:
    """The file of a family that docs/extend.md shows."""
    page = (ROOT / "docs" / "extend.md").read_text()
    blocks = re.findall(r"^   ```python\n(.*?)^   ```$", page, re.MULTILINE | re.DOTALL)
    (found,) = (block for block in blocks if "FAMILY = " in block)
    return textwrap.dedent(found)


def test_another_packages_family_is_opened_like_ours(package: Package, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoints.save_vipllava(tmp_path / "model")
    with one_line("model_type 'vipllava' is not supported"):
        load_model(checkpoint)
    package(documented())
    row = replace(ROWS["llava"], stock="VipLlavaForConditionalGeneration")
    case = Case(row, load_model(checkpoint), row.open_stock(checkpoint), checkpoint)
    assert type(case.ours).__module__ == "brings"
    picture = Image.effect_noise((70, 90), 90).convert("RGB")
    loss = case.ours.loss(case.ours.pixels([picture]), ["what"], ["a pig"])[0]
    torch.testing.assert_close(loss, case.stock_loss(picture, "what", "a pig"))


def test_a_family_that_transformers_lacks_is_absent(package: Package) -> None:
    package(RECORD.replace("{checkpoints}", '{"mine": ("LlavaOfNextYear",)}'))
    assert "mine" not in lvlm_families()
    assert "llava" in lvlm_families()


def test_a_file_that_asks_transformers_for_what_it_lacks_is_absent(package: Package) -> None:
    package("from transformers.models.next_year import Model\n")
    assert "llava" in lvlm_families()


def test_of_an_older_transformers_the_newer_families_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One lacks a class, the other a module."""
    whole, known = lvlm_families(), {name for name in dir(transformers) if "Qwen3_5" not in name}
    lvlm_families.cache_clear()
    with monkeypatch.context() as older:
        older.setattr(family, "known_classes", lambda: known)
        older.setitem(sys.modules, "transformers.models.glm4v.image_processing_pil_glm4v", None)
        older.delitem(sys.modules, "lvlm_radapt.models.glm")
        found = lvlm_families()
        lvlm_families.cache_clear()
    assert whole.keys() - found.keys() == {"qwen3_5", "qwen3_5_moe", "glm4v", "glm46v", "glm4v_moe"}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (RECORD.replace("{checkpoints}", '{"llava": ("LlavaForConditionalGeneration",)}'), "'llava' is claimed by two"),
        ("FAMILY = 3\n", "brings:FAMILY is no Family"),
        ("import nothing_of_this_name\n", "cannot import brings:FAMILY: No module named 'nothing_of_this_name'"),
        ("raise SystemExit('first\\nsecond')\n", "cannot import brings:FAMILY: first"),
        ("", "cannot import brings:FAMILY"),
    ],
    ids=["claimed twice", "no family", "does not import", "ends the program", "not there"],
)
def test_a_family_that_is_wrong_is_one_line(source: str, said: str, package: Package) -> None:
    package(source)
    with one_line(said):
        lvlm_families()


def test_the_command_line_says_it_too(package: Package, cli: Cli) -> None:
    package(RECORD.replace("{checkpoints}", '{"llava": ("LlavaForConditionalGeneration",)}'))
    said = " ".join(cli.refused("list", "models").split())
    assert "model_type 'llava' is claimed by two families, in lvlm_radapt.models.llava and in brings:FAMILY" in said


@pytest.mark.parametrize("told", [None, 5, "CLIPVisionModelWithProjection", ["another"], [["list"]]])
def test_of_two_transformers_classes_the_first_is_taken_unless_the_other_is_named(told: object) -> None:
    config = {"model_type": "clip_vision_model", "architectures": told}
    assert clip.FAMILY.hf_class(config) is transformers.CLIPVisionModel
    named = config | {"architectures": ["CLIPVisionModelWithProjection"]}
    assert clip.FAMILY.hf_class(named) is transformers.CLIPVisionModelWithProjection


def test_a_record_names_one_class_of_ours() -> None:
    with one_line("names both or none of lvlm and encoder"):
        Family(checkpoints={"mine": ("LlavaForConditionalGeneration",)}, towers=(), image_processors=())


def test_a_model_with_another_tower_than_the_familys_is_one_line(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoints.save_onevision(tmp_path)
    hf = load_model(checkpoint).hf
    with one_line("its vision tower is a SiglipVisionModel, which is not read"):
        Family(checkpoints=FAMILY.checkpoints, lvlm=LlavaLVLM, towers=FAMILY.towers[:1], image_processors=()).build(
            hf, None, None, name="mine"
        )


NARROW = """
from lvlm_radapt.towers.clip import CLIPTower


class NarrowTower(CLIPTower):
    encoders = ("CLIPVisionModel",)
"""
WRITE = """
import sys
from dataclasses import replace

import narrow
from lvlm_radapt.models import llava

llava.FAMILY = replace(llava.FAMILY, towers=(narrow.NarrowTower,))
from lvlm_radapt import export_model, load_model, robustify

export_model(robustify(load_model(sys.argv[1])), sys.argv[2])
"""
READ = """
import sys

from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model.model.vision_tower._radapt.tower).__name__ == "NarrowTower"
assert not {"lvlm_radapt", "narrow"} & sys.modules.keys()
"""


@pytest.mark.slow
def test_an_export_brings_another_packages_tower_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoints.save_llava(tmp_path / "model")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "narrow.py").write_text(NARROW)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with monkeypatch.context() as path:
        path.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "package"), *sys.path]))
        subprocess.run([sys.executable, "-c", WRITE, str(checkpoint), str(tmp_path / "out")], check=True)
    subprocess.run([sys.executable, "-c", READ, str(tmp_path / "out")], check=True)
