"""A comparison from the words of a command line, on the user's own data."""

import json
import shutil
from pathlib import Path

import pytest

from eval_tasks.run.records import read_run
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.experiments.compare.words import comparison_of
from lvlm_radapt.experiments.rows import slug


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """`test` to score on, `train` to train on."""
    root = tmp_path_factory.mktemp("own")
    write_scenes(root / "test", count=4, per_class=1)
    write_scenes(root / "train", count=24, split="train")
    return root


def words_of(folders: Path, *words: str, task: str = "vqav2") -> list[str]:
    own = ["--task", task, "--data", folders / "test", "--samples", 2, "--steps", 1, "--device", "cpu"]
    return ["compare", *words, *map(str, own)]


def test_words_become_rows_in_the_order_given(folders):
    made = comparison_of(
        ["tiny-llava", "radapt", "low-rank+filter", "learned", "runs/own/model"],
        task="vqav2",
        data=folders / "test",
        preset="scenes",
        images=folders / "train",
        image_count=9,
    )
    assert [row.name for row in made.rows] == ["tiny-llava", "radapt", "low-rank+filter", "learned", "model"]
    stock, white, both, learned, own = made.rows
    assert stock.plain
    assert white.radapt == {"cutoff": 40.0, "alpha": 1.0}
    assert both.radapt == {"cutoff": 40.0, "alpha": 0.0}
    assert (both.finetune.rank, both.finetune.scope, both.finetune.lr, both.finetune.images) == (16, "tower", 8e-3, 9)
    assert learned.learn.set == both.finetune.set
    assert own.model == "runs/own/model"
    assert (made.columns[0].attack, made.eps, made.samples) == ("e2e", ["4/255"], 500)
    # of an encoder a classifier's attack; folders of one name are called by their paths
    two = comparison_of(["tiny-clip", "a/m", "b/m"], task="imagefolder", data=folders, preset="scenes")
    assert (two.columns[0].attack, [row.name for row in two.rows]) == ("apgd-ce", ["tiny-clip", "a/m", "b/m"])


@pytest.mark.slow
def test_models_words_and_folders_are_scored_against_the_first(folders, tmp_path, cli):
    adapter = tmp_path / "mine"
    cli.done("robustify", "tiny-llava", "--alpha", "0", "--out", adapter)
    out = tmp_path / "table"
    training = ["--images", folders / "train", "--train-steps", "1", "--out", out]
    words = words_of(folders, "tiny-llava", "filter", "low-rank", str(adapter))
    code, told, err = cli(*words, *training)
    assert (code, err) == (0, "")
    told = " ".join(told.split())
    assert "Differences to tiny-llava, paired by sample" in told
    assert "mine cannot be judged: adaptive 4/255 " in told  # 2 samples
    runs = {
        (row, threat): read_run(out / "runs" / row / f"vqav2-{threat}-4-255")
        for row in ("tiny-llava", "filter", "low-rank", "mine")
        for threat in ("adaptive", "transfer")
        if (row, threat) != ("tiny-llava", "transfer")
    }
    # the adapter of the filter is the filter
    for threat in ("adaptive", "transfer"):
        one, other = ([s.adversarial for s in runs[row, threat].samples] for row in ("filter", "mine"))
        assert one == other
    assert runs["low-rank", "adaptive"].settings["attack"]["threat"] == "adaptive"
    assert {run.settings["data"] for run in runs.values()} == {str(folders / "test")}
    assert not (out / "data").exists()
    log = json.loads((out / "models" / "low-rank-weights-tiny-llava" / "training.json").read_text())
    assert log["settings"]["rank"] == 16
    # as a preset's, it is gone on with
    (out / "comparison.json").unlink()
    cli.done(*words, *training, "--resume")
    assert (out / "comparison.json").is_file()


BLUR = """
from dataclasses import dataclass
from torch.nn.functional import avg_pool2d
from lvlm_radapt.defences.base import Defence

@dataclass(frozen=True)
class Blur(Defence):
    def pixels(self, x, seeds):
        return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
"""


@pytest.mark.slow
def test_defences_around_the_model_are_rows_attacked_as_eval_attacks_them(folders, tmp_path, monkeypatch, cli):
    (tmp_path / "ownrow.py").write_text(BLUR)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "table"
    words = words_of(folders, "tiny-llava", "jpeg", "random-resize", "ownrow:Blur")
    code, _, err = cli(*words, "--out", out)
    assert (code, err) == (0, "")
    task = ["--task", "vqav2", "--data", folders / "test", "--samples", 2, "--seed", 42, "--device", "cpu"]
    attack = ["--attack", "e2e", "--steps", 1, "--eps", "4/255", "--threat", "adaptive"]
    for name in ("jpeg", "random-resize", "ownrow:Blur"):
        alone = tmp_path / name
        flags = [*task, *attack, "--defence", name, "--preset", "scenes", "--out", alone]
        cli.done("eval", "tiny-llava", *flags)
        one, other = read_run(alone), read_run(out / "runs" / slug(name) / "vqav2-adaptive-4-255")
        assert one.settings["model"]["defence"] == other.settings["model"]["defence"]
        assert one.settings["model"]["defence"]["name"] == name.removeprefix("ownrow:")
        assert [s.adversarial for s in one.samples] == [s.adversarial for s in other.samples]
    stock = read_run(out / "runs" / "tiny-llava" / "vqav2-adaptive-4-255")
    assert stock.settings["model"].get("defence") is None


def test_a_defence_of_others_joins_fine_tuned_weights(folders):
    made = comparison_of(
        ["tiny-llava", "low-rank+jpeg"], task="vqav2", data=folders / "test", preset="scenes", images=folders / "train"
    )
    row = made.rows[1]
    assert (row.defence, row.finetune.rank, row.radapt) == ("jpeg", 16, None)
    # folders of earlier versions have no `defence` in their plan
    assert "defence" in row.model_dump()
    assert "defence" not in made.rows[0].model_dump()


MISTAKES = {
    "an unknown row": (["tiny-llava", "radpt"], [], "row 'radpt' is unknown: did you mean radapt?"),
    "no row": (["tiny-llava"], [], "needs rows beside tiny-llava"),
    "a row twice": (["tiny-llava", "filter", "filter"], [], "filter is named twice"),
    "the first model again": (["tiny-llava", "tiny-llava"], [], "tiny-llava is named twice"),
    "two rows of one name": (["tiny-llava", "x/a_b", "x/a-b"], [], "two rows are called x/a_b"),
    "two defences": (["tiny-llava", "filter+radapt"], [], "joins two defences"),
    "two defences, one of others": (["tiny-llava", "filter+jpeg"], [], "joins two defences"),
    "a plug-in that is not there": (["tiny-llava", "nowhere:Name"], [], "nowhere"),
    "nearly a defence of others": (["tiny-llava", "jpg"], [], "did you mean jpeg?"),
    "training without images": (["tiny-llava", "low-rank"], [], "--images"),
    "images for nothing": (["tiny-llava", "filter"], ["--images", "."], "leave it out"),
    "too few images": (["tiny-llava", "low-rank"], ["--images", "{}/train", "--image-count", "8"], "a batch takes 16"),
    "training on what is scored": (["tiny-llava", "low-rank"], ["--images", "{}"], "that image is scored"),
    "no such images": (["tiny-llava", "learned"], ["--images", "nowhere"], "nowhere"),
    "no such data": (["tiny-llava", "filter"], ["--data", "nowhere"], "nowhere"),
    "no such model": (["tiny-llava", "./nowhere"], [], "row nowhere needs ./nowhere"),
    "another family": (["tiny-llava", "tiny-qwen"], [], "row tiny-qwen is of another family: a qwen2_5_vl"),
    "an encoder among language models": (["tiny-llava", "tiny-clip"], [], "row tiny-clip is of another family"),
    "an attack that is none": (["tiny-llava", "filter"], ["--attack", "noise"], "noise"),
    "a bad budget": (["tiny-llava", "filter"], ["--eps", "4"], "4/255"),
    "an early exit of captions": (["tiny-llava", "filter"], ["--task", "coco", "--early-exit"], "--early-exit"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line_and_leave_nothing(name, folders, tmp_path, cli):
    words, more, what = MISTAKES[name]
    out = tmp_path / "out"
    flags = [flag.format(folders) for flag in more]
    assert what in cli.refused(*words_of(folders, *words), *flags, "--out", out)
    assert not out.exists()


def test_a_robustified_first_model_is_refused(folders, tmp_path, cli):
    adapter = tmp_path / "mine"
    cli.done("robustify", "tiny-llava", "--out", adapter)
    assert "name its base" in cli.refused(*words_of(folders, str(adapter), "filter"), "--out", tmp_path / "out")


@pytest.mark.parametrize("words", [["tiny-llava", "filter"], ["paper"]])
def test_own_data_need_task_and_folder(words, tmp_path, cli):
    more = ["--attack", "e2e"] if len(words) == 1 else []
    assert "give both --task and --data" in cli.refused("compare", *words, *more, "--out", tmp_path / "out")


def test_missing_images_are_told_before_a_model_is_opened(folders, tmp_path, cli):
    shutil.copytree(folders / "test", tmp_path / "test")
    for image in (tmp_path / "test" / "val2014").glob("*.png"):
        image.unlink()
    assert "images are missing" in cli.refused(*words_of(tmp_path, "tiny-llava", "filter"), "--out", tmp_path / "out")
