"""The benchmark that says how much of full fine-tuning's gain a cheaper defence has, on scores made by hand."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvlm_radapt.experiments.compare.preset import load_comparison
from lvlm_radapt.experiments.rows import slug
from tests.helpers.run_folders import Maker, attack
from tests.helpers.scripts import script

N = 40


@pytest.fixture(scope="module")
def gain_share() -> Any:
    return script("benchmarks/gain_share.py")


def compared(folder: Path, tmp_path: Path, whole: float = 40.0) -> Path:
    """A comparison of three defences: the whole one gains `whole` and loses 2 clean, the cheap one gains 28 and 32 by
    seed and loses 1, the weak one loses 10 under attack."""
    rows = [
        {"name": name, **({} if name == "none" else {"radapt": {"alpha": 0, "cutoff": 10.0 + i}})}
        for i, name in enumerate(("none", "FARE, seed 0", "cheap, seed 0", "cheap, seed 1", "weak"))
    ]
    comparison = load_comparison("scopes").changed(rows=rows, samples=N)
    folder.mkdir()
    (folder / "plan.json").write_text(comparison.model_dump_json())
    base = np.random.default_rng(0).uniform(20, 30, N)
    wobble = np.random.default_rng(1).normal(0, 1, N)
    wobble -= wobble.mean()
    trained = tmp_path / "weights"
    trained.mkdir()
    (trained / "training.json").write_text(json.dumps({"trained": 150, "weights": 1000}))
    make = Maker(tmp_path)
    for row, gain, lost in zip(comparison.rows, (0, whole, 28, 32, -10), (0, 2, 1, 1, 0), strict=True):
        run = make(
            (base + gain + (wobble if gain else 0)).tolist(),
            attacked=attack(),
            clean=[90.0 - lost] * N,
            model={"name": str(trained)} if row.name.startswith("cheap") else None,
        )
        target = folder / "runs" / slug(row.name)
        target.mkdir(parents=True)
        shutil.move(run.path, target / "vqa-adaptive-4-255")
    return folder


def said(
    gain_share: Any, capsys: pytest.CaptureFixture[str], folder: Path, whole: str = "FARE"
) -> dict[str, list[str]]:
    gain_share.print_tables(folder, whole)
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row for row in cells[1:]}


def test_the_share_is_of_the_mean_over_seeds_and_each_seed_stands_beside_it(
    gain_share: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = said(gain_share, capsys, compared(tmp_path / "comparison", tmp_path))
    assert list(table) == ["none", "FARE", "cheap", "weak"]
    _, weights, clean, lost, _, share, seeds = table["cheap"]
    assert (weights, clean.split()[0], lost.split()[0]) == ("15.0", "89.0", "-1.0")
    number, low, high = (float(part.strip("[],")) for part in share.split())
    assert number == 75  # (28 + 32) / 2 of 40
    assert low <= 75 <= high
    assert seeds == "70, 80"
    assert table["weak"][5].startswith("-25 [")


def test_of_no_clear_gain_there_is_no_share(
    gain_share: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = said(gain_share, capsys, compared(tmp_path / "comparison", tmp_path, whole=0.0))
    assert table["cheap"][5] == "no clear gain"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{made}", "--whole", "TeCoA"], "has no defence TeCoA: choose --whole of FARE, cheap"),
        (["{empty}"], "plan.json"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], expected: str, gain_share: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    made = compared(tmp_path / "comparison", tmp_path)
    words = [word.format(made=made, empty=tmp_path) for word in arguments]
    monkeypatch.setattr("sys.argv", ["gain_share.py", *words])
    with pytest.raises(SystemExit) as stopped:
        gain_share.main()
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert expected in shown.err
