"""The stage engine on losses and scores that can be checked by hand, and FARE's stages over texts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks import Stage, apgd, ensemble
from eval_tasks.crafting.ensemble import Ensemble
from eval_tasks.crafting.stages import StagePlan, stage_plans, stages

EPS = 0.1


def images(count: int, level: float = 0.5) -> torch.Tensor:
    return torch.full((count, 1, 2, 2), level)


class Ascent:
    """A loss that raises (sign 1) or lowers (-1) the pixel in one corner, and remembers who came and from where."""

    def __init__(self, corner: int, sign: int = 1) -> None:
        self.corner, self.sign = corner, sign
        self.seen: list[list[int]] = []
        self.first: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, index: list[int]) -> torch.Tensor:
        self.seen.append(index)
        if self.first is None:
            self.first = x.detach().clone()
        return self.sign * x.flatten(1)[:, self.corner]


def run(stages, x, score, limit, **more):
    """An ensemble without noise, three steps a stage; a sample is broken below `limit`."""
    asked: list[list[int]] = []

    def noted(x_adv, index):
        asked.append(index)
        return score(x_adv, index)

    found = ensemble(
        stages, x, score=noted, broken=lambda scores, index: scores < limit,
        **{"clean_score": score(x, list(range(len(x))))} | more, eps=EPS, steps=3, random_start=False, step_scale=1.0,
    )  # fmt: skip
    return found, asked


def test_stages_run_in_order_on_those_that_stand_and_the_lowest_score_is_kept():
    # corner 0 counts for sample 0, corner 1 for sample 1, nothing for the others
    weight = torch.tensor([[10.0, 0, 0, 0], [0, 10.0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    height = torch.tensor([6.0, 6.0, 6.0, 0.5])

    def score(x, index):
        return height[index] - (weight[index] * x.flatten(1)).sum(dim=1)

    first, second, third = Ascent(0), Ascent(1), Ascent(1, -1)
    parts = [Stage("first", lambda so_far: first), Stage("second", lambda so_far: second),
             Stage("third", lambda so_far: third)]  # fmt: skip
    told = []
    found, asked = run(parts, images(4), score, limit=0.5, tell=lambda *stage: told.append(stage))
    assert told == [("first", 4), ("second", 3), ("third", 2)]
    # clean scores 1, 1, 6, 0.5; 0.5 is not below the limit, so sample 3 stands; full steps are worth 1
    assert asked == [[0, 1, 2, 3], [1, 2, 3], [2, 3]]
    assert found.score.tolist() == pytest.approx([0.0, 0.0, 6.0, 0.5], abs=1e-6)
    assert found.stage == ["first", "second", "clean", "clean"]
    assert found.broken.tolist() == [True, True, False, False]
    assert found.steps.tolist() == [3, 6, 9, 9]
    assert first.seen[0] == [0, 1, 2, 3]
    assert second.seen[0] == [1, 2, 3]
    assert third.seen[0] == [2, 3]
    assert torch.equal(found.x_adv[2:], images(2))
    assert found.x_adv[0, 0, 0, 0] == pytest.approx(0.6)
    assert found.loss == [pytest.approx(0.6), pytest.approx(0.6), None, None]
    assert found.scores["second"].tolist() == [math.inf, pytest.approx(0.0, abs=1e-6), 6.0, 0.5]


def test_nothing_is_attacked_where_the_clean_score_is_under_the_threshold():
    def refuse(x, index):
        raise AssertionError("attacked")

    found, asked = run([Stage("only", lambda so_far: refuse)], images(3), lambda x, index: torch.zeros(len(index)), 0.5)
    assert (asked, found.stage, found.broken.tolist()) == ([], ["clean"] * 3, [True] * 3)
    assert torch.equal(found.x_adv, images(3))
    assert found.zero_grad.tolist() == [False] * 3


def test_a_stage_begins_at_the_clean_image_or_at_the_kept_one_and_knows_the_scores_before():
    first, again, apart = Ascent(0), Ascent(1), Ascent(2)
    given_scores = {}

    def best(so_far):
        given_scores.update({name: values.tolist() for name, values in so_far.items()})
        return again

    parts = [Stage("first", lambda so_far: first), Stage("again", best, start="best"),
             Stage("apart", lambda so_far: apart)]  # fmt: skip
    found, _ = run(parts, images(1), lambda x, index: 10 - x.flatten(1).sum(dim=1), limit=0.0)
    assert first.first.flatten().tolist() == pytest.approx([0.5] * 4)
    # APGD looks at the clean image first where it starts elsewhere
    assert given_scores == {"first": [pytest.approx(7.9)]}
    assert again.seen[0] == [0]
    assert apart.first.flatten().tolist() == pytest.approx([0.5] * 4)
    assert found.stage == ["again"]
    assert found.x_adv.flatten().tolist() == pytest.approx([0.6, 0.6, 0.5, 0.5])
    assert found.scores["apart"].tolist() == pytest.approx([7.9])


def test_the_finished_image_is_what_is_scored_and_kept_and_the_first_among_equals_stays():
    seen = []

    def score(x, index):
        seen.append(x.clone())
        return torch.ones(len(index))

    rounded = lambda x_adv, index: (x_adv * 4).round() / 4  # noqa: E731
    parts = [Stage("a", lambda so_far: Ascent(0)), Stage("b", lambda so_far: Ascent(1))]
    found, _ = run(parts, images(2), score, 0.0, finish=rounded, clean_score=torch.tensor([2.0, 1.0]))
    assert all(bool((x * 4 == (x * 4).round()).all()) for x in seen[1:])
    assert found.stage == ["a", "clean"]


def test_a_beaten_sample_leaves_its_stage_at_the_point_that_beat_it():
    x = images(3)
    bars = torch.tensor([0.5 + 0.6 * EPS, 0.9, 0.5 + 0.2 * EPS])  # the second is out of reach
    asked = []

    def beaten(x_adv, index):
        asked.append(index)
        return x_adv.flatten(1)[:, 0] > bars[index]

    parts = [Stage("one", lambda so_far: Ascent(0)), Stage("two", lambda so_far: Ascent(0))]
    found, _ = run(parts, x, lambda x, index: bars[index] - x.flatten(1)[:, 0], 0.0, beaten=beaten)
    plain, _ = run(parts, x, lambda x, index: bars[index] - x.flatten(1)[:, 0], 0.0)
    # a step of eps reaches both bars; three steps a stage, and the last sample that stands goes through both
    assert found.steps.tolist() == [1, 6, 1]
    assert plain.steps.tolist() == [3, 6, 3]
    assert found.broken.tolist() == plain.broken.tolist() == [True, False, True]
    assert asked == [
        [0, 1, 2],
        [1],
        [1],
        [1],
        [1],
        [1],
    ]  # the last stage asks about the rest in the whole batch's count


def test_a_stage_may_be_for_some_samples_only():
    first = Ascent(0)
    found, asked = run([Stage("a", lambda so_far: first, rows=[1])], images(3), lambda x, i: 1 - x.amax((1, 2, 3)), 0.0)
    assert asked[-1] == [1]
    assert first.seen[0] == [1]
    assert found.stage == ["clean", "a", "clean"]
    assert found.scores["a"].isinf().tolist() == [True, False, True]


def test_a_stage_that_fails_on_a_sample_is_told_where_the_sample_stands_and_costs_no_other():
    def holes(x, index):
        return torch.where(torch.tensor([i < 2 for i in index]), torch.nan, 1.0) * x.flatten(1)[:, 0]

    parts = [Stage("holes", lambda so_far: holes), Stage("whole", lambda so_far: Ascent(1))]
    limit = torch.tensor([0.45, 0.0, 0.0])
    found = ensemble(
        parts, images(3), score=lambda x, index: 1 - x.amax((1, 2, 3)), clean_score=torch.full((3,), 0.5),
        broken=lambda scores, index: scores < limit[index], eps=EPS, steps=2, random_start=False,
    )  # fmt: skip
    assert found.stage == ["whole", "whole", "holes"]
    # sample 0 is broken in the end: nothing was missed there
    assert [reason and reason.split(" at ")[0] for reason in found.failed] == [None, "holes: loss is not finite", None]


def test_dead_gradients_are_told_only_where_every_stage_was_dead():
    dead = lambda x, index: 0 * x.flatten(1).sum(dim=1)  # noqa: E731
    parts = [Stage("dead", lambda so_far: dead), Stage("alive", lambda so_far: Ascent(0), rows=[0])]
    found, _ = run(parts, images(2), lambda x, index: torch.ones(len(index)), 0.0)
    assert found.zero_grad.tolist() == [False, True]


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_no_score_is_above_any_stages_own_nor_the_clean_one(seed, count):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 3, 3, generator=generator)
    slopes, judge = torch.randn(2, 3, 9, generator=generator)

    def score(x, index):
        return (x.flatten(1) * judge[0] + x.flatten(1).square() * judge[1]).sum(dim=1)

    def towards(number):
        return lambda so_far: lambda x, index: (x.flatten(1) * slopes[number]).sum(dim=1)

    seeds = list(range(count))
    parts = [Stage(f"{k}", towards(k)) for k in range(3)]
    arguments = {"eps": EPS, "steps": 4, "seed": seeds}
    found = ensemble(parts, x, score=score, clean_score=score(x, seeds), broken=lambda s, index: s < -1e9, **arguments)
    for k in range(3):
        alone = apgd(towards(k)({}), x, **arguments)
        assert bool((found.score <= score(alone.x_adv, seeds).double()).all())
    assert bool((found.score <= score(x, seeds)).all())
    assert found.score.tolist() == pytest.approx(score(found.x_adv, seeds).tolist())
    assert bool(((found.x_adv - x).abs() <= EPS + 1e-6).all())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": [Stage("a", lambda s: Ascent(0)), Stage("a", lambda s: Ascent(0))]}, "names of their own"),
        ({"stages": [Stage("clean", lambda s: Ascent(0))]}, "names of their own"),
        ({"clean_score": torch.ones(3)}, "clean_score must be one number"),
        ({"clean_score": torch.tensor([1.0, torch.nan])}, "clean_score must be one number"),
        ({"score": lambda x, index: torch.ones(9)}, "score after a must be one number"),
        ({"broken": lambda scores, index: scores}, "broken must return bool"),
        ({"eps": 0.0}, "eps must be"),
    ],
)
def test_what_cannot_be_run_is_refused(changes, words):
    arguments = {
        "stages": [Stage("a", lambda s: Ascent(0))], "x": images(2), "score": lambda x, index: torch.ones(len(index)),
        "broken": lambda scores, index: scores < 0, "clean_score": torch.ones(2), "eps": EPS, "steps": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        ensemble(**arguments | changes)


def test_fares_stages_for_captions_and_for_questions():
    settings = Ensemble(name="ensemble", eps=4 / 255, targets={"vqa": ["maybe", "Word"]})
    away = [StagePlan(f"reference {k + 1}", reference=k, start="clean", half=True) for k in range(5)]
    again = StagePlan("best reference", start="best", half=False)
    assert settings.stage_names("caption") == [stage.name for stage in (*away, again)]
    assert stage_plans(5, settings.targets["vqa"]) == [
        *away, again,
        StagePlan("target maybe", target="maybe", start="clean", half=False),
        StagePlan("target Word", target="Word", start="clean", half=False),
    ]  # fmt: skip


class Texts:
    """An attacker whose NLL names what was asked of it."""

    def nll(self, prompts, texts, *, sign=1, half=None):
        return lambda x, index: [(sign, half, prompts[i], texts[i]) for i in index]


def test_each_stage_is_about_the_right_text_in_the_right_precision():
    plans = stage_plans(5, ["maybe", "Word"])
    references = [["a", "b", "c", "d", "e"], ["yes", "no"]]
    made = stages(plans, Texts(), ["p", "q"], references, "float16")
    assert [stage.rows for stage in made] == [[0, 1], [0, 1], [0], [0], [0], None, None, None]
    assert [stage.start for stage in made] == ["clean"] * 5 + ["best"] + ["clean"] * 2
    assert made[1].loss({})(None, [0, 1]) == [(1, "float16", "p", "b"), (1, "float16", "q", "no")]
    assert made[4].loss({})(None, [0]) == [(1, "float16", "p", "e")]
    low = {f"reference {k + 1}": torch.tensor([[9.0, 4, 2, 2, 5][k], [3.0, 3, *[math.inf] * 3][k]]) for k in range(5)}
    # the third of the first sample's, the first among equals; the second's first
    assert made[5].loss(low)(None, [0, 1]) == [(1, None, "p", "c"), (1, None, "q", "yes")]
    assert made[6].loss({})(None, [1]) == [(-1, None, "q", "maybe")]
    assert made[7].loss({})(None, [1]) == [(-1, None, "q", "Word")]
