"""APGD against AutoAttack's official code, and what comes from that code: FAB, Square, the standard ensemble."""

import logging
import math
import sys

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

from attacks import apgd
from attacks.autoattack import fab, square, standard
from attacks.classification import ce_loss, dlr_loss, fooled, likely_wrong, targeted_dlr_loss
from attacks.noise import random_start
from attacks.norms import length
from attacks.suite import SuiteSettings, run_suite
from tests.helpers.classifiers import K, classifier, images, labelled

EPS = {"Linf": 0.03125, "L2": 0.1}


@pytest.fixture
def _double():
    """The library's state in double precision: it takes torch's default for its step sizes and losses."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def theirs(attack, logits, x, y, start):
    """(points visited, best points, their losses) of one run of the library's APGD from `start`."""
    visited = []

    def spy(z):
        visited.append(z.detach().clone())
        return logits(z, None)

    attack.model = spy
    attack.init_hyperparam(x)
    best, _, loss, _ = attack.attack_single_run(x, y, x_init=start)
    return visited, best, loss


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted-dlr"])
@pytest.mark.parametrize("steps", [7, 40])
@pytest.mark.usefixtures("_double")
def test_apgd_takes_the_library_s_steps(norm, loss, steps):
    logits, x = classifier(), images(6, seed=steps)
    y = logits(x, None).argmax(1)
    target = likely_wrong(logits(x, None), y)[:, 1]
    eps = EPS[norm]
    start = random_start(x, eps=eps, norm=norm, seeds=range(6))
    if loss == "targeted-dlr":
        attack = APGDAttack_targeted(None, n_iter=steps, norm=norm, eps=eps, device="cpu")
        attack.y_target = target
        loss_fn = targeted_dlr_loss(logits, y, target)
    else:
        attack = APGDAttack(None, n_iter=steps, norm=norm, eps=eps, loss=loss, device="cpu")
        loss_fn = (ce_loss if loss == "ce" else dlr_loss)(logits, y)
    visited, best, highest = theirs(attack, logits, x, y, start)
    points = []

    def spy(z, index):
        points.append(z.detach().clone())
        return loss_fn(z, index)

    ours = apgd(spy, x, eps=eps, steps=steps, norm=norm, random_start=False, start=start)
    assert len(visited) == steps + 1
    assert len(points) == steps + 2  # the clean images compete too
    # DLR is 1, whatever the point, where the true class is third or lower: its gradient there is rounding noise
    flat = [torch.zeros(6, dtype=torch.bool)] if loss != "dlr" else [_third(logits(p, None), y) for p in visited]
    kept = ~torch.stack(flat).any(dim=0)
    assert int(kept.sum()) >= 3
    for point, their in zip(points[1:], visited, strict=True):
        torch.testing.assert_close(point[kept], their[kept], rtol=0, atol=1e-6)
    own = kept & (ours.loss > loss_fn(x, list(range(6))))  # not where the clean image is best
    assert int(own.sum()) >= 2
    torch.testing.assert_close(ours.x_adv[own], best[own], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.loss[own], highest[own], rtol=0, atol=1e-6)


def _third(z, y):
    return (z > z.gather(1, y[:, None])).sum(dim=1) >= 2


def test_the_random_start_is_on_the_rim_as_the_library_s():
    x = images(4) / 2 + 0.25
    for norm, eps in EPS.items():
        start = random_start(x, eps=eps, norm=norm, seeds=range(4))
        first = []
        attack = APGDAttack(lambda z, first=first: first.append(z.detach()) or classifier()(z, None), n_iter=1,
                            norm=norm, eps=eps, loss="ce", device="cpu")  # fmt: skip
        attack.init_hyperparam(x)
        attack.attack_single_run(x, torch.zeros(4, dtype=torch.long))
        for points in (start, first[0]):
            torch.testing.assert_close(length(points - x, norm).flatten(), torch.full((4,), eps).double(), rtol=1e-5,
                                       atol=0)  # fmt: skip


# Square's tiles for L2 are a fifth of the image wide: these images of 4 pixels are too small for it
@pytest.mark.parametrize(("attack", "norm"), [(fab, "Linf"), (fab, "L2"), (square, "Linf")])
def test_library_attacks_stay_in_the_ball_and_fool(attack, norm):
    x, y = labelled()
    eps = {"Linf": 0.08, "L2": 0.4}[norm]
    short = {"steps": 10} if attack is fab else {"queries": 60}
    before = torch.random.get_rng_state()
    found = attack(lambda z: classifier(dtype=z.dtype)(z, None), x, y, eps=eps, norm=norm, seed=3, **short)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.dtype == x.dtype
    assert bool((length(found - x, norm) <= eps + 1e-9).all())
    assert bool(((found >= 0) & (found <= 1)).all())
    torch.testing.assert_close(found[0], x[0], rtol=0, atol=1e-7)  # misclassified as it is
    assert int(fooled(classifier()(found, None), y).sum()) >= 4
    again = attack(lambda z: classifier(dtype=z.dtype)(z, None), x, y, eps=eps, norm=norm, seed=3, **short)
    assert torch.equal(found, again)


def test_fab_tries_every_wrong_class_where_there_are_fewer_than_nine():
    logits = classifier(classes=3, dtype=torch.float32)
    x = images(4, dtype=torch.float32)
    y = logits(x, None).argmax(1)
    found = fab(lambda z: logits(z, None), x, y, eps=0.2, steps=5)
    assert bool(fooled(logits(found, None), y).any())
    with pytest.raises(ValueError, match="at least 4 classes"):
        standard(lambda z: logits(z, None), x, y, eps=0.1)


def test_standard_is_the_library_s_ensemble_and_leaves_no_trace(capsys):
    x, y = (v.float() if v.is_floating_point() else v for v in labelled(4))
    logits = classifier(dtype=torch.float32)
    tracer = sys.gettrace()
    found, remarks = standard(lambda z: logits(z, None), x, y, eps=0.05, seed=[1, 2, 3, 4])
    assert sys.gettrace() is tracer
    assert not logging.getLogger("auto-attack").handlers
    assert capsys.readouterr() == ("", "")
    assert bool(((found - x).abs() <= 0.05 + 1e-6).all())
    ours = run_suite(["apgd-ce", "apgd-t"], logits, x, y, eps=0.05, settings=SuiteSettings(steps=100), seed=1)
    broken = fooled(logits(found, None), y)
    assert int(broken.sum()) >= sum(by is not None for by in ours.broken_by)
    assert remarks == []


def test_standard_passes_on_what_looks_broken(capsys):
    x, y = images(3, dtype=torch.float32), torch.zeros(3, dtype=torch.long)
    _, remarks = standard(lambda z: classifier(dtype=torch.float32)(z, None).softmax(1), x, y, eps=1e-4)
    assert any("probability distribution" in text for text in remarks)
    assert capsys.readouterr() == ("", "")


def test_a_point_on_the_boundary_that_the_judge_refuses_is_carried_on_to_the_rim():
    logits = classifier(dtype=torch.float32)
    x, y = (v.float() if v.is_floating_point() else v for v in labelled())
    eps, far = 0.08, 0.07

    def judge(z, index):
        return (z - x[index]).abs().flatten(1).amax(1) > far

    free = run_suite(["fab"], logits, x, y, eps=eps, settings=SuiteSettings(steps=10))
    strict = run_suite(["fab"], logits, x, y, eps=eps, settings=SuiteSettings(steps=10), judge=judge)
    near = [i for i, by in enumerate(free.broken_by) if by == "fab" and not judge(free.x_adv[i : i + 1], [i])]
    assert near
    moved = [i for i in near if strict.broken_by[i] == "fab"]
    assert len(moved) > len(near) / 2
    for i in moved:
        assert (strict.x_adv[i] - x[i]).abs().max() <= eps + 1e-6
        assert math.isclose(float((strict.x_adv[i] - x[i]).abs().max()), eps, rel_tol=1e-3) or bool(
            ((strict.x_adv[i] == 0) | (strict.x_adv[i] == 1)).any()
        )


def test_apgd_ce_leaves_no_more_standing_than_the_library_s():
    logits = classifier(classes=K, dtype=torch.float32)
    x, y = (v.float() if v.is_floating_point() else v for v in labelled(200))
    left = {"ours": 0, "theirs": 0}
    for seed in range(3):
        attack = APGDAttack(lambda z: logits(z, None), n_iter=30, eps=0.02, seed=seed, loss="ce", device="cpu")
        left["theirs"] += int((~fooled(logits(attack.perturb(x, y), None), y)).sum())
        ours = run_suite(["apgd-ce"], logits, x, y, eps=0.02, settings=SuiteSettings(steps=30), seed=1000 * seed)
        left["ours"] += ours.broken_by.count(None)
    assert 30 < left["theirs"] < 570
    assert left["ours"] / 3 <= left["theirs"] / 3 + 200 / 500
