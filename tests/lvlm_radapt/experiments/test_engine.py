"""Which runs each row of a sweep makes, for every kind of attack."""

from pathlib import Path

import pytest

from eval_tasks.api import EvalOptions, Evaluation, make_attack, make_task
from eval_tasks.config.presets import load_protocol
from lvlm_radapt.experiments.engine import Sweep, Trial


def trial(attack: str, **flags) -> Trial:
    protocol = load_protocol("scenes")
    asked = Evaluation(
        make_task("vqav2", protocol), make_attack(attack, **flags), EvalOptions(data=Path("scenes")), protocol
    )
    return Trial("tiny-llava", "VQA", "4/255", asked)


def sweep(**settings) -> Sweep:
    return Sweep("none", {}, lambda row, one, threat: Path(row) / one.column / threat, **settings)


@pytest.mark.parametrize(
    ("attack", "flags", "apart", "first", "others"),
    [
        ("e2e", {}, False, ("adaptive",), ("transfer", "adaptive")),
        ("e2e", {}, True, ("adaptive", "transfer"), ("transfer", "adaptive")),
        # images that just fool the first model fool no other: the transfer images are made apart
        ("e2e", {"early_exit": True}, False, ("adaptive", "transfer"), ("transfer", "adaptive")),
        ("apgd-ce", {}, False, ("adaptive", "transfer"), ("transfer", "adaptive")),
        # noise knows no model: once is enough
        ("noise", {}, False, ("control",), ()),
    ],
)
def test_the_first_row_makes_the_transfer_images_of_all(attack, flags, apart, first, others):
    one, engine = trial(attack, **flags), sweep(apart=apart)
    assert engine.threats("none", one) == first
    assert engine.threats("filter", one) == others
    assert engine.count(["none", "filter", "radapt"], [one]) == len(first) + 2 * len(others)
