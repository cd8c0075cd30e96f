"""The short form of the audit, and what only several runs can show."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attacks import apgd
from attacks.eight_bit import from_8bit, to_8bit
from eval_tasks.audit import Finding, short_audit, short_budget
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.report.audit_across import adaptive_against_transfer
from eval_tasks.report.page import write_report
from tests.helpers.audit_subjects import EPS, B, sound
from tests.helpers.run_folders import RADAPT, Maker, attack, spread

RUNS = [(500, 100), (500, 1700), (64, 20), (16, 100), (40, 10), (8, 20), (7, 2), (2, 1)]


def run_of(target, steps):
    """The images a run would have made, and their distances."""
    found = apgd(target.loss, target.x, eps=target.eps, steps=steps, seed=0)
    made = to_8bit(found.x_adv, target.x, eps=target.eps, norm="Linf")
    return made, (from_8bit(made) - target.x).abs().flatten(1).amax(1).tolist()


def audited(target, *, samples, steps, made=None, distances=None):
    if made is None:
        made, distances = run_of(target, min(steps, 100))

    def target_of(count):
        rows = list(range(min(count, B)))
        return replace(target, x=target.x[rows], made=made[rows], batch_size=len(rows))

    return short_audit(
        target_of, samples=samples, steps=steps, work=samples * steps, eps=target.eps, norm="Linf",
        distances=(distances * 100)[:samples],
    )  # fmt: skip


@pytest.mark.parametrize(("samples", "steps"), RUNS)
def test_the_short_form_costs_a_tenth_of_the_run_at_most(samples, steps):
    budget = short_budget(samples, samples * steps, steps=steps)
    assert budget.samples <= min(16, samples)
    audit = audited(sound(), samples=samples, steps=steps)
    assert audit.cost <= 0.1 * samples * steps
    assert audit.samples <= 16
    assert audit.findings[0].name == "ball"
    assert {f.name for f in audit.findings[1:]} == set(budget.checks)
    assert audit.verdict == ("pass" if samples * steps > 14 else "too little to judge")
    if samples * steps >= 640:
        assert "transfer" in budget.checks
    if samples * steps <= 14:
        assert budget.checks == ()
        assert "does not pay" in audit.skipped["gradients"]
        assert audit.line().startswith("too little to judge (1 of 21 checks ran")


def test_a_flaw_is_one_however_few_checks_ran():
    made, distances = run_of(replace(sound(), eps=2 * EPS), 20)
    audit = audited(sound(), samples=2, steps=1, made=made, distances=distances)
    assert audit.line() == "fail (1 of 1 checks): ball"


def test_a_run_that_had_nothing_to_attack_has_no_ball_to_check():
    audit = audited(sound(), samples=2, steps=1, made=run_of(sound(), 1)[0], distances=[])
    assert (audit.findings, audit.verdict) == ((), "too little to judge")
    assert audit.skipped["ball"] == "no image had to be attacked"


def test_the_short_form_names_a_planted_flaw():
    s = sound()
    shuffled = replace(s, answers=lambda x, index: [str(torch.rand(1).item()) for _ in index])
    assert audited(shuffled, samples=500, steps=50).named("fail") == ["determinism"]
    made, distances = run_of(replace(s, eps=2 * EPS), 20)
    assert audited(s, samples=500, steps=50, made=made, distances=distances).named("fail") == ["ball"]
    # images that were made for another model: its twin's transfer attack does better
    weak, distances = run_of(replace(s, loss=lambda x, i: -s.loss(x, i)), 20)
    assert {"random search", "transfer"} <= set(
        audited(s, samples=500, steps=50, made=weak, distances=distances).named("fail")
    )
    assert audited(replace(s, undefended=None), samples=500, steps=50).skipped["transfer"].startswith("the model has")


@pytest.mark.parametrize(
    ("attack_name", "steps", "stage", "broken", "counted", "work"),
    [
        ("e2e", 20, None, None, 20, 20),
        ("ensemble", 20, "reference 2", True, 40, 40),
        ("apgd-t", None, "apgd-t", True, 37, 37),
        ("fab", None, "fab", False, 0, 100),  # the library's steps are not counted one by one
        ("square", None, "square", False, 0, 2500),
        ("square", None, "square", True, 0, 0),  # perhaps by its first query
        ("autoattack-standard", None, "standard", False, 0, 700),
        ("e2e", 20, None, None, None, 0),  # a record of an earlier version
    ],
)
def test_the_work_of_an_attack_is_counted_by_the_image(attack_name, steps, stage, broken, counted, work):
    made = make_attack(attack_name, eps=EPS, steps=steps)
    assert made is not None
    assert made.least_work(counted, stage if broken else None) == work


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return Maker(tmp_path)


def test_an_adaptive_score_above_the_transfer_score_fails(make):
    high, low = make(spread(60, 1), RADAPT, attack()), make(spread(40, 2), RADAPT, attack("transfer"))
    (finding,) = adaptive_against_transfer([high, low])
    assert finding.verdict == "fail"
    assert finding.numbers["difference"] == pytest.approx(
        finding.numbers["adaptive_score"] - finding.numbers["transfer_score"]
    )
    # a stronger adaptive run on the same model takes the place of the weak one
    strong = make(spread(20, 3), RADAPT, attack(name="ensemble", steps=700))
    assert [f.verdict for f in adaptive_against_transfer([high, low, strong])] == ["pass"]
    # other budgets, models, tasks and samples are other comparisons
    for other in (
        make(spread(40, 2), RADAPT, attack("transfer", levels=2)),
        make(spread(40, 2), None, attack("transfer", surrogate="other")),
        make(spread(40, 2), RADAPT, attack("transfer"), asked="vqav2"),
        make(spread(40, 2), RADAPT, attack("transfer"), prefix="t"),
        make(spread(40, 2), RADAPT, attack("transfer"), model={"dtype": "float16"}),
    ):
        assert adaptive_against_transfer([high, other]) == []


def test_what_chance_may_do_does_not_fail(make):
    one = make([40.0, 0.0, 90.0, 10.0] * 6, RADAPT, attack())
    two = make([0.0, 40.0, 10.0, 60.0] * 6, RADAPT, attack("transfer"))
    (finding,) = adaptive_against_transfer([one, two])
    assert finding.verdict == "pass"  # 7.5 above, of a clean score of over 100
    large = make([100.0, 0.0, 90.0, 10.0] * 6, RADAPT, attack(steps=9))
    (finding,) = adaptive_against_transfer([large, two])
    assert finding.verdict == "warn"


def test_the_report_shows_the_audits(make, tmp_path):
    audit = audited(sound(), samples=64, steps=20)
    broken = replace(audit, findings=(Finding("ball", "fail", "3 images <leave> the ball."), *audit.findings[1:]))
    runs = [
        make(spread(60, 1), RADAPT, attack(), metrics={"audit": broken.to_dict()}),
        make(spread(40, 2), RADAPT, attack("transfer")),
    ]
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "3 images &lt;leave&gt; the ball." in page
    assert f"fail (1 of {len(broken.findings)} checks): ball" in page
    assert "fail: adaptive against transfer" in page
    assert "not run: steps" in page
    few = make(spread(60, 1), None, attack(), metrics={"audit": audited(sound(), samples=2, steps=1).to_dict()})
    assert "too little to judge (1 of 21 checks ran" in write_report([few], tmp_path / "few.html").read_text()
    plain = write_report([runs[1]], tmp_path / "plain.html").read_text()
    assert "Audit" not in plain
