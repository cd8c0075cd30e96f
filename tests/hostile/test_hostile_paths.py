"""Paths that stand in files stay below the folder they belong to, and nothing but regular files is read."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_radapt.experiments.compare.preset import load_comparison
from lvlm_radapt.utils.names import is_one_part, leaves_folder
from tests.helpers.cases import Case, Place, Words, adapter, checkpoint, evaluated, file, run_folder

try:
    import h5py
except ImportError:  # of the extra zero-shot
    h5py = None

X, Y = (f"camelyonpatch_level_2_split_test_{one}.h5" for one in "xy")


def comparison(change: Callable[[dict[str, Any]], object], words: str) -> Case:
    """`compare` with the shipped comparison `scopes`, changed."""

    def arrange(at: Place) -> Words:
        content = json.loads(load_comparison("scopes").model_dump_json())
        change(content)
        (at.tmp / "mine.yaml").write_text(json.dumps(content))  # JSON is YAML
        return ["compare", at.tmp / "mine.yaml", "--out", at.out]

    return arrange, words


def called(name: str) -> Case:
    """A comparison whose first set is called so, wherever it is named."""

    def change(content: dict[str, Any]) -> None:
        old = next(iter(content["sets"]))
        content["sets"] = {name if key == old else key: one for key, one in content["sets"].items()}
        for holder in (*content["columns"], *content["rows"], *(row.get("finetune") or {} for row in content["rows"])):
            if holder.get("set") == old:
                holder["set"] = name

    return comparison(change, "a set's name is its folder's")


def pcam(put: Callable[[Path, Path], object], words: str) -> Case:
    """`data check pcam` of a good folder that `put(folder, outside)` changes; outside: a file of others."""

    def arrange(at: Place) -> Words:
        if h5py is None:
            pytest.skip("h5py is not installed")
        folder, outside = at.tmp / "set", at.tmp / "passwd"
        folder.mkdir()
        outside.write_bytes(b"root:x:0:0" * 10_000)
        for name, key, shape in ((X, "x", (2, 96, 96, 3)), (Y, "y", (2, 1, 1, 1))):
            with h5py.File(folder / name, "w") as made:
                made[key] = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) % 2
        put(folder, outside)
        return ["data", "check", "pcam", "--data", folder]

    return arrange, words


def external_storage(folder: Path, outside: Path) -> None:
    with h5py.File(folder / X, "w") as made:
        made.create_dataset("x", (2, 96, 96, 3), "u1", external=[(str(outside), 0, 2 * 96 * 96 * 3)])


def external_link(folder: Path, outside: Path) -> None:
    (folder / X).rename(outside)
    with h5py.File(folder / X, "w") as made:
        made["x"] = h5py.ExternalLink(str(outside), "x")


def soft_link(folder: Path, outside: Path) -> None:
    (folder / X).rename(outside)
    with h5py.File(folder / X, "w") as made:
        made["other"] = h5py.ExternalLink(str(outside), "/")
        made["x"] = h5py.SoftLink("/other/x")


def virtual(folder: Path, outside: Path) -> None:
    (folder / X).rename(outside)
    layout = h5py.VirtualLayout(shape=(2, 96, 96, 3), dtype="u1")
    layout[:] = h5py.VirtualSource(str(outside), "x", shape=(2, 96, 96, 3))
    with h5py.File(folder / X, "w") as made:
        made.create_virtual_dataset("x", layout)


def index(*shards: Any, name: str = "model.safetensors") -> Callable[[Path], object]:
    """A checkpoint in shards that lie where the index says."""

    def put(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "shard.safetensors")
        places = {f"w{number}": shard for number, shard in enumerate(shards)}
        (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return put


def pipe(name: str) -> Callable[[Path], object]:
    """A pipe in place of the file, to which nobody writes."""

    def put(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return put


def device(name: str) -> Callable[[Path], object]:
    """A link to a device that never ends, in place of the file."""

    def put(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return put


def linked(name: str, target: str) -> Callable[[Path], object]:
    """The file moved to where the link in its place points."""

    def put(folder: Path) -> None:
        (folder / name).rename(folder / target)
        (folder / name).symlink_to(target)

    return put


def named(name: str, put: Callable[[Path], object]) -> Callable[[Place], Path]:
    def made(at: Place) -> Path:
        (at.tmp / name).touch()
        put(at.tmp)
        return at.tmp / name

    return made


ELSEWHERE = "lies in another file, which is not read"
BESIDE = "index.json is damaged: it must name shards that lie beside it"
LINKED = "is a link to another place: copy the file there, or remove the link"
IRREGULAR = "it is no regular file"

CASES: dict[str, Case] = {
    **{
        f"a set of scenes called {name!r}": called(name)
        for name in ("../../evil", "/abs", "..", ".", "a/b", "a\\b", "C:evil", "x\0y", "\x1b[31m", ".hidden", "x\ny")
    },
    "an array in another file": pcam(external_storage, ELSEWHERE),
    "a link to an array of another file": pcam(external_link, ELSEWHERE),
    "a link by a way around": pcam(soft_link, ELSEWHERE),
    "an array made of other files": pcam(virtual, ELSEWHERE),
    "an array that is a group": pcam(
        lambda folder, _: h5py.File(folder / X, "w").create_group("x").file.close(), "is no HDF5 file with an array 'x'"
    ),
    "no array": pcam(lambda folder, _: h5py.File(folder / X, "w").close(), "is no HDF5 file with an array 'x'"),
    "no HDF5 file": pcam(lambda folder, _: (folder / X).write_bytes(b"x" * 999), "is no HDF5 file with an array 'x'"),
    "labels in another file": pcam(
        lambda folder, outside: (
            h5py.File(folder / Y, "w")
            .create_dataset("y", (2, 1, 1, 1), "u1", external=[(str(outside), 0, 2)])
            .file.close()
        ),
        ELSEWHERE,
    ),
    "a shard above its folder": checkpoint(index("../shard.safetensors"), BESIDE),
    "a shard from the root": checkpoint(index("/etc/passwd"), BESIDE),
    "a shard that is the folder above": checkpoint(index(".."), BESIDE),
    "a shard in a folder below": checkpoint(index("a/b.safetensors"), BESIDE),
    "a shard of a pickled checkpoint above its folder": checkpoint(index("../x.bin", name="pytorch_model.bin"), BESIDE),
    "an index without shards": checkpoint(index(), BESIDE),
    "an index that is a list": checkpoint(file("model.safetensors.index.json", b"[]"), "is no index of weight shards"),
    "run.json that is a pipe": run_folder(pipe("run.json"), "has no run.json"),
    "samples.jsonl that is a pipe": run_folder(pipe("samples.jsonl"), IRREGULAR),
    "samples.jsonl that never ends": run_folder(device("samples.jsonl"), LINKED),
    **{
        f"{name} that is a link to {what}": run_folder(linked(name, target), LINKED)
        for name in ("run.json", "samples.jsonl", "metrics.json")
        for what, target in (("a file outside", "../own"), ("another file in the run", "own"))
    },
    "metrics.json that never ends": run_folder(device("metrics.json"), "is not finished"),
    "an adapter's tensors that never end": adapter(device("adapter.safetensors"), IRREGULAR),
    "an adapter's tensors that are a pipe": adapter(pipe("adapter.safetensors"), IRREGULAR),
    "a config that is a pipe": checkpoint(pipe("config.json"), "has no config.json"),
    "weights that never end": checkpoint(device("model.safetensors"), "weights"),
    "a preset that is a pipe": (
        lambda at: evaluated({"--preset": str(named("p.yaml", pipe("p.yaml"))(at))}, "")[0](at),
        IRREGULAR,
    ),
    "a preset that never ends": (
        lambda at: evaluated({"--preset": str(named("p.yaml", device("p.yaml"))(at))}, "")[0](at),
        IRREGULAR,
    ),
    **{
        f"a tower{suffix} that is a {what.__name__}": (
            lambda at, suffix=suffix, what=what: [
                "robustify",
                at.model,
                "--out",
                at.out,
                "--tower",
                named(f"t{suffix}", what(f"t{suffix}"))(at),
            ],
            "no such (file|folder)",
        )
        for suffix in (".pt", ".safetensors")
        for what in (pipe, device)
    },
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_read_or_written_elsewhere(name: str, refused: Callable[[Case], str]) -> None:
    refused(CASES[name])


def test_a_good_array_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from eval_tasks.data import load_task

    words = pcam(lambda folder, outside: None, "")[0](Place(tmp_path, tmp_path, tmp_path, tmp_path))
    assert len(load_task("pcam", words[-1])) == 2


@given(st.text(max_size=12) | st.lists(st.sampled_from(["..", ".", "a", "/", "\\", "C:", ""]), max_size=5).map("".join))
def test_a_name_that_is_one_part_lies_in_its_folder(name: str) -> None:
    root = Path("/folder")
    if is_one_part(name):
        assert Path(os.path.normpath(root / name)).parent == root
    if not leaves_folder(name):
        assert Path(os.path.normpath(root / name)).is_relative_to(root)
