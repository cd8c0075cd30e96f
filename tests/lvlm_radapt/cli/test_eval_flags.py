"""What people who come from other tools type: several budgets at once, --limit and --output_path."""

import pytest

from eval_tasks.run.records import read_run
from lvlm_radapt.loading import load
from lvlm_radapt.loading.load import load_surrogate
from tests.helpers.tiny_checkpoints import save_llava


def test_several_budgets_are_a_run_each_as_if_made_alone(score, tmp_path):
    attack = ["--attack", "e2e", "--steps", 1, "--limit", 2]
    code, out, err = score(*attack, "--eps", "8/255, 16/255", "--output_path", tmp_path / "all", out=None)
    assert code == 0, err
    assert score(*attack, "--eps", "16/255", out="one")[0] == 0
    both = [read_run(tmp_path / "all" / name) for name in ("eps-8-255", "eps-16-255")]
    assert [run.metrics["eps"] for run in both] == [8 / 255, 16 / 255]
    alone = read_run(tmp_path / "one")
    assert len(alone.samples) == 2
    plain = [[one.model_copy(update={"seconds": 0}) for one in run.samples] for run in (both[1], alone)]
    assert plain[0] == plain[1]
    assert "8/255" in out
    assert "16/255" in out
    assert "16/255" in (tmp_path / "all" / "report.html").read_text()
    assert score(*attack, "--eps", "8/255, 16/255", "--resume", out="all")[0] == 0


def test_a_defence_is_put_in_once_for_all_budgets(score, tmp_path):
    flags = ["--attack", "embedding", "--steps", 1, "--samples", 2, "--defence", "jpeg"]
    code, _, err = score(*flags, "--eps", "8/255,16/255", out="all")
    assert code == 0, err
    for name in ("eps-8-255", "eps-16-255"):
        assert read_run(tmp_path / "all" / name).settings["model"]["defence"]["name"] == "jpeg"


def test_a_surrogate_is_opened_once_for_all_budgets(score, place, tmp_path, monkeypatch):
    opened = []

    def counted(name, **how):
        opened.append(name)
        return load_surrogate(name, **how)

    monkeypatch.setattr(load, "load_surrogate", counted)
    save_llava(tmp_path / "other", seed=1)
    flags = ["--attack", "embedding", "--steps", 1, "--samples", 2, "--threat", "transfer"]
    flags += ["--surrogate", tmp_path / "other"]
    code, _, err = score(*flags, "--eps", "8/255,16/255", out="all")
    assert code == 0, err
    assert opened == [str(tmp_path / "other")]
    monkeypatch.undo()
    assert score(*flags, "--eps", "16/255", out="one")[0] == 0
    runs = read_run(tmp_path / "all" / "eps-16-255"), read_run(tmp_path / "one")
    both, alone = ([one.model_copy(update={"seconds": 0}) for one in run.samples] for run in runs)
    assert both == alone


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--attack", "e2e", "--eps", "8/255,8/255"), "names a budget twice"),
        (("--attack", "e2e", "--eps", "8/255,"), "eps"),
        (("--attack", "e2e", "--eps", "8/255,lots"), "lots"),
        (("--eps", "8/255,16/255"), "--eps needs an attack"),
    ],
)
def test_budgets_that_make_no_sense_are_refused_before_any_run(score, tmp_path, flags, said):
    code, _, err = score(*flags, out="all")
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "all").exists()
