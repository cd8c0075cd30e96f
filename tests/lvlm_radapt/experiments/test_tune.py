"""Choosing the knobs: what is tried, what is recommended, and that calibration images are known again."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from eval_tasks.data import load_task, select
from eval_tasks.metrics import bootstrap_ci
from eval_tasks.report.table_formats import Cell
from eval_tasks.run.calibration import FILE, calibration_note, calibration_on, image_digest, read_calibration
from eval_tasks.run.records import RunFolder, read_run
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.experiments.tune.choose import best_pair, choose
from lvlm_radapt.experiments.tune.knobs import DEFAULT, Knobs, knobs_of, numbers, point_name
from lvlm_radapt.experiments.tune.measured import Measured
from lvlm_radapt.plots.tuning import clean_robust_curves, tradeoff
from tests.helpers.data_sets import scenes_folder
from tests.helpers.failures import one_line

data = scenes_folder(count=6, split="validation")


@pytest.mark.parametrize(
    ("text", "step", "values"),
    [
        ("20,40", 10, (20, 40)),
        ("10..60", 10, (10, 20, 30, 40, 50, 60)),
        ("0..2:0.5", 0.25, (0, 0.5, 1, 1.5, 2)),
        ("0..0.3:0.1", 1, (0, 0.1, 0.2, 0.3)),
        ("none, 30 ,30", 10, (None, 30)),
        ("40..40", 10, (40,)),
        ("-1..1:1", 1, (-1, 0, 1)),
    ],
)
def test_values_as_users_write_them(text, step, values):
    assert numbers(text, "--x", step=step) == values


@pytest.mark.parametrize("text", ["", "a", "1..", "..2", "2..1", "1..2:0", "1..2:-1", "5:1", "nan", "1..inf", "0..1e9"])
def test_values_that_mean_nothing_are_refused_by_their_flag(text):
    with one_line("--cutoffs"):
        numbers(text, "--cutoffs", step=1)


def test_a_sweep_moves_one_knob_at_a_time_and_tries_nothing_twice():
    knobs = knobs_of("20,40,none", "0,1,2", "add,interpolate")
    points = knobs.points()
    assert len(points) == len(set(points))
    expected = {(20, 1, "interpolate"), (40, 1, "interpolate"), (None, 1, "interpolate")}
    expected |= {(40, 0, "interpolate"), (40, 2, "interpolate"), (40, 1, "add"), (40, 2, "add")}
    assert {(p.cutoff, p.alpha, p.mix) for p in points} == expected
    assert points[0] == DEFAULT
    assert len({point_name(point) for point in points}) == len(points)


@pytest.mark.parametrize(
    ("cutoffs", "alphas", "mixes", "what"),
    [("0", "1", "add", "cutoff is 0"), ("40", "none", "add", "none is for"), ("40", "1", "mixed", "unknown")],
)
def test_sweeps_that_no_defence_has_are_refused(cutoffs, alphas, mixes, what):
    with one_line(what):
        knobs_of(cutoffs, alphas, mixes)


def measured(point: RAdaptConfig, clean_loss: float, differences: list[float], undefended: float = 50.0) -> Measured:
    mean = sum(differences) / len(differences)
    row = SimpleNamespace(
        clean=Cell(value=80 - clean_loss),
        adaptive=Cell(value=undefended + mean),
        clean_change=Cell(value=-clean_loss, signed=True),
        notes=(),
    )
    return Measured(point, row, tuple(differences))


GOOD = [10.0, 12.0, 8.0, 11.0] * 8
POINTS = [replace(DEFAULT, cutoff=float(c)) for c in (10, 20, 30, 40)]


def test_the_most_robust_setting_within_the_clean_loss_is_recommended():
    found = [measured(POINTS[0], 9.0, [d + 30 for d in GOOD]), measured(POINTS[1], 0.5, GOOD)]
    found.append(measured(POINTS[2], 0.0, [d / 2 for d in GOOD]))
    choice = choose(found, clean=80, max_loss=2, n=32)
    assert choice.best is found[1]
    assert choice.beats
    assert choice.allowed == 2
    assert "beats the undefended model" in choice.said
    # 2 % of 80 is 1.6: at that loss it is still allowed
    assert choose([measured(POINTS[0], 1.6, GOOD)], clean=80, max_loss=2, n=32).best is not None
    assert choose([measured(POINTS[0], 1.7, GOOD)], clean=80, max_loss=2, n=32).best is None


@pytest.mark.parametrize(
    ("differences", "words"),
    [([30.0, -28.0] * 16, "makes no clear difference"), ([-d for d in GOOD], "is worse"), ([0.0] * 24, "no clear")],
)
def test_where_nothing_beats_the_undefended_model_that_is_said(differences, words):
    choice = choose([measured(POINTS[0], 0.0, differences)], clean=80, max_loss=2, n=len(differences))
    assert not choice.beats
    assert choice.said.startswith("Nothing beats the undefended model")
    assert words in choice.said


def test_a_few_samples_beat_nothing_however_clear_they_look():
    choice = choose([measured(POINTS[0], 0.0, GOOD[:19])], clean=80, max_loss=2, n=19)
    assert choice.gain is not None
    assert choice.gain.low > 0
    assert not choice.beats
    assert choice.said.startswith("Too few samples to tell")
    assert "over 19 images where 20 are the least" in choice.said
    # 32 samples of 16 images are 16
    shared = replace(measured(POINTS[0], 0.0, GOOD), images=tuple(str(i // 2) for i in range(32)))
    assert "over 16 images" in choose([shared], clean=80, max_loss=2, n=32).said


def test_where_every_setting_costs_too_much_the_cheapest_is_named():
    found = [measured(POINTS[0], 40.0, GOOD), measured(POINTS[1], 8.0, GOOD)]
    choice = choose(found, clean=80, max_loss=2, n=32)
    assert choice.best is None
    assert "cutoff 20" in choice.said
    assert "10.0 %" in choice.said


def test_the_best_of_many_needs_more_proof_than_one_alone():
    # a gain that 95 % shows of one setting, and no longer of the best of forty
    differences = [1.0] * 20 + [-1.0] * 8
    low, high = bootstrap_ci(differences)
    assert low > 0
    one = measured(DEFAULT, 0.0, differences)
    assert choose([one], clean=80, max_loss=2, n=28).beats
    others = [measured(replace(DEFAULT, cutoff=c), 0.0, [0.0] * 28) for c in range(100, 140)]
    among = choose([one, *others], clean=80, max_loss=2, n=28)
    assert among.best is one
    assert not among.beats
    assert among.gain is not None
    assert among.gain.low < low < high < among.gain.high


def test_the_best_pair_joins_the_best_of_each_line():
    knobs = Knobs((20.0, 40.0), (0.0, 1.0), ("interpolate", "add"))
    scores = {
        (20.0, 1.0, "interpolate"): (5.0, 9.0),
        (40.0, 1.0, "interpolate"): (5.0, 1.0),
        (40.0, 0.0, "interpolate"): (0.0, 2.0),
        (40.0, 1.0, "add"): (0.0, 3.0),
    }
    found = [
        measured(RAdaptConfig(cutoff=c, alpha=a, mix=m), loss, [gain]) for (c, a, m), (loss, gain) in scores.items()
    ]
    pair = best_pair(knobs, found, clean=80, max_loss=2)
    assert (pair.cutoff, pair.alpha, pair.mix) == (20.0, 1.0, "add")
    # at a lower price nothing of the second line is allowed but the filter alone
    assert best_pair(knobs, found[:3], clean=80, max_loss=2).alpha == 0


def _cell(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 1, "high": value + 2}


def test_the_curves_show_what_the_rows_say():
    rows = [
        {"name": str(c), "cutoff": c, "alpha": 1.0, "mix": "interpolate"}
        | {name: _cell(base + (c or 70)) for name, base in (("clean", 20), ("transfer", 10), ("adaptive", 0))}
        for c in (40.0, 10.0, None)
    ]
    undefended = {"clean": _cell(95), "adaptive": _cell(5)}
    axes = clean_robust_curves(rows, knob="cutoff", undefended=undefended, label="accuracy, %")
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["adaptive"].get_xydata().tolist() == [[10, 10], [40, 40]]
    assert lines["clean"].get_xydata().tolist() == [[10, 30], [40, 60]]
    assert set(lines["undefended, clean"].get_ydata()) == {95}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "40", "no filter"]
    assert axes.get_ylabel() == "accuracy, %"
    assert "cycles" in axes.get_xlabel()
    scatter = tradeoff(rows, undefended=undefended, best="10.0", max_loss=2, label="accuracy, %")
    assert scatter.get_xlabel() == "clean accuracy, %"
    for draw in (clean_robust_curves, lambda none: tradeoff(none, undefended=undefended)):
        with pytest.raises(ValueError, match="no settings"):
            draw([])


def test_an_image_is_known_by_its_pixels_whatever_file_it_is_in(tmp_path):
    image = Image.linear_gradient("L").convert("RGB").resize((20, 10))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    image.resize((10, 20)).save(tmp_path / "c.png")
    image.putpixel((3, 3), (1, 2, 3))
    image.save(tmp_path / "d.png")
    digests = [image_digest(tmp_path / name) for name in ("a.png", "b.bmp", "c.png", "d.png")]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_model_that_was_calibrated_on_the_samples_says_so(data, tmp_path, cli):
    other = tmp_path / "test"
    write_scenes(other, count=6)  # the same ids, other images
    chosen, _ = select(load_task("vqav2", data), 4, 42)
    model = tmp_path / "radapt"
    cli.done("robustify", "tiny-llava", "--out", model)
    (model / FILE).write_text(calibration_note(calibration_on(chosen, task="vqav2", data=data))[FILE])
    words = ["eval", model, "--task", "vqav2", "--samples", "4", "--device", "cpu"]
    out = cli.done(*words, "--data", data, "--out", tmp_path / "same")
    assert "note: calibrated on these samples: 4 of 4" in out
    assert "no test of it" in read_run(tmp_path / "same").metrics["notes"][0]
    out = cli.done(*words, "--data", other, "--out", tmp_path / "apart")
    assert "calibrated" not in out
    (model / "calibration.json").write_text("{}")
    assert "calibration.json is damaged" in cli.refused(*words, "--data", data, "--out", tmp_path / "damaged")


SWEEP = ["--cutoffs", "40", "--alphas", "1", "--mixes", "add", "--samples", "4", "--steps", "1", "--eps", "8/255"]


def test_a_sweep_from_flags_to_figures_and_back_into_a_model(data, tmp_path, cli):
    out = tmp_path / "tune"
    words = ["tune", "tiny-llava", "--task", "vqav2", "--data", data, "--out", out, "--device", "cpu", *SWEEP]
    code, told, err = cli(*words)
    assert (code, err) == (0, "")
    document = json.loads((out / "tune.json").read_text())
    assert document["recommendation"]["said"] in told
    assert "no score here is a test score" in " ".join(told.split())
    points = {point["name"]: point for point in document["points"]}
    assert {"cutoff-40-alpha-1-interpolate", "cutoff-40-alpha-1-add"} == set(points)
    for name in ("curves.png", "tradeoff.png"):
        assert Image.open(out / name).size[0] > 600
    page = (out / "tune.html").read_text()
    assert page.count("data:image/png") == 2
    assert "<script" not in page
    rows = {row["setting"]: row for row in csv.DictReader((out / "points.csv").read_text().splitlines())}
    assert set(rows) == {"undefended", *points}

    undefended = read_run(out / "runs" / "undefended-adaptive")
    for name, point in points.items():
        transfer, adaptive = (read_run(out / "runs" / f"{name}-{threat}") for threat in ("transfer", "adaptive"))
        for sample in undefended.samples:  # crafted once
            images = [RunFolder(run.path).load_image(sample.id) for run in (undefended, transfer)]
            assert images[0].equal(images[1])
        assert transfer.settings["attack"]["threat"] == "transfer"
        for column, run in (("transfer", transfer), ("adaptive", adaptive)):
            mean = sum(s.adversarial.score for s in run.samples) / 4
            assert point[column]["value"] == pytest.approx(mean)
            assert float(rows[name][column]) == pytest.approx(mean)
        gain = [
            a.adversarial.score - b.adversarial.score for a, b in zip(adaptive.samples, undefended.samples, strict=True)
        ]
        assert point["gain"]["value"] == pytest.approx(sum(gain) / 4)

    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*")}
    assert "use --resume" in cli.refused(*words)
    (out / "tune.json").unlink()
    cli.done(*words, "--resume")
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing is done again
    assert (out / "tune.json").is_file()
    assert "other settings" in cli.refused(*words, "--resume", "--eps", "4/255")

    # the same defence, opened by itself: the sweep left nothing behind in the model
    model = tmp_path / "alone"
    cli.done("robustify", "tiny-llava", "--out", model)
    words = ["eval", model, "--task", "vqav2", "--data", data, "--attack", "e2e", "--device", "cpu", *SWEEP[6:]]
    cli.done(*words, "--out", tmp_path / "run")
    alone = read_run(tmp_path / "run")
    swept = read_run(out / "runs" / "cutoff-40-alpha-1-interpolate-adaptive")
    assert [(s.clean, s.adversarial) for s in alone.samples] == [(s.clean, s.adversarial) for s in swept.samples]


def _recommend(folder: Path, data: Path, settings: dict | None) -> None:
    chosen, _ = select(load_task("vqav2", data), 4, 42)
    calibration = calibration_on(chosen, task="vqav2", data=data).model_dump()
    folder.mkdir()
    document = {"format": "lvlm-radapt tuning", "version": 1, "calibration": calibration}
    document["recommendation"] = {"radapt": settings, "said": "Nothing beats the undefended model."}
    (folder / "tune.json").write_text(json.dumps(document))


def test_robustify_takes_what_a_tuning_recommends_and_what_it_was_calibrated_on(data, tmp_path, cli):
    _recommend(tmp_path / "tune", data, {"cutoff": 20.0, "alpha": 0.5, "mix": "add"})
    out = tmp_path / "radapt"
    told = cli.done("robustify", "tiny-llava", "--tuned", tmp_path / "tune", "--out", out)
    assert "cutoff 20" in told
    assert re.search(r"alpha 0\.5, add", told)
    assert read_calibration(out).n == 4
    assert read_calibration("tiny-llava") is None
    whole = tmp_path / "whole"
    cli.done("robustify", out, "--export", "--out", whole)
    assert read_calibration(whole) == read_calibration(out)


@pytest.mark.parametrize(
    ("settings", "more", "what"),
    [
        (None, [], "recommends no setting: Nothing beats"),
        ({"cutoff": -1.0}, [], "cutoff is -1"),
        ({}, ["--alpha", "1"], "leave --alpha out"),
    ],
)
def test_tunings_that_cannot_be_followed(settings, more, what, data, tmp_path, cli):
    _recommend(tmp_path / "tune", data, settings)
    out = tmp_path / "out"
    words = ["robustify", "tiny-llava", "--tuned", tmp_path / "tune", "--out", out, *more]
    assert what in cli.refused(*words)
    assert not out.exists()


MISTAKES = {
    "no white-box attack": (["--attack", "noise"], "noise"),
    "no attack": (["--attack", "none"], "makes answers wrong"),
    "a bad range": (["--cutoffs", "60..10"], "must go up"),
    "no such data": (["--data", "nowhere"], "nowhere"),
    "a loss above all": (["--max-clean-loss", "101"], "max-clean-loss"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line(name, data, tmp_path, cli):
    more, what = MISTAKES[name]
    out = tmp_path / "tune"
    words = ["tune", "tiny-llava", "--task", "vqav2", "--data", data, "--out", out, "--device", "cpu", *more]
    assert what in cli.refused(*words)
    assert not out.exists()


def test_a_robustified_model_is_not_tuned(data, tmp_path, cli):
    model = tmp_path / "radapt"
    cli.done("robustify", "tiny-llava", "--out", model)
    assert "has its settings already" in cli.refused(
        "tune", model, "--task", "vqav2", "--data", data, "--out", tmp_path / "t", "--device", "cpu"
    )


def test_calibration_scenes_are_no_test_scenes(tmp_path, cli):
    for split in ("validation", "test"):
        words = ["data", "scenes", "--out", tmp_path / split, "--split", split, "--count", "3", "--per-class", "0"]
        cli.done(*words)
    both = [
        {image_digest(path) for path in (tmp_path / split).glob("val2014/*.png")} for split in ("validation", "test")
    ]
    assert len(both[0]) == len(both[1]) == 3
    assert not both[0] & both[1]
    content = json.loads((tmp_path / "validation" / "scenes.json").read_text())
    assert content["split"] == "validation"
