"""The gain of fine-tuned weights, against the model that they were made from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval_tasks.report.baseline import credited
from eval_tasks.report.build_table import comparison
from eval_tasks.run.records import read_run
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.loading.load import load_any
from tests.helpers.failures import one_line
from tests.helpers.run_folders import RADAPT, Maker, attack, spread


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def test_a_baseline_is_what_other_models_gain_against(make):
    stock = make(spread(10, 1), attacked=attack())
    tuned = make(spread(40, 2), attacked=attack(), model={"name": "low-rank"})
    both = make(spread(60, 3), RADAPT, attack(), model={"name": "low-rank"})
    alone = {row.model: row for row in comparison([stock, tuned, both]).rows}
    assert not alone["low-rank"].defended
    rows = comparison(credited([tuned, both], stock)).rows
    assert [row.defended for row in rows] == [False, True, True]
    gains = [row.gain.value for row in rows[1:]]
    assert gains[0] == pytest.approx(30, abs=3)
    assert gains[1] == pytest.approx(50, abs=3)  # against the baseline, not against the weights without R-Adapt
    assert rows[1].clean_change.value == 0
    # given twice, it is there once
    assert len(credited([stock, tuned], read_run(stock.path))) == 2


def test_a_baseline_that_is_none(make):
    stock = make(spread(10, 1), attacked=attack())
    protected = make(spread(40, 2), RADAPT, attack())
    with one_line("every run is of tiny-llava itself"):
        credited([stock, protected], stock)
    with one_line("is no baseline"):
        credited([stock], protected)


def test_runs_of_earlier_versions_are_measured_against_new_ones(make):
    """They wrote what an attack does not do, too."""
    stock = make(spread(10, 1), attacked=attack(name="apgd-ce"))
    written = stock.settings["attack"] | {"early_exit": False, "half": None}
    earlier = replace(stock, settings=stock.settings | {"attack": written})
    protected = make(spread(40, 2), RADAPT, attack(name="apgd-ce"))
    assert comparison([earlier, protected]).rows[1].gain.value == pytest.approx(30, abs=3)


@pytest.mark.slow
def test_fine_tuned_weights_are_measured_against_their_base_in_every_report(tmp_path, monkeypatch, cli):
    data = tmp_path / "scenes"
    write_scenes(data, count=24, per_class=1)

    def run(*words):
        told = cli.done(*words)
        return " ".join(told.split())

    # a copy of the model, as users have them: it is named by its path
    base = tmp_path / "base"
    run("robustify", "tiny-clip", "--replace", "embedding", "--guide", "tiny-clip", "--out", base)
    monkeypatch.chdir(tmp_path)
    training = ["--images", data / "val2014", "--steps", "1", "--batch-size", "4", "--device", "cpu"]
    run("finetune", "base", "--method", "fare", *training, "--out", "tuned")
    assert json.loads((tmp_path / "tuned" / "training.json").read_text())["base"] == str(base)
    run("robustify", "tuned", "--alpha", "0", "--out", "both")
    assert load_any("both").tuned_from == str(base)
    shared = ["--task", "imagefolder", "--data", data / "classes", "--samples", "4", "--device", "cpu"]
    attacked = ["--attack", "apgd-ce", "--steps", "1"]
    for model in ("base", "tuned", "both"):
        run("eval", model, *shared, *attacked, "--out", f"run-{model}")
    made = {name: read_run(tmp_path / f"run-{name}") for name in ("base", "tuned", "both")}
    assert made["tuned"].settings["model"]["tuned_from"] == str(base)
    assert "tuned_from" not in made["base"].settings["model"]
    rows = {row.defended: row for row in comparison([made["base"], made["tuned"]]).rows}
    assert set(rows) == {False, True}
    scores = [[s.adversarial.score for s in made[name].samples] for name in ("tuned", "base")]
    assert rows[True].gain.value == pytest.approx(sum(scores[0]) / 4 - sum(scores[1]) / 4)
    # without a run of the base, R-Adapt on top is measured against the weights that it is on
    assert comparison([made["tuned"], made["both"]]).rows[-1].gain.value is not None
    told = run("report", "run-tuned", "--baseline", "run-base", "--out", "report.html", "--format", "markdown")
    assert told.count("| ") > 0
    assert "n/a (undefended)" in told
