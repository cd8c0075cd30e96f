"""The rules of `harden` as functions of numbers: the choice, the verdict, the split by image, the cuts for time."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_tasks.metrics import Interval
from lvlm_radapt.experiments.harden.plan import Costs, Sizes, fit, stages, total
from lvlm_radapt.experiments.harden.results import survivors
from lvlm_radapt.experiments.harden.run import SMALL, Search
from lvlm_radapt.experiments.harden.split import split_by_image
from lvlm_radapt.experiments.harden.verdict import Candidate, choose, judge
from lvlm_radapt.utils.errors import UserError

ABOVE, AROUND, TOUCHING = Interval(1.0, 9.0), Interval(-1.0, 9.0), Interval(0.0, 9.0)

VERDICTS = {
    "clearly better": ((20, "filter", ABOVE, "pass"), "HELPS", 0),
    "a warning of the audit": ((20, "filter", ABOVE, "warn"), "HELPS", 0),
    "19 images": ((19, "filter", ABOVE, "pass"), "NO VERDICT", 3),
    "19 images and no winner": ((19, None, None, None), "NO VERDICT", 3),
    "no winner": ((20, None, None, None), "NOTHING HELPED", 3),
    "an interval around 0": ((500, "filter", AROUND, "pass"), "NOTHING HELPED", 3),
    "an interval that touches 0": ((500, "filter", TOUCHING, "pass"), "NOTHING HELPED", 3),
    "a failed audit": ((500, "filter", ABOVE, "fail"), "AUDIT FAILED", 4),
    "a failed audit of no gain": ((500, "filter", AROUND, "fail"), "AUDIT FAILED", 4),
    "an audit of too few checks": ((500, "filter", ABOVE, "too little to judge"), "AUDIT FAILED", 4),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict(name):
    numbers, word, code = VERDICTS[name]
    found = judge(*numbers)
    assert (found.word, found.exit_code) == (word, code)
    assert found.reason


STOCK = Candidate("as it is", 90.0, 20.0)
CHOICES = {
    "the best adaptive score": ([("a", 89.0, 30.0), ("b", 89.0, 40.0)], "b"),
    "within the clean loss": ([("a", 89.0, 30.0), ("b", 87.9, 80.0)], "a"),
    "at the clean loss": ([("a", 88.0, 30.0)], "a"),
    "a gain on clean images": ([("a", 99.0, 30.0)], "a"),
    "none within the clean loss": ([("a", 10.0, 90.0)], None),
    "none better": ([("a", 90.0, 20.0), ("b", 90.0, 10.0)], None),
    "of equals the better clean score": ([("a", 88.5, 30.0), ("b", 89.0, 30.0)], "b"),
    "of equals the first": ([("a", 89.0, 30.0), ("b", 89.0, 30.0)], "a"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_choice(name):
    others, best = CHOICES[name]
    found = choose([STOCK, *(Candidate(*one) for one in others)], 2.0)
    assert (found and found.name) == best


def test_captions_survive_as_a_share_of_the_clean_score():
    assert survivors(30.0, 120.0, "cider") == 25.0
    assert survivors(30.0, 97.0, "vqa_accuracy") == 30.0


@given(st.dictionaries(st.text(max_size=3), st.sampled_from("abcdefghijk")), st.integers(0, 99))
def test_no_image_is_in_two_parts_and_every_sample_in_one(image_of, seed):
    choosing, scoring = split_by_image(image_of, seed)
    assert sorted([*choosing, *scoring]) == sorted(image_of)
    parts = [{image_of[one] for one in part} for part in (choosing, scoring)]
    assert not parts[0] & parts[1]
    assert len(parts[0]) == round(len(set(image_of.values())) / 3)
    assert split_by_image(dict(reversed(image_of.items())), seed)[0] == choosing[::-1]  # a matter of images alone


COSTS = Costs(attack=0.02, answer=0.01, tuning=1.0, anchor=2.0, probes=30.0, memory=(10**9, 2 * 10**9))
SIZES = Sizes(samples=180, steps=20, tuning=250, anchor=200)


def test_all_of_it_takes_as_long_as_its_stages():
    assert total(COSTS, SIZES) == sum(stage.seconds for stage in stages(COSTS, SIZES))
    assert {stage.memory for stage in stages(COSTS, SIZES)} == set(COSTS.memory)
    assert total(COSTS, replace(SIZES, steps=10)) < total(COSTS, SIZES)


@pytest.mark.parametrize("hours", [0.14, 0.15, 0.2, 0.3, 0.4, 1.0])
def test_a_time_limit_is_kept_and_what_is_cut_is_told(hours):
    found, cut = fit(COSTS, SIZES, hours)
    assert total(COSTS, found) <= 3600 * hours
    assert (cut is None) == (found == SIZES)
    if found.steps < SIZES.steps:
        assert found.samples == 60  # samples go first
        assert f"attack steps from 20 to {found.steps}" in cut
    if found.tuning < SIZES.tuning:
        assert found.steps == 10


def test_an_embedded_model_is_searched_in_minutes_by_its_own_recipe():
    chosen = {"task": "vqav2", "data": "", "images": "", "eps": "4/255", "max_clean_loss": 2.0}
    small = Search(model="tiny-llava", preset="scenes", **chosen)
    assert small.sizes() == SMALL
    assert replace(small, samples=9, steps=3, train_steps=5).sizes() == Sizes(9, 3, 5, 5)
    assert Search(model="./own", preset="native", **chosen).sizes() == Sizes(500, 100, 20_000, 200)


def test_without_a_limit_nothing_is_cut():
    assert fit(COSTS, SIZES, None) == (SIZES, None)


def test_too_short_a_time_is_told_with_what_it_takes():
    with pytest.raises(UserError, match=r"--hours 0.01 is too short: the smallest search takes 0.13 hours"):
        fit(COSTS, SIZES, 0.01)
