"""A document with any value in any field is read, or refused in one line: nothing else may come of it."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from eval_tasks.report.page import tables, write_report
from eval_tasks.report.retrieval_table import recall_rows, recall_table
from eval_tasks.run.records import Run, read_run
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.experiments.tune.results import recommended
from lvlm_radapt.loading.load import load_encoder
from tests.helpers.data_sets import write
from tests.helpers.evaluations import evaluation, score
from tests.helpers.failures import perhaps_refused
from tests.helpers.run_folders import Maker, attack, spread, without_checksums

ODD = st.sampled_from(
    [None, True, -1, 0, 10**30, 1e308, -0.0, "", "x", "\ud800", "\x1b[31m", "../x", [], {}, [[]], [None], {"a": None}]
) | st.text(max_size=4)
GONE = object()


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of a document, at any depth."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def edited(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = content.copy()
    if len(path) == 1 and value is GONE:
        del copy[path[0]]
    else:
        copy[path[0]] = edited(content[path[0]], path[1:], value)
    return copy


def reported(path: Path, out: Path) -> Run:
    """What `report` does."""
    run = read_run(path)
    write_report([run], out)
    shown = Console(file=io.StringIO(), width=100)
    for table in tables([run]).values():
        shown.print(table.to_rich())
        table.to_csv()
        table.to_markdown()
    shown.print(recall_table(recall_rows([run])))
    return run


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs with every kind of field, as an earlier version left them: no checksum refuses an edit."""
    root = tmp_path_factory.mktemp("real")
    write_scenes(root / "scenes", count=8, per_class=1)
    for task, name in (("coco-retrieval", "contrastive"), ("imagefolder", "apgd-ce")):
        folder = root / "scenes" / "classes" if task == "imagefolder" else root / "scenes"
        wanted = evaluation(task, folder, name, eps="8/255", steps=2, samples=4, seed=1)
        score(load_encoder("tiny-clip"), wanted, root / task)
    answers = Maker(root)(
        spread(30, 1), attacked=attack(name="targeted", target="a cat"), radapt={"cutoff": 40.0, "alpha": 1.0}
    ).path
    answers.rename(root / "captions")
    return {name: without_checksums(root / name) for name in ("coco-retrieval", "imagefolder", "captions")}


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    kind=st.sampled_from(["coco-retrieval", "imagefolder", "captions"]),
    name=st.sampled_from(["run.json", "metrics.json"]),
    draw=st.data(),
)
def test_a_report_of_a_run_with_any_field_changed(
    real: dict[str, Path], tmp_path: Path, kind: str, name: str, draw: st.DataObject
) -> None:
    run = tmp_path / kind
    if not run.exists():
        shutil.copytree(real[kind], run)
    content = json.loads((real[kind] / name).read_bytes())
    path = draw.draw(st.sampled_from([*places(content)]))
    write(run / name, edited(content, path, draw.draw(st.just(GONE) | ODD)))
    try:
        with perhaps_refused():
            assert reported(run, tmp_path / "report.html").samples
    finally:
        shutil.copy(real[kind] / name, run / name)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(draw=st.data())
def test_a_tuning_with_any_field_changed_recommends_or_is_refused(tmp_path: Path, draw: st.DataObject) -> None:
    calibration = {"format": "lvlm-radapt calibration", "version": 1, "task": "coco", "data": "x", "n": 1}
    content = {
        "format": "lvlm-radapt tuning",
        "version": 1,
        "calibration": calibration | {"ids": "0" * 64, "images": ["0" * 16]},
        "recommendation": {"radapt": RAdaptConfig(cutoff=20.0).to_dict(), "said": "better"},
    }
    write(tmp_path / "tune.json", content)
    assert recommended(tmp_path)[0].cutoff == 20
    path = draw.draw(st.sampled_from([*places(content)]))
    write(tmp_path / "tune.json", edited(content, path, draw.draw(st.just(GONE) | ODD)))
    with perhaps_refused():
        recommended(tmp_path)
