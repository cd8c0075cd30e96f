"""Every folder this package writes can be read by those whom the umask lets read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_checkpoints

from lvlm_radapt import RAdaptConfig, load_model, robustify
from lvlm_radapt.checkpoint import save_adapter
from lvlm_radapt.export import export_model, save_stock
from lvlm_radapt.fold import fold_model
from lvlm_radapt.folders import new_folder
from lvlm_radapt.models import LVLM
from lvlm_radapt.tiny import build


def stock(model: LVLM, out: Path) -> None:
    """As fine-tuning and `replace` write."""
    with new_folder(out) as folder:
        save_stock(model, folder)


def in_shards(model: LVLM, out: Path) -> None:
    export_model(model, out, max_shard_size="100KB")


def embedded(model: LVLM, out: Path) -> None:
    build.save("tiny-clip", build.clip(), out)


WRITERS: dict[str, Callable[[LVLM, Path], None]] = {
    "adapter": save_adapter,
    "export": export_model,
    "export in shards": in_shards,
    "fold": fold_model,
    "stock": stock,
    "embedded": embedded,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LVLM:
    folder = tiny_checkpoints.save_qwen(tmp_path_factory.mktemp("base"))
    return robustify(load_model(folder), RAdaptConfig(cutoff=None))


@pytest.fixture(params=[0o022, 0o077, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("writer", WRITERS)
def test_files_and_folders_follow_the_umask(model: LVLM, tmp_path: Path, umask: int, writer: str) -> None:
    out = tmp_path / "out"
    WRITERS[writer](model, out)
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in out.rglob("*") if file.is_file()}
    assert any(name.endswith(".safetensors") for name in modes)
    assert modes == dict.fromkeys(modes, oct(0o666 & ~umask))
