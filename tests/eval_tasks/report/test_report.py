"""The comparison table and report.html: nothing is filled in, nothing is loaded, nothing is believed."""

import base64
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from eval_tasks.metrics import bootstrap_ci, paired_difference_ci
from eval_tasks.metrics.vqa import RULES
from eval_tasks.metrics.wilson import wilson_ci
from eval_tasks.report import figures
from eval_tasks.report.build_table import NO_BASE, ONLY_TRANSFER, comparison, tables
from eval_tasks.report.figures import eps_panels, loss_panels, png_uri
from eval_tasks.report.page import findings_of, headlines_of, write_report
from eval_tasks.report.table_formats import COLUMNS, LEGEND, Cell
from eval_tasks.run.records import Run, RunFolder, image_name, read_run
from lvlm_radapt.plots.curves import Curve, draw_curves
from lvlm_radapt.plots.images import DIFFERENCE_GAIN, difference_image
from lvlm_radapt.utils.errors import UserError
from tests.helpers.run_folders import CLEAN, RADAPT, Maker, N, attack, spread, without_checksums

DEFENDED = "tiny-llava + R-Adapt (cutoff 40, alpha 1, interpolate, white)"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # hundreds of lines, none of which must outlive a crash
    return Maker(tmp_path)


def test_the_runs_of_these_tests_have_no_key_that_the_program_does_not_write(make: Maker) -> None:
    with pytest.raises(AssertionError, match="no run has the key eps_text"):
        attack(eps_text="4/255")
    for invented in ({"batch": 1}, {"model": {"colour": "red"}}, {"metrics": {"eps_text": "4/255"}}):
        with pytest.raises(AssertionError, match="no run has the key"):
            make(**invented)


# The table


def test_transfer_and_adaptive_share_a_row(make: Maker) -> None:
    runs = [
        make(spread(80, 1), RADAPT, attack("transfer")),
        make(spread(10, 2), None, attack()),
        make(spread(30, 3), RADAPT, attack()),
    ]
    table = comparison(runs)
    assert [row.model for row in table.rows] == ["tiny-llava", DEFENDED]
    stock, defended = table.rows
    assert str(stock.transfer) == "n/a (undefended)"
    assert stock.adaptive.value == pytest.approx(np.mean(spread(10, 2)))
    assert str(stock.gain) == "n/a (undefended)"
    assert defended.transfer.value == pytest.approx(np.mean(spread(80, 1)))
    assert defended.adaptive.value == pytest.approx(np.mean(spread(30, 3)))
    assert defended.clean.value == pytest.approx(np.mean(CLEAN))
    assert defended.n == N


def test_gain_is_the_paired_difference(make: Maker) -> None:
    weak, strong = spread(10, 2), spread(30, 3)
    gain = comparison([make(weak, None, attack()), make(strong, RADAPT, attack())]).rows[1].gain
    assert gain.value == pytest.approx(np.mean(np.subtract(strong, weak)))
    assert gain.interval == paired_difference_ci(strong, weak)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 7},
        {"tokenizer": "java"},
        {"prefix": "other"},
        {"model": {"dtype": "float16"}},
        {"model": {"geometry": "pad"}},
        {"attacked": {"steps": 20}},
        {"attacked": {"restarts": 2}},
        {"attacked": {"step_scale": 1.0}},
        {"attacked": {"random_start": False}},
        {"attacked": {"norm": "L2"}},
        {"attacked": {"eps": 5 / 255}},
        {"attacked": {"name": "embedding"}},
        {"asked": "vqav2"},
        {"radapt": RADAPT | {"alpha": 0.5}},
    ],
)
def test_runs_that_differ_are_never_paired(make: Maker, changes: dict[str, Any]) -> None:
    changes = dict(changes)
    other = attack("transfer") | changes.pop("attacked", {})
    radapt = changes.pop("radapt", RADAPT)
    table = comparison([make(spread(30, 1), RADAPT, attack()), make(spread(80, 2), radapt, other, **changes)])
    assert len(table.rows) == 2
    assert sorted((str(row.transfer) == "not run", str(row.adaptive) == "not run") for row in table.rows) == [
        (False, True),
        (True, False),
    ]
    reads = [row.texts()[:3] for row in table.rows]
    assert reads[0] != reads[1], "two rows that differ must not read the same"


def test_what_does_not_change_scores_may_differ(make: Maker) -> None:
    table = comparison(
        [
            make(spread(30, 1), RADAPT, attack(), batch_size=8, data="elsewhere", chunk_size=2),
            make(spread(80, 2), RADAPT, attack("transfer", surrogate="tiny-llava"), model={"device": "cuda"}),
        ]
    )
    assert len(table.rows) == 1


def test_missing_cells_say_so(make: Maker) -> None:
    (row,) = comparison([make(spread(80, 1), RADAPT, attack("transfer"))]).rows
    assert (str(row.adaptive), str(row.gain)) == ("not run", "not run")
    (row,) = comparison([make(spread(30, 1), RADAPT, attack())]).rows
    assert (str(row.transfer), str(row.gain)) == ("not run", "not run (undefended model)")
    (row,) = comparison([make()]).rows
    assert row.texts()[2:] == ("none", str(N), str(row.clean), "not run", "not run", "n/a", "")


def test_noise_is_a_control_whatever_threat_was_recorded(make: Maker) -> None:
    for threat in ("adaptive", "transfer", None):
        noise = attack(threat, name="noise")
        (row,) = comparison([make(spread(95, 1), RADAPT, noise)]).rows
        assert row.attack_text == "noise, Linf 4/255"
        assert row.transfer.value == pytest.approx(np.mean(spread(95, 1)))
        assert str(row.adaptive) == "n/a (noise)"
        assert not row.only_transfer


def earlier(run: Run) -> Run:
    """The run as it was when runs did not name their rule yet."""
    path = run.path / "run.json"
    document = json.loads(path.read_text())
    del document["answers"]
    path.write_text(json.dumps(document))
    without_checksums(run.path)
    return read_run(run.path)


def test_answers_scored_by_different_rules_stand_in_tables_of_their_own(make: Maker) -> None:
    def vqa(task: str, **answers: Any) -> Run:
        return make([60.0] * N, None, attack(), clean=[80.0] * N, asked=task, **answers)

    captions, other = make(spread(30, 1), None, attack()), vqa("textvqa", answers={"style": "textvqa"})
    new, old = vqa("vqav2"), earlier(vqa("vqav2"))
    official = vqa("vqav2", model={"radapt": RADAPT}, answers={"style": "vqav2", "rule": "words of it"})
    assert list(tables([captions, new, other])) == ["scenes"]  # one rule a task
    for runs in ([captions, new, old, other, official], [official, old, other, captions, new]):
        made = tables(runs)
        assert {label: [row.task for row in table.rows] for label, table in made.items()} == {
            "scenes": ["coco", "textvqa"],
            "scenes, answers by openflamingo": ["vqav2"],
            "scenes, answers by an earlier rule": ["vqav2"],
            "scenes, answers by vqav2": ["vqav2"],
        }
        assert all(table.preset == label for label, table in made.items())
    (row,) = made["scenes, answers by vqav2"].rows
    assert str(row.gain) == "not run (undefended model)", "the twin was scored by another rule"
    notes = {label: table.to_markdown() for label, table in made.items()}
    assert f"Answers of vqav2 are scored by openflamingo ({RULES['openflamingo']})." in notes[
        "scenes, answers by openflamingo"
    ].replace("\\", "")
    assert "by an earlier rule (which was none of the official ones)" in notes["scenes, answers by an earlier rule"]
    with pytest.raises(UserError, match=r"runs of vqav2 .* different rules: openflamingo, an earlier rule"):
        comparison([new, old])


def test_a_named_surrogate_is_shown_and_keeps_its_own_row(make: Maker) -> None:
    runs = [
        make(spread(30, 1), RADAPT, attack()),
        make(spread(80, 2), RADAPT, attack("transfer")),
        make(spread(70, 3), RADAPT, attack("transfer", surrogate="tiny-qwen")),
        make(spread(60, 4), None, attack("transfer", surrogate="tiny-qwen")),
    ]
    stock, own, foreign = comparison(runs).rows
    assert stock.transfer.detail == "crafted on tiny-qwen"
    assert str(stock.adaptive) == "not run"
    assert own.transfer.detail == ""
    assert foreign.transfer.detail == "crafted on tiny-qwen"
    assert own.adaptive == foreign.adaptive
    assert own.variant != foreign.variant
    # The same surrogate's images on the undefended model are the baseline of that transfer score.
    assert foreign.transfer_gain is not None
    assert foreign.transfer_gain.interval == paired_difference_ci(spread(70, 3), spread(60, 4))


@pytest.mark.parametrize(
    ("transfer", "adaptive", "flagged"),
    [(80, 10, True), (80, 5, True), (80, 60, False), (10, 10, False), (5, 5, False)],
)
def test_flag_of_a_defence_that_holds_only_when_unknown(
    make: Maker, transfer: float, adaptive: float, flagged: bool
) -> None:
    # Equal noise in both models: the difference is exact, a gain of 0 has the interval [0, 0].
    runs = [
        make(spread(10, 1), None, attack()),
        make(spread(transfer, 1), RADAPT, attack("transfer")),
        make(spread(adaptive, 1), RADAPT, attack()),
    ]
    row = comparison(runs).rows[1]
    assert row.only_transfer is flagged
    assert (ONLY_TRANSFER in row.notes) is flagged


def test_a_transfer_attack_that_beats_the_adaptive_one_is_told(make: Maker) -> None:
    runs = [make(spread(60, 1), RADAPT, attack()), make(spread(40, 2), RADAPT, attack("transfer"))]
    assert any("adaptive score is too high" in note for note in comparison(runs).rows[0].notes)
    runs = [make(spread(40, 1), RADAPT, attack()), make(spread(60, 2), RADAPT, attack("transfer"))]
    assert comparison(runs).rows[0].notes == ()


def first(count: int, yes: Any = True, no: Any = False) -> list[Any]:
    """A value a sample: `yes` for so many of them."""
    return [yes] * count + [no] * (N - count)


def test_zero_gradients_are_told(make: Maker) -> None:
    run = make(spread(60, 1), RADAPT, attack(), outcome={"zero_grad": first(3)})
    assert comparison([run]).rows[0].notes == (f"zero gradient on 3 of {N} samples (adaptive)",)


def test_presets_never_share_a_table(make: Maker) -> None:
    runs = [make(preset="fare"), make(preset="scenes"), make(spread(9, 1), None, attack(), preset="fare")]
    with pytest.raises(UserError, match="never share a table"):
        comparison(runs)
    made = tables(runs)
    assert {preset: len(table.rows) for preset, table in made.items()} == {"fare": 2, "scenes": 1}


def test_refusals(make: Maker) -> None:
    with pytest.raises(UserError, match="no runs"):
        comparison([])
    run = make(spread(10, 1), None, attack())
    assert len(comparison([run, read_run(run.path)]).rows) == 1  # one folder named twice
    with pytest.raises(UserError, match=r"run-1 and .*run-2 have the same settings"):
        comparison([run, make(spread(12, 2), None, attack())])
    with pytest.raises(UserError, match=r"attack\.threat is 'robust'"):
        comparison([make(spread(12, 2), None, attack("robust"))])
    with pytest.raises(UserError, match=r"lacks the field adversarial\.cider"):
        comparison([make(None, None, attack())])
    old = Run(run.path, {**run.settings, "model": "tiny-llava"}, run.metrics, run.samples)
    with pytest.raises(UserError, match=r"lacks the field model\.name"):
        comparison([old])
    old = Run(run.path, {**run.settings, "attack": "e2e"}, run.metrics, run.samples)
    with pytest.raises(UserError, match=r"lacks the field attack\.name"):
        comparison([old])


def test_rows_over_different_samples_carry_a_remark(make: Maker) -> None:
    table = comparison([make(), make(prefix="other")])
    assert len(table.notes) == 1
    assert "different samples" in table.notes[0]
    assert comparison([make()]).notes == ()


def test_an_absent_score_is_no_number(make: Maker) -> None:
    (row,) = comparison([make(clean=[None] * N)]).rows
    assert str(row.clean) == "n/a (no score)"


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"cutoff": None}, "no filter, alpha 1, interpolate, white"),
        ({"alpha": 0.0}, "cutoff 40, no anchor"),
        ({"cutoff": 22.5, "cutoff_unit": "image"}, "cutoff 22.5 per image side, alpha 1, interpolate, white"),
        ({"boundary": "periodic", "mix": "add"}, "cutoff 40, periodic, alpha 1, add, white"),
        (
            {"anchor": "learned", "anchor_from": "9 images (1f), eps 4/255, 2 steps, seed 0"},
            "cutoff 40, alpha 1, interpolate, learned from 9 images (1f), eps 4/255, 2 steps, seed 0",
        ),
    ],
)
def test_model_labels(make: Maker, changes: dict[str, Any], label: str) -> None:
    (row,) = comparison([make(spread(9, 1), RADAPT | changes, attack())]).rows
    assert row.model == f"tiny-llava + R-Adapt ({label})"


def test_numbers_have_one_decimal_and_no_minus_zero() -> None:
    assert str(Cell(value=-0.04, signed=True)) == "0.0"
    assert str(Cell(value=3.25001, signed=True)) == "+3.3"
    assert Cell(words="not run").bounds == ""


def flat(make: Maker) -> list[Run]:
    """Scores of one value, so that means and intervals are known without drawing."""
    return [make([12.25] * N, None, attack(), clean=[100.0] * N), make([12.25] * N, RADAPT, attack(), clean=[90.0] * N)]


def test_markdown_by_hand(make: Maker) -> None:
    lines = comparison(flat(make)).to_markdown().splitlines()
    assert lines[0] == "| " + " | ".join(COLUMNS) + " |"
    assert lines[1] == "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    assert lines[2] == (
        "| tiny-llava | coco (CIDEr x100) | e2e, Linf 4/255, 10 steps | 24 | 100.0 [100.0, 100.0] "
        "| n/a (undefended) | 12.2 [12.2, 12.2] | n/a (undefended) |  |"
    )
    assert lines[3] == (
        f"| {DEFENDED} | coco (CIDEr x100) | e2e, Linf 4/255, 10 steps | 24 | 90.0 [90.0, 90.0] "
        "| not run | 12.2 [12.2, 12.2] | 0.0 [0.0, 0.0] |  |"
    )
    assert lines[4:] == ["", f"Preset scenes. {LEGEND}"]


def test_scores_come_from_the_records_and_a_metrics_file_that_says_else_is_named(make: Maker) -> None:
    told = {"clean": {"cider": 99.9, "ci95": [99.0, 100.0]}, "adversarial": {"cider": 37.5, "ci95": [37.5, 37.5]}}
    (row,) = comparison([make([37.5] * N, None, attack(), clean=[50.0] * N, metrics=told)]).rows
    assert str(row.clean) == "50.0 [50.0, 50.0]"
    assert str(row.adaptive) == "37.5 [37.5, 37.5]"
    assert row.notes == ("metrics.json says 99.9 on clean images, but samples.jsonl 50.0, which counts",)


def test_markdown_cells_cannot_break_the_table(make: Maker) -> None:
    name = "a|b\n<b>*x*_y_`z`"
    text = comparison([make(model={"name": name})]).to_markdown()
    assert text.splitlines()[2].startswith(r"| a\|b &lt;b>\*x\*\_y\_\`z\` | coco")


def test_csv_by_hand(make: Maker) -> None:
    rows = list(csv.DictReader(io.StringIO(comparison(flat(make)).to_csv())))
    assert rows[1] == {
        "preset": "scenes",
        "model": DEFENDED,
        "task": "coco",
        "metric": "cider",
        "attack": "e2e",
        "norm": "Linf",
        "eps": str(4 / 255),
        "steps": "10",
        "variant": "",
        "n": "24",
        "clean": "90.0",
        "clean_low": "90.0",
        "clean_high": "90.0",
        "transfer": "not run",
        "transfer_low": "not run",
        "transfer_high": "not run",
        "adaptive": "12.25",
        "adaptive_low": "12.25",
        "adaptive_high": "12.25",
        "gain": "0.0",
        "gain_low": "0.0",
        "gain_high": "0.0",
        "surrogate": "",
        "note": "",
        "target": "",
        "transfer_success": "",
        "adaptive_success": "",
    }
    assert rows[0]["transfer"] == "n/a (undefended)"


def test_rich_shows_every_cell_and_reads_no_markup(make: Maker) -> None:
    run = make(spread(9, 1), RADAPT, attack(), model={"name": "[red]x[/red]"})
    console = Console(width=300, file=io.StringIO(), record=True)
    console.print(comparison([run]).to_rich())
    text = console.export_text()
    for part in ("[red]x[/red]", "not run", "Transfer", "Adaptive", "95% CI", "Preset scenes"):
        assert part in text


# What is said


def verdicts(runs: list[Run]) -> list[str]:
    return [finding.verdict for finding in findings_of(comparison(runs))]


def test_reading_follows_the_numbers(make: Maker) -> None:
    stock = make(spread(40, 1), None, attack())
    assert verdicts([stock, make(spread(70, 2), RADAPT, attack())])[1] == "Gains under the adaptive attack"
    assert verdicts([stock, make(spread(10, 2), RADAPT, attack())])[1] == "Worse than undefended"
    assert verdicts([stock, make(spread(40, 1), RADAPT, attack())])[1] == "No gain shown"
    transfer = make(spread(90, 2), RADAPT, attack("transfer"))
    assert verdicts([stock, transfer])[1] == "Adaptive attack not run"
    only = [stock, transfer, make(spread(40, 1), RADAPT, attack())]
    assert verdicts(only)[1] == "Holds only against attacks that do not know it"
    assert verdicts([make(), make(spread(9, 1), None, attack(name="noise"))]) == ["Not attacked", "Control"]


def test_a_model_has_one_headline_with_the_worst_first(make: Maker) -> None:
    runs = []
    for eps, defended in ((1 / 255, 70), (2 / 255, 70), (4 / 255, 10)):
        runs += [make(spread(40, 1), None, attack(eps=eps)), make(spread(defended, 2), RADAPT, attack(eps=eps))]
    runs.append(make(spread(80, 3), None, attack(name="noise")))
    stock, defended_model = headlines_of(comparison(runs))
    assert (stock.model, stock.verdict, len(stock.findings)) == ("tiny-llava", "Undefended", 4)
    assert defended_model.model == DEFENDED
    assert defended_model.verdict == "Worse than undefended: 1 of 3 rows; Gains under the adaptive attack: 2 of 3 rows"
    assert defended_model.tone == "bad"


def test_a_folder_goes_by_its_own_name_where_that_tells_it_from_others(make: Maker) -> None:
    def models(*names: str) -> list[str]:
        return [row.model for row in comparison([make(model={"name": name}) for name in names]).rows]

    assert models("/a/m", "/a/m2", "tiny-llava") == ["m", "m2", "tiny-llava"]
    assert models("/a/m", "/b/m") == ["/a/m", "/b/m"]
    assert models("/a/tiny-llava", "tiny-llava") == ["/a/tiny-llava", "tiny-llava"]


def test_reading_states_the_cost_on_clean_images(make: Maker) -> None:
    stock = make(spread(40, 1), None, attack())
    worse = make(spread(70, 2), RADAPT, attack(), clean=[score - 5 for score in CLEAN])
    text = " ".join(findings_of(comparison([stock, worse]))[1].sentences)
    assert "-5.0 [-5.0, -5.0]: a cost." in text
    same = make(spread(70, 2), RADAPT, attack("transfer"))
    text = " ".join(findings_of(comparison([stock, same]))[1].sentences)
    assert "0.0 [0.0, 0.0]: no difference that 24 samples can show." in text


# Intervals over images


def test_a_gain_over_too_few_images_is_not_judged(make: Maker) -> None:
    few = [[40.0] * 19, [80.0] * 19]
    runs = [make(few[0], None, attack(), clean=CLEAN[:19]), make(few[1], RADAPT, attack(), clean=CLEAN[:19])]
    table = comparison(runs)
    gain = table.rows[1].gain
    assert (gain.value, gain.images, gain.too_few, gain.sign) == (40.0, 19, True, 0)
    assert str(gain) == "+40.0 [+40.0, +40.0] (too few samples to tell)"
    finding = findings_of(table)[1]
    assert finding.verdict == "Too few samples to tell"
    assert "19 images are too few to tell a gain from chance, 20 are the least." in " ".join(finding.sentences)
    assert "0.0 [0.0, 0.0]: too few samples to tell." in " ".join(finding.sentences)
    enough = [
        make([40.0] * 20, None, attack(), clean=CLEAN[:20]),
        make([80.0] * 20, RADAPT, attack(), clean=CLEAN[:20]),
    ]
    assert verdicts(enough)[1] == "Gains under the adaptive attack"
    # 24 samples of 12 images are 12
    shared = [make([s] * N, radapt, attack(), per_image=2) for s, radapt in ((40.0, None), (80.0, RADAPT))]
    assert comparison(shared).rows[1].gain.images == 12


def test_every_interval_of_a_table_is_over_images(make: Maker) -> None:
    halves = {"stock": spread(40, 1)[:20], "own": spread(50, 2)[:20], "clean": CLEAN[:20]}
    once = [
        make(halves["stock"], None, attack(), clean=halves["clean"], losses=halves["stock"]),
        make(halves["own"], RADAPT, attack(), clean=halves["clean"], losses=halves["own"]),
    ]
    double = {name: [score for score in scores for _ in range(2)] for name, scores in halves.items()}
    twice = [
        make(double["stock"], None, attack(), clean=double["clean"], losses=double["stock"], per_image=2),
        make(double["own"], RADAPT, attack(), clean=double["clean"], losses=double["own"], per_image=2),
    ]
    (_, half), (_, whole) = comparison(once).rows, comparison(twice).rows
    for cell in ("clean", "adaptive", "gain", "clean_change", "adaptive_loss"):
        assert getattr(whole, cell).interval == getattr(half, cell).interval, cell
    assert whole.gain.interval != paired_difference_ci(double["own"], double["stock"])
    assert twice[0].metrics["images"] == 20
    assert "40 samples share 20 images: intervals draw images, each with all its samples" in twice[0].metrics["notes"]
    assert not any("share" in note for note in once[0].metrics["notes"])


def test_runs_of_earlier_versions_have_intervals_over_samples_and_say_so(make: Maker) -> None:
    scores = [score for score in spread(40, 1)[:20] for _ in range(2)]
    clean = CLEAN[:20] * 2
    named = make(scores, None, attack(), clean=clean, per_image=2)
    old = make(scores, None, attack(levels=8), clean=clean, per_image=0)
    assert old.metrics["adversarial"]["ci95"] == list(bootstrap_ci(scores))
    assert comparison([named]).notes == ()
    assert comparison([named, old]).notes == (
        "Some runs of coco do not name their images, as earlier versions wrote them: their intervals are over samples.",
    )
    # beside a run that names them, a difference knows them
    other = make([score + 1 for score in scores], RADAPT, attack(levels=8), clean=clean, per_image=2)
    assert comparison([old, other]).rows[1].gain.images == 20


def test_answers_that_are_all_wrong_have_wilsons_interval(make: Maker) -> None:
    run = make([0.0] * N, None, attack(), clean=[100.0] * N, asked="vqav2")
    (row,) = comparison([run]).rows
    low, high = (100 * end for end in wilson_ci(0, N))
    assert row.adaptive.interval == pytest.approx((low, high))
    assert row.clean.interval == pytest.approx((100 - high, 100))
    for part, score in (("clean", 100), ("attacked", 0)):
        assert f"all scores of {part} images are {score}: their interval is Wilson's" in run.metrics["notes"]


@pytest.mark.parametrize(("base", "means"), [(0.0, False), (1.3, False), (6.0, True)])
def test_over_a_model_that_does_not_do_the_task_no_gain_and_no_cost_is_claimed(
    make: Maker, base: float, means: bool, tmp_path: Path
) -> None:
    stock = make([0.0] * N, None, attack(), clean=[base] * N)
    better = make([base] * N, RADAPT, attack(), clean=[0.0] * N)
    shown = make([2 * base] * N, RADAPT, attack("transfer"), clean=[0.0] * N)
    table = comparison([stock, better, shown])
    text = write_report([stock, better, shown], tmp_path / "report.html").read_text()
    for row, finding in zip(table.rows, findings_of(table), strict=True):
        said = " ".join(finding.sentences)
        assert (NO_BASE in row.notes) is not means
        assert ("gains mean nothing here" in said) is not means
        assert ("a cost" in said) is (means and row.defended)
    assert findings_of(table)[1].verdict == ("Gains under the adaptive attack" if means else "Gains mean nothing here")
    assert ("Gains mean nothing here" in text) is not means


# Pictures


@given(st.tuples(st.integers(0, 255), st.integers(0, 255)))
def test_difference_is_signed_around_grey(pair: tuple[int, int]) -> None:
    clean, attacked = (np.full((1, 2, 3), value, np.uint8) for value in pair)
    expected = min(max(128 + DIFFERENCE_GAIN * (pair[1] - pair[0]), 0), 255)
    assert (difference_image(clean, attacked) == expected).all()


def test_difference_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="shape"):
        difference_image(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8))


def decoded(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)
    return np.asarray(Image.open(io.BytesIO(content)))


def test_small_pictures_are_embedded_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    assert (decoded(png_uri(pixels)) == pixels).all()
    assert decoded(png_uri(np.zeros((300, 2048, 3), np.uint8))).shape == (75, 512, 3)


def test_score_panels(make: Maker) -> None:
    one = [make(spread(9, 1), None, attack()), make(spread(30, 1), RADAPT, attack())]
    assert [panel.title for panel in eps_panels(comparison(one))] == [
        "tiny-llava",
        DEFENDED,
    ]  # eps 0 is the clean score
    two = [*one, make(spread(5, 1), RADAPT, attack(levels=8)), make(spread(4, 1), RADAPT, attack("transfer"))]
    panels = eps_panels(comparison(two))
    for panel in panels:
        for uri in (panel.light, panel.dark):
            assert b"<svg" in base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,"), validate=True)
        assert panel.light != panel.dark
    assert eps_panels(comparison(two)) == panels, "the same numbers give the same picture"
    assert eps_panels(comparison([make(), make(spread(9, 1), None, attack(name="noise"))])) == []
    nothing = make([None] * N, None, attack())
    assert eps_panels(comparison([nothing])) == []


def test_a_defended_model_is_drawn_against_its_own_twin(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, list[float]]] = []

    def note(axes: Any, curves: Sequence[Curve]) -> None:
        draw_curves(axes, curves)
        drawn.append({curve.label: [value for _, value, _, _ in curve.points] for curve in curves})

    monkeypatch.setattr(figures, "draw_curves", note)
    runs = []
    for name, stock, defended in (("tiny-llava", 70.0, 60.0), ("tiny-qwen", 50.0, 40.0), ("alone", None, 30.0)):
        for score, radapt in ((stock, None), (defended, RADAPT)):
            if score is not None:
                runs.append(make([score] * N, radapt, attack(), model={"name": name}))
    titles = [panel.title for panel in figures.eps_panels(comparison(runs))]
    found = dict(zip(titles, drawn[::2], strict=True))  # light and dark
    clean = float(np.mean(CLEAN))
    for name, stock, defended in (("tiny-llava", 70.0, 60.0), ("tiny-qwen", 50.0, 40.0)):
        shown = found[DEFENDED.replace("tiny-llava", name)]
        assert shown["undefended, adaptive"] == [pytest.approx(clean), stock]
        assert shown["adaptive"] == [pytest.approx(clean), defended]
        assert found[name]["undefended, adaptive"] == []
    assert found[DEFENDED.replace("tiny-llava", "alone")]["undefended, adaptive"] == []


def test_loss_panels_need_two_eps_of_an_adaptive_attack(make: Maker) -> None:
    one = [make(spread(9, 1), None, attack()), make(spread(30, 1), RADAPT, attack())]
    assert loss_panels(comparison(one)) == []
    transfer = [make(spread(30, 1), RADAPT, attack("transfer", levels=levels)) for levels in (4, 8)]
    assert loss_panels(comparison([*one, *transfer])) == []
    two = [*one, make(spread(5, 1), RADAPT, attack(levels=8))]
    (panel,) = loss_panels(comparison(two))
    assert panel.title == DEFENDED
    assert panel not in eps_panels(comparison(two))


def test_the_loss_of_a_row_is_the_adaptive_attack_s(make: Maker) -> None:
    adaptive = make(spread(9, 1), RADAPT, attack(), losses=[float(i) for i in range(N - 1)] + [None])
    transfer = make(spread(9, 1), RADAPT, attack("transfer"), losses=[100.0] * N)
    (row,) = comparison([adaptive, transfer]).rows
    assert row.adaptive_loss is not None
    assert row.adaptive_loss.value == pytest.approx((N - 2) / 2)
    assert row.adaptive_loss.interval == bootstrap_ci([float(i) for i in range(N - 1)])
    (row,) = comparison([make(spread(9, 1), None, attack(), losses=[None] * N)]).rows
    assert row.adaptive_loss is None


# The page


class Page(HTMLParser):
    """Collects tags, whatever could load something, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.pictures: dict[str, list[str]] = {}
        self.charts: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        loads = ("src", "srcset", "href", "data", "poster", "action", "background")
        self.loads += [values[name] for name in loads if name in values]
        assert not any(name.startswith("on") for name in values)
        if tag == "a":
            self.links.append((values["download"], values["href"]))
        if tag == "img" and values["src"].startswith("data:image/svg"):
            self.charts.append(values["alt"])
        elif tag == "img":
            self.pictures.setdefault(values["alt"], []).append(values["src"])

    def handle_data(self, data: str) -> None:
        self.text += data


def page(runs: list[Run], out: Path) -> Page:
    assert write_report(runs, out) == out
    html = out.read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|<script|<link|<iframe", html)
    found = Page(html)
    links = [uri for _, uri in found.links]
    assert all(load.startswith("data:image/") for load in found.loads if load not in links)
    assert all(uri.startswith(("data:text/csv", "data:text/markdown")) for uri in links)
    return found


def test_report_of_one_run(make: Maker) -> None:
    run = make([0.0] * 12 + [100.0] * 12, RADAPT, attack(), images=True, question="what is it?")
    found = page([run], run.path / "report.html")
    assert [entry.name for entry in run.path.iterdir() if entry.name.startswith(".")] == []
    for part in (
        DEFENDED,
        "Transfer.",
        "Adaptive.",
        "not run",
        "what is it?",
        "max. change 4/255",
        "a dog on a mat",
        "lvlm-radapt eval tiny-llava --task coco",
        "attack.step_scale",
        "ids.sha256",
        run.settings["ids"]["sha256"],
        "environment.packages.torch",
        "n = 24",
        "document frequency",
        "coco, e2e, Linf 4/255, adaptive",
    ):
        assert part in found.text
    assert "VQA accuracy is" not in found.text
    assert found.charts == [f"Score against eps for {DEFENDED}"]
    assert {what: len(uris) for what, uris in found.pictures.items()} == {
        "clean": 12,
        "attacked": 12,
        "difference \u00d716": 12,
    }
    assert (decoded(found.pictures["difference \u00d716"][0]) == 128 + 16 * 4).all()
    clean, attacked = (decoded(found.pictures[what][0]).astype(int) for what in ("clean", "attacked"))
    assert (attacked - clean == 4).all()


def test_report_of_many_runs(make: Maker, tmp_path: Path) -> None:
    runs = [
        make(spread(40, 1), None, attack()),
        make(spread(90, 2), RADAPT, attack("transfer"), images=True),
        make([0.0] * 4 + [100.0] * 20, RADAPT, attack(), images=True),
        make(spread(20, 2), RADAPT, attack(levels=8)),
        make([0.0] * N, None, attack(), asked="vqav2"),
        make(preset="fare"),
    ]
    found = page([*runs, runs[0]], tmp_path / "all.html")
    assert "6 runs, presets scenes, fare" in found.text
    for part in (
        "Preset scenes",
        "Preset fare",
        "Score against eps",
        "Loss against eps",
        "VQA accuracy is",
        "folder run-6",
    ):
        assert part in found.text
    # The adaptive run of the defended model is the one whose samples are shown.
    assert re.search(r"left \(4\)", found.text)
    assert re.search(r"left \(20, 6 shown\)", found.text)


def test_the_tables_can_be_taken_away(make: Maker, tmp_path: Path) -> None:
    runs = [*flat(make), make(preset="a/b c")]
    found = page(runs, tmp_path / "report.html")
    names = [name for name, _ in found.links]
    assert names == ["scores-scenes.csv", "scores-scenes.md", "scores-a-b-c.csv", "scores-a-b-c.md"]
    texts = [base64.b64decode(uri.partition(";base64,")[2], validate=True).decode() for _, uri in found.links]
    made = tables(runs)
    assert texts == [text for table in made.values() for text in (table.to_csv(), table.to_markdown())]


def test_texts_from_data_are_escaped(make: Maker, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    run = make(
        [0.0] * 12 + [100.0] * 12,
        RADAPT | {"anchor": "guided", "anchor_from": evil},
        attack("transfer", surrogate=evil),
        answer=evil,
        question=evil,
        model={"name": evil},
        task=evil,
        preset=evil,
        command=evil,
        metrics={"notes": [evil]},
    )
    found = page([run], tmp_path / "report.html")
    assert "script" not in found.tags
    assert found.pictures == {}, "no image was saved, so any would be the data's"
    assert found.tags.count("img") == len(found.charts) == 1
    assert found.text.count(evil) > 20


def test_a_picture_that_is_not_the_runs_own_is_refused_by_sample(make: Maker, tmp_path: Path) -> None:
    for under in ("images", "clean"):
        run = make([0.0] * 2 + [100.0] * 22, RADAPT, attack(), images=True)
        RunFolder(run.path).save_image("s09", np.zeros((3, 8, 8), np.uint8), under=under)
        with pytest.raises(UserError, match=rf"the image of sample s09, .*{under}.s09\.png, is not the one") as caught:
            write_report([run], tmp_path / "report.html")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("under", ["images", "clean"])
@pytest.mark.parametrize("whole", [False, True])
def test_links_out_of_a_received_run_are_not_followed(make: Maker, tmp_path: Path, under: str, whole: bool) -> None:
    run = make(spread(40, 2), RADAPT, attack(), images=True)
    without_checksums(run.path)
    (secret := tmp_path / "private").mkdir()
    for picture in (run.path / under).iterdir():
        (secret / picture.name).write_bytes(picture.read_bytes())
    if whole:
        shutil.rmtree(run.path / under)
        (run.path / under).symlink_to(secret)
    else:
        linked = run.path / under / "s09.png"
        linked.unlink()
        linked.symlink_to(secret / "s09.png")
    with pytest.raises(UserError, match=r"\.png is a link to another place"):
        write_report([read_run(run.path)], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_largest_change_is_measured_on_the_pictures(make: Maker, tmp_path: Path) -> None:
    made = make([0.0] * 2 + [100.0] * 22, RADAPT, attack(), images=True)
    run = read_run(without_checksums(made.path))
    assert "max. change 4/255" in page([run], tmp_path / "report.html").text
    RunFolder(run.path).save_image("s00", np.full((3, 8, 8), 9, np.uint8))
    text = page([run], tmp_path / "report.html").text
    assert "max. change 9/255" in text
    assert "no checksums" in text


def test_pictures_that_are_missing_or_damaged_are_left_out(make: Maker, tmp_path: Path) -> None:
    made = make([0.0] * 2 + [100.0] * 22, RADAPT, attack(), images=True)
    run = read_run(without_checksums(made.path))
    names = [image_name(sample.id) for sample in run.samples[:2]]
    (run.path / "clean" / names[0]).unlink()
    (run.path / "images" / names[1]).write_bytes(b"not a picture")
    found = page([run], tmp_path / "report.html")
    assert {what: len(uris) for what, uris in found.pictures.items()} == {
        "clean": 7,
        "attacked": 7,
        "difference \u00d716": 6,
    }


def test_a_clean_run_has_no_gallery(make: Maker, tmp_path: Path) -> None:
    found = page([make()], tmp_path / "report.html")
    assert "Samples" not in found.text
    assert "Not attacked" in found.text


def test_a_report_that_cannot_be_written_is_one_line(make: Maker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_report([make()], tmp_path / "absent" / "report.html")


def test_settings_are_listed_whole(make: Maker, tmp_path: Path) -> None:
    run = make(spread(9, 1), RADAPT, attack())
    text = page([run], tmp_path / "report.html").text
    for key, value in {**run.settings["attack"], **RADAPT}.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        assert re.search(rf"\.{key}\s*{re.escape(shown)}", text), key


def test_a_success_rate_is_counted_from_the_records(make: Maker) -> None:
    outcome = {"success": first(6), "zero_grad": first(2), "failed": first(1, "no step", None)}
    said = {"success": {"success_rate": 99.9}, "zero_grad": 0, "failed": 4}
    run = make(spread(40.0, 1), None, attack(name="targeted", target="maybe"), outcome=outcome, metrics=said)
    (row,) = comparison([run]).rows
    assert row.adaptive.success_rate == 25
    assert [note for note in row.notes if "metrics.json" in note] == [
        "metrics.json says 99.9 % of answers with the target, but samples.jsonl 25.0, which counts",
        "metrics.json says 0 samples with a zero gradient, but samples.jsonl 2, which counts",
        "metrics.json says 4 failed samples, but samples.jsonl 1, which counts",
    ]


def test_a_targeted_attack_shows_its_text_and_how_often_it_was_read(make: Maker, tmp_path: Path) -> None:
    def success(count: int) -> dict[str, Any]:
        return {"success": first(count), "failed": first(3, "no step", None)}

    named = {"name": "targeted", "target": "maybe"}
    scores = spread(40.0, 1)
    runs = [
        make(scores, RADAPT, attack(**named), outcome=success(18)),
        make(scores, RADAPT, attack("transfer", **named), outcome=success(6)),
        make(scores, RADAPT, attack(**named | {"target": "no"}), outcome=success(0)),
    ]
    table = comparison(runs)
    row = next(row for row in table.rows if row.target == "maybe")
    assert len(table.rows) == 2
    assert row.attack_text == 'targeted, "maybe", Linf 4/255, 10 steps'
    assert row.texts()[6].endswith("(target in 75.0 % [55.1, 88.0])")
    assert row.texts()[5].endswith("(target in 25.0 % [12.0, 44.9])")
    assert "the attack failed on 3 of 24 samples (adaptive)" in row.notes
    line = next(csv_row for csv_row in csv.DictReader(io.StringIO(table.to_csv())) if csv_row["target"] == "maybe")
    assert (line["transfer_success"], line["adaptive_success"]) == ("25.0", "75.0")
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "target in 75.0 % [55.1, 88.0]" in page
    assert "failed on 3 of 24 samples" in page
