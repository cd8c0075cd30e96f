"""The comparison table: its presets, its runs, and its numbers against the runs' own records."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from eval_tasks.config.presets import load_attack, load_protocol, load_task_config, names
from eval_tasks.metrics import paired_difference_ci
from eval_tasks.metrics.intervals import score_ci
from eval_tasks.run.records import RunFolder, read_run
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.experiments.compare.models import RowModels
from lvlm_radapt.experiments.compare.preset import SceneSet, load_comparison
from lvlm_radapt.experiments.rows import slug
from tests.helpers.slow import slow

SMALL = {
    "name": "small",
    "description": "few scenes",
    "protocol": "scenes",
    "samples": 4,
    "steps": 1,
    "eps": ["8/255"],
    "sets": {"test": {"split": "test"}, "train": {"split": "train"}},
    "columns": [
        {"title": "VQA", "task": "vqav2", "model": "tiny-llava", "set": "test", "attack": "e2e"},
        {"title": "classes", "task": "imagefolder", "model": "tiny-clip", "set": "test", "attack": "apgd-ce"},
    ],
    "rows": [{"name": "none"}, {"name": "R-Adapt", "radapt": {"cutoff": 40}}, {"name": "twin", "tower": "tiny-clip"}],
}


def written(tmp_path: Path, **changes) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


@pytest.mark.parametrize("name", names("comparisons"))
def test_shipped_comparisons_name_what_there_is(name):
    found = load_comparison(name)
    assert found.name == name
    load_protocol(found.protocol)
    for column in found.columns:
        load_task_config(column.task)
        load_attack(column.attack)
    scored = [found.sets[column.set] for column in found.columns]
    assert {one.split for one in scored if isinstance(one, SceneSet)} <= {"test"}
    for row in found.rows:
        if row.radapt is not None:
            assert RAdaptConfig.from_dict(row.radapt).cutoff in (40, None)


def test_the_paper_table_has_the_papers_rows_and_both_threat_models_budgets():
    paper = load_comparison("paper")
    assert [row.name for row in paper.rows] == [
        "none", "filter only", "anchor only", "R-Adapt_CLIP", "R-Adapt_FARE", "R-Adapt_TeCoA", "R-Adapt+", "shallow",
        "FARE", "TeCoA",
    ]  # fmt: skip
    assert (paper.samples, paper.steps, paper.eps) == (500, 100, ["4/255", "8/255"])
    ensemble = load_comparison("paper-ensemble")
    assert ensemble.rows == paper.rows
    assert ensemble.samples == 128


def test_the_photos_table_has_the_papers_rows_and_trains_on_no_photo_that_is_scored():
    photos = load_comparison("photos")
    papers = [
        "CLIP",
        "TeCoA",
        "TGA",
        "FARE",
        *(f"R-Adapt_{one}" for one in ("CLIP", "TeCoA", "TGA", "FARE")),
        "R-Adapt+",
    ]
    assert [row.name for row in photos.rows][:9] == papers
    trained = {source.set for row in photos.rows for source in (row.learn, row.finetune) if source}
    assert trained == {"train"}
    assert {column.set for column in photos.columns} == {"val", "cifar10"}
    assert (photos.samples, photos.eps) == (1000, ["2/255", "4/255"])


ROW = {"name": "x", "radapt": {"anchor": "learned"}}
PRESETS = {
    "a defended first row": ({"rows": SMALL["rows"][1:]}, "the first row must be the undefended model"),
    "two rows of a name": ({"rows": [*SMALL["rows"], {"name": "r adapt"}]}, "two rows are called"),
    "an unknown set": ({"columns": [{**SMALL["columns"][0], "set": "tst"}]}, "tst is not among the sets"),
    "a guide without its anchor": ({"rows": [{"name": "n"}, {"name": "x", "guide": "tiny-clip"}]}, "go together"),
    "an anchor to learn from nothing": ({"rows": [{"name": "n"}, ROW]}, "go together"),
    "learning from test images": ({"rows": [{"name": "n"}, {**ROW, "learn": {"set": "test"}}]}, "scores are taken on"),
    "a bad setting": ({"rows": [{"name": "n"}, {"name": "x", "radapt": {"cutoff": -1}}]}, "cutoff is -1"),
    "an unknown setting": ({"rows": [{"name": "n"}, {"name": "x", "cutoff": 3}]}, "cutoff"),
    "a budget in levels": ({"eps": ["4"]}, "4/255"),
    "no budget": ({"eps": []}, "eps"),
    "an attack that is none": ({"columns": [{**SMALL["columns"][0], "attack": "noise"}]}, "noise"),
    "early exit of an attack whose images others see": (
        {"columns": [{**SMALL["columns"][0], "early_exit": True}], "cross": True},
        "take early_exit from column VQA",
    ),
    "an early exit of captions": (
        {"columns": [{**SMALL["columns"][0], "task": "coco", "early_exit": True}]},
        "--early-exit is for questions",
    ),
    "an unknown task": ({"columns": [{**SMALL["columns"][0], "task": "vqa"}]}, "vqav2"),
    "a model that is not there": ({"columns": [{**SMALL["columns"][0], "model": "tiny-lava"}]}, "column VQA needs"),
    "a guide that is not there": (
        {"rows": [{"name": "n"}, {"name": "R-Adapt_X", "radapt": {"anchor": "guided"}, "guide": "tiny-clip-x"}]},
        "row R-Adapt_X needs tiny-clip-x",
    ),
    "a tower that is not there": ({"rows": [{"name": "n"}, {"name": "T", "tower": "gone/t.pt"}]}, "row T needs"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_mistakes_end_in_one_line_and_leave_nothing(name, tmp_path, cli):
    changes, what = PRESETS[name]
    out = tmp_path / "out"
    assert what in cli.refused("compare", written(tmp_path, **changes), "--out", out, "--device", "cpu")
    assert not out.exists()


def test_an_unknown_comparison_is_told_with_the_nearest_name(tmp_path, cli):
    assert "did you mean 'paper'" in cli.refused("compare", "papre", "--out", tmp_path / "out")


def test_transfer_images_are_made_to_last_where_adaptive_ones_leave_early(tmp_path, cli):
    out = tmp_path / "table"
    own = written(tmp_path, columns=[{**SMALL["columns"][0], "early_exit": True}], rows=SMALL["rows"][:2], steps=2)
    code, _, err = cli("compare", own, "--out", out, "--device", "cpu")
    assert (code, err) == (0, "")
    stock, defended = (read_run(out / "runs" / row / "vqa-transfer-8-255") for row in ("none", "r-adapt"))
    assert [s.adversarial.steps for s in stock.samples] == [2] * 4
    for sample in stock.samples:
        images = [RunFolder(run.path).load_image(sample.id) for run in (stock, defended)]
        assert images[0].equal(images[1])
    adaptive = read_run(out / "runs" / "r-adapt" / "vqa-adaptive-8-255")
    assert adaptive.settings["attack"]["early_exit"] is True
    assert "early exit; n = 4" in (out / "comparison.html").read_text()


@pytest.mark.parametrize("filtered", [False, slow(True)])
def test_every_row_sees_the_images_of_all_others_and_has_its_worst_score(filtered, tmp_path, cli):
    columns = [SMALL["columns"][0], {**SMALL["columns"][0], "title": "tokens", "attack": "embedding"}]
    rows = [*SMALL["rows"][:2], *([{"name": "filter", "radapt": {"cutoff": 20, "alpha": 0}}] if filtered else [])]
    out = tmp_path / "table"
    own = written(tmp_path, columns=columns, rows=rows, cross=True)
    words = ["compare", own, "--out", out, "--device", "cpu"]
    page = cli.done(*words, "--format", "markdown")
    assert "worst 8/255" in page
    table = {
        (row["defence"], row["column"], row["threat"]): float(row["score"] or "nan")
        for row in csv.DictReader((out / "comparison.csv").read_text().splitlines())
    }
    others = {"none": ("r-adapt", "filter"), "r-adapt": ("filter",), "filter": ("r-adapt",)}
    others = others if filtered else {"none": ("r-adapt",), "r-adapt": ()}
    for row in (one["name"] for one in rows):
        of_row = out / "runs" / slug(row)
        names = [f"{title}-{threat}-8-255" for title in ("vqa", "tokens") for threat in ("adaptive", "transfer")]
        names += [f"{title}-transfer-8-255-from-{other}" for title in ("vqa", "tokens") for other in others[slug(row)]]
        assert {folder.name for folder in of_row.iterdir()} == {*names} - (
            {"vqa-transfer-8-255", "tokens-transfer-8-255"} if row == "none" else set()
        )
        runs = [read_run(folder) for folder in sorted(of_row.iterdir())]
        worst = [
            min(scores) for scores in zip(*([s.adversarial.score for s in run.samples] for run in runs), strict=True)
        ]
        assert table[row, "VQA", "worst"] == table[row, "tokens", "worst"] == pytest.approx(sum(worst) / 4)
        for title, other in ((title, other) for title in ("vqa", "tokens") for other in others[slug(row)]):
            made, shown = (
                RunFolder(folder)
                for folder in (
                    out / "runs" / other / f"{title}-adaptive-8-255", of_row / f"{title}-transfer-8-255-from-{other}",
                )
            )  # fmt: skip
            for sample in runs[0].samples:
                assert made.load_image(sample.id).equal(shown.load_image(sample.id))
    assert (out / "comparison.html").read_text().count("Worst: the lowest score of each sample") == 1

    # a plan of before there was `cross` is the same plan
    plan = json.loads((out / "plan.json").read_text())
    assert plan.pop("cross") is True
    (out / "plan.json").write_text(json.dumps(plan))
    assert "other cross" in cli.refused(*words, "--resume")


def test_every_cell_is_a_run_and_every_number_comes_from_it(tmp_path, cli):
    out = tmp_path / "table"
    words = ["compare", written(tmp_path), "--out", out, "--device", "cpu"]
    code, told, err = cli(*words)
    assert (code, err) == (0, "")
    assert "R-Adapt" in told
    runs = {
        (row, column, threat): read_run(out / "runs" / slug(row) / f"{slug(column)}-{threat}-8-255")
        for row in ("none", "R-Adapt", "twin")
        for column in ("VQA", "classes")
        for threat in ("adaptive", "transfer")
        if (row, column, threat) != ("none", "VQA", "transfer")
    }
    assert len({run.settings["ids"]["sha256"] for key, run in runs.items() if key[1] == "VQA"}) == 1
    # of a classifier the white-box attack stops at the first success: transfer images are made to last
    sources = {"VQA": runs["none", "VQA", "adaptive"], "classes": runs["none", "classes", "transfer"]}
    for (row, column, threat), run in runs.items():
        assert run.settings["attack"]["threat"] == threat
        if threat == "transfer" and row != "none":
            for sample in run.samples:
                images = [RunFolder(one.path).load_image(sample.id) for one in (sources[column], run)]
                assert images[0].equal(images[1])
    # a tower with the very same weights is the undefended model
    for column in ("VQA", "classes"):
        stock, twin = runs["none", column, "adaptive"], runs["twin", column, "adaptive"]
        assert [s.adversarial.output for s in stock.samples] == [s.adversarial.output for s in twin.samples]

    table = {
        (row["defence"], row["column"], row["threat"]): row
        for row in csv.DictReader((out / "comparison.csv").read_text().splitlines())
    }
    assert len(table) == 3 * 2 * 3
    for (row, column, threat), run in runs.items():
        scores = [s.adversarial.score for s in run.samples]
        clean = {s.id: s.clean.output for s in runs["none", column, "adaptive"].samples}
        # the twelve questions' answers are single words: kept is equality
        kept = [100.0 * (s.adversarial.output == clean[s.id]) for s in run.samples]
        cell = table[row, column, threat]
        shown = [s.image for s in run.samples]
        for name, values in (("score", scores), ("kept", kept)):
            assert float(cell[name]) == pytest.approx(sum(values) / 4)
            bounds = tuple(float(cell[f"{name}_{end}"]) for end in ("low", "high"))
            assert bounds == pytest.approx(tuple(score_ci(values, "accuracy", shown)))
        if row == "none":
            assert cell["change"] == ""
            continue
        theirs = [s.adversarial.score for s in runs["none", column, "adaptive"].samples]
        low, high = paired_difference_ci(scores, theirs, images=shown)
        assert (float(cell["change_low"]), float(cell["change_high"])) == pytest.approx((low, high))
    page = (out / "comparison.html").read_text()
    links = [part.split('"')[0] for part in page.split('<a href="')[1:]]
    assert len(links) == 3 * 2 * 3 - 1  # clean too; all but the transfer cell that no run made
    assert all((out / link).is_file() for link in links)
    written_out = (out / "comparison.md").read_text()
    assert written_out.count("| R-Adapt |") == 2
    assert "Too few samples to tell: " in written_out  # 4 samples
    assert written_out.count(f"; n = {len(runs['none', 'VQA', 'adaptive'].samples)})") == 2

    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/*")}
    cli.refused(*words)
    again = cli.done(*words, "--resume", "--format", "csv")
    assert again.startswith((out / "comparison.csv").read_text())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "other steps" in cli.refused(*words, "--resume", "--steps", "2")


@pytest.mark.slow
def test_what_a_row_needs_is_trained_once_on_images_of_its_own(tmp_path, cli):
    learn = {"set": "train", "images": 12, "steps": 1, "batch": 4}
    tuned = {"scope": "embedding+attention1", "recipe": "scenes", **learn}
    rows = [
        {"name": "none"},
        {"name": "learned", "radapt": {"anchor": "learned"}, "learn": {**learn, "model": "tiny-clip"}},
        {"name": "shallow+", "radapt": {"alpha": 0}, "finetune": tuned},
        {"name": "shallow", "finetune": tuned},
        {"name": "both", "radapt": {"anchor": "learned"}, "learn": learn, "finetune": tuned | {"seed": 1, "lr": 1e-5}},
    ]
    columns = [{**column, "set": "test"} for column in SMALL["columns"]]
    own = written(tmp_path, rows=rows, columns=columns, samples=2)
    out = tmp_path / "table"
    words = ["compare", own, "--out", out, "--device", "cpu"]
    cli.done(*words)
    assert sorted(p.name for p in (out / "models").iterdir()) == [
        "both-anchor-tiny-clip", "both-anchor-tiny-llava", "both-weights-tiny-clip", "both-weights-tiny-llava",
        "learned-anchor-tiny-clip", "shallow+-weights-tiny-clip", "shallow+-weights-tiny-llava",
    ]  # fmt: skip
    content = json.loads((out / "data" / "train" / "scenes.json").read_text())
    assert content["split"] == "train"
    log = json.loads((out / "models" / "both-weights-tiny-llava" / "training.json").read_text())
    assert (log["settings"]["seed"], log["settings"]["lr"], log["settings"]["scope"]) == (1, 1e-5, tuned["scope"])
    # one anchor in both columns' models
    defences = [
        read_run(out / "runs" / "learned" / f"{column}-adaptive-8-255").settings["model"]["radapt"]
        for column in ("vqa", "classes")
    ]
    assert defences[0] == defences[1]
    assert defences[0]["anchor_from"].startswith("tiny-clip, 12 images")


def test_base_models_of_like_names_have_weights_of_their_own(tmp_path: Path) -> None:
    names = ("m_a", "m-a", "other")
    columns = [SMALL["columns"][0] | {"title": f"c{i}", "model": one} for i, one in enumerate(names)]
    rows = [SMALL["rows"][0], {"name": "tuned", "finetune": {"recipe": "scenes", "set": "train", "images": 8}}]
    comparison = load_comparison(str(written(tmp_path, columns=columns, rows=rows)))
    models = RowModels(comparison, load_protocol("scenes"), tmp_path, lambda title, count: lambda done, text: None)
    kept = [models.kept(comparison.rows[1], one, "weights").name for one in names]
    assert len(set(kept)) == 3
    assert kept[2] == "tuned-weights-other"  # as in comparisons that are there already
    assert all(name.startswith("tuned-weights-m-a-") for name in kept[:2])
