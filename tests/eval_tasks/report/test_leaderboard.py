"""Many runs in one ranking: by the adaptive score, and only among equals."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from eval_tasks.report.leaderboard import Board, Entry, Leaderboard, Score, leaderboard
from tests.helpers.failures import one_line
from tests.helpers.paths import ROOT
from tests.helpers.run_folders import CLEAN, RADAPT, Maker, attack, spread, without_checksums

AUDIT = {"form": "short", "verdict": "fail", "samples": 4, "steps": 2, "cost": 1.0, "skipped": {}}
FAILED = AUDIT | {"findings": [{"name": "ball", "verdict": "fail", "explanation": "outside", "numbers": {}}]}


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


def placed(made: Leaderboard) -> list[list[tuple[int | None, str, str]]]:
    return [[(one.rank, one.model, one.status) for one in board.entries] for board in made.boards]


def test_the_adaptive_score_ranks_and_a_transfer_score_never_does(make: Maker) -> None:
    strong = make(spread(60, 3), attacked=attack(), model={"name": "tuned"})
    only_transfer = make(spread(99, 4), attacked=attack("transfer", surrogate="other"), model={"name": "untested"})
    stock, defended = make(spread(10, 1), attacked=attack()), make(spread(30, 2), RADAPT, attack())
    shown = make(spread(90, 2), RADAPT, attack("transfer", surrogate="tiny-llava"))
    unsound = make(spread(80, 2), attacked=attack(), model={"name": "broken"}, metrics={"audit": FAILED})
    (board,) = leaderboard([only_transfer, unsound, stock, shown, defended, strong]).boards
    protected = "tiny-llava + R-Adapt (cutoff 40, alpha 1, interpolate, white)"
    assert [(one.rank, one.model, one.status) for one in board.entries] == [
        (1, "tuned", "measured"),
        (2, protected, "measured"),
        (3, "tiny-llava", "measured"),
        (None, "broken", "unsound"),
        (None, "untested", "transfer only"),
    ]
    second = board.entries[1]
    # from the records themselves
    assert second.adaptive is not None
    assert second.adaptive.value == pytest.approx(sum(spread(30, 2)) / 24)
    assert second.gain is not None
    assert second.gain.value == pytest.approx((sum(spread(30, 2)) - sum(spread(10, 1))) / 24)
    assert (second.surrogate, second.runs) == ("undefended model", (defended.path.name, shown.path.name))
    assert board.entries[-1].words == "not shown to hold: no adaptive attack was run"
    assert board.entries[-2].words == "not a measurement yet: its audit fails"


def test_a_transfer_attack_that_does_more_harm_takes_the_rank(make: Maker) -> None:
    adaptive = make(spread(80, 3), RADAPT, attack())
    weak = make(spread(70, 2), RADAPT, attack("transfer", surrogate="other"))
    weaker = make(spread(75, 2), RADAPT, attack("transfer", surrogate="tiny-llava"))
    made = leaderboard([adaptive, weak, weaker])
    ((entry,),) = (board.entries for board in made.boards)  # one line a model, however many surrogates
    assert (entry.rank, entry.status, entry.surrogate) == (None, "unsound", "other")
    assert entry.words.endswith("the adaptive score is too high")


@pytest.mark.parametrize(
    "other",
    [
        {"asked": "vqav2"},
        {"attacked": attack(levels=8)},
        {"attacked": attack(steps=20)},
        {"attacked": attack(name="embedding")},
        {"attacked": attack(restarts=2)},
        {"clean": CLEAN[:20], "scores": spread(50, 2)[:20]},
        {"prefix": "t"},
        {"preset": "native"},
        {"seed": 7},
    ],
    ids=lambda other: next(reversed(other)),
)
def test_runs_under_other_settings_are_not_mixed(make: Maker, other: dict[str, Any]) -> None:
    first = make(spread(10, 1), attacked=attack())
    second = make(**{"scores": spread(50, 2), "attacked": attack(), "model": {"name": "tuned"}} | other)
    assert [len(board.entries) for board in leaderboard([first, second]).boards] == [1, 1]


def test_models_that_open_and_speak_otherwise_are_ranked_together(make: Maker) -> None:
    first = make(spread(10, 1), attacked=attack())
    asked = first.settings["asked"] | {"conversation": {"name": "chatml"}}
    own = {"name": "large", "dtype": "bfloat16", "geometry": "pad"}
    second = make(spread(50, 2), attacked=attack(), model=own)
    second.settings["asked"] = asked
    assert placed(leaderboard([first, second])) == [[(1, "large", "measured"), (2, "tiny-llava", "measured")]]


def test_the_page_holds_the_json_that_a_json_file_is(make: Maker, tmp_path: Path, cli: Any) -> None:
    runs = [make(spread(10, 1), attacked=attack()), make(None), make(spread(50, 2), RADAPT, attack())]
    folders = [run.path for run in runs]
    told = cli.done("leaderboard", *folders, "--out", tmp_path / "board.html")
    assert "left out: 1 runs without an attacker" in told
    assert re.search(r"^1 +tiny-llava \+.*^2 +tiny-llava ", told, re.DOTALL | re.MULTILINE)
    page = (tmp_path / "board.html").read_text()
    (held,) = re.findall(r'href="data:application/json;charset=utf-8;base64,([^"]+)"', page)
    cli.done("leaderboard", *folders, "--out", tmp_path / "board.json")
    written = (tmp_path / "board.json").read_text()
    assert base64.b64decode(held).decode() == written
    assert Leaderboard.model_validate_json(written) == leaderboard(runs)
    assert json.loads(written)["version"] == 1
    cli.done("leaderboard", *folders, "--out", tmp_path / "board.html")  # an earlier one is replaced


def test_what_is_no_leaderboard_is_refused_and_nothing_is_written(make: Maker, tmp_path: Path, cli: Any) -> None:
    out = tmp_path / "board.html"
    run, old = make(spread(10, 1), attacked=attack()), make(spread(20, 1), RADAPT, attack())
    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in cli.refused("leaderboard", run.path, tmp_path / "empty", "--out", out)
    without_checksums(old.path)
    assert "two schema versions" in cli.refused("leaderboard", run.path, old.path, "--out", out)
    assert "nothing to rank" in cli.refused("leaderboard", make(None).path, "--out", out)
    assert not out.exists()
    out.write_text("my own page")
    assert "is no leaderboard" in cli.refused("leaderboard", run.path, "--out", out)
    assert out.read_text() == "my own page"


def test_runs_that_fill_one_place_are_refused(make: Maker) -> None:
    twice = [make(spread(10, seed), attacked=attack()) for seed in (1, 2)]
    with one_line("have the same settings"):
        leaderboard(twice)


def test_the_schema_is_documented_field_by_field() -> None:
    page = (ROOT / "docs" / "papers.md").read_text()
    for part in (Leaderboard, Board, Entry, Score):
        missing = [name for name in part.model_fields if f"`{name}`" not in page]
        assert not missing, f"{part.__name__}: {missing}"
