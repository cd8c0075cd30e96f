"""Losses on logits, PGD and suites of attacks on small analytic classifiers."""

import math
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.autoattack import LibraryMissingError
from attacks.classification import ce_loss, dlr_loss, fooled, likely_wrong, margin, margin_loss, targeted_dlr_loss
from attacks.pgd import pgd
from attacks.suite import SuiteSettings, check_members, run_suite
from tests.helpers.classifiers import K, classifier, images, labelled

X = torch.zeros(1, 1, 1, 1)


def given_logits(*rows):
    z = torch.tensor(rows, dtype=torch.float64)
    return lambda x, index: z[index]


# --- losses


def naive(z, y, t):
    """The four losses of one sample in plain floats."""
    ordered = sorted(z, reverse=True)
    total = math.log(sum(math.exp(v - ordered[0]) for v in z)) + ordered[0]
    gap = max(v for i, v in enumerate(z) if i != y) - z[y]
    return {
        ce_loss: total - z[y],
        margin_loss: gap,
        dlr_loss: gap / (ordered[0] - ordered[2]),
        targeted_dlr_loss: (z[t] - z[y]) / (ordered[0] - (ordered[2] + ordered[3]) / 2),
    }


@settings(max_examples=60)
@given(
    st.lists(st.integers(-800, 800), min_size=4, max_size=9, unique=True).flatmap(
        lambda z: st.tuples(st.just([v / 40 for v in z]), st.permutations(range(len(z))))
    )
)
def test_losses_against_plain_floats(case):
    z, (y, t, *_) = case
    logits, true, wanted = given_logits(z), torch.tensor([y]), torch.tensor([t])
    for make, value in naive(z, y, t).items():
        labels = {targeted_dlr_loss: (true, wanted)}.get(make, (true,))
        assert make(logits, *labels)(X, [0]).item() == pytest.approx(value, rel=1e-9, abs=1e-9)
    order = likely_wrong(logits(X, [0]), true)[0].tolist()
    assert order == sorted((i for i in range(len(z)) if i != y), key=lambda i: -z[i])
    assert fooled(logits(X, [0]), true).item() == (margin(logits(X, [0]), true).item() > 0)


def test_half_precision_logits_are_compared_in_single():
    # in bfloat16 the log-sum-exp of 100 and 99 would be a whole number
    z = torch.tensor([[100.0, 99.0, 0.0, 1.0]], dtype=torch.bfloat16)
    value = ce_loss(lambda x, index: z, torch.tensor([0]))(X, [0])
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-5)


@pytest.mark.parametrize(("make", "least"), [(ce_loss, 2), (dlr_loss, 3)])
def test_too_few_classes_are_refused(make, least):
    with pytest.raises(ValueError, match=f"at least {least} classes"):
        make(given_logits([0.0] * (least - 1)), torch.tensor([0]))(X, [0])
    with pytest.raises(ValueError, match="must have shape"):
        make(lambda x, index: torch.zeros(3), torch.tensor([0]))(X, [0])
    with pytest.raises(ValueError, match="at least 4 classes"):
        targeted_dlr_loss(given_logits([0.0] * 3), torch.tensor([0]), torch.tensor([1]))(X, [0])
    with pytest.raises(ValueError, match="shaped as labels"):
        targeted_dlr_loss(given_logits([0.0] * 4), torch.tensor([0]), torch.tensor([1, 2]))


# --- PGD


def test_pgd_sequence_by_hand():
    # f(z) = -(z - 0.54)^2, x = 0.5, eps 0.1, step 0.03: 0.53, over the top to 0.56, back to 0.53, ...
    seen = []

    def loss_fn(z, index):
        seen.append(z.item())
        return -((z - 0.54) ** 2).flatten(1).sum(1)

    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    found = pgd(loss_fn, x, eps=0.1, step_size=0.03, steps=3, random_start=False)
    assert seen == pytest.approx([0.5, 0.53, 0.56, 0.53])
    assert found.x_adv.item() == pytest.approx(0.53)
    assert found.loss.item() == pytest.approx(-1e-4)
    assert found.steps.tolist() == [3]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pgd_stays_in_the_ball_and_stops_where_it_succeeds(norm):
    x, y = images(5), torch.arange(5)
    loss_fn = ce_loss(classifier(), y)
    eps = {"Linf": 0.1, "L2": 0.5}[norm]
    found = pgd(loss_fn, x, eps=eps, step_size=eps / 4, steps=9, norm=norm, seed=3)
    delta = (found.x_adv - x).flatten(1)
    size = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
    assert bool((size <= eps + 1e-12).all())
    assert bool((size > 0).all())
    assert bool(((found.x_adv >= 0) & (found.x_adv <= 1)).all())
    assert torch.equal(loss_fn(found.x_adv, list(range(5))), found.loss)
    alone = pgd(lambda z, i: loss_fn(z, [3]), x[3:4], eps=eps, step_size=eps / 4, steps=9, norm=norm, seed=[6])
    torch.testing.assert_close(alone.x_adv, found.x_adv[3:4])  # noise by sample, not by batch
    early = pgd(
        loss_fn, x, eps=eps, step_size=eps / 4, steps=9, norm=norm, seed=3,
        success=lambda z, index: torch.tensor([i == 2 for i in index]),
    )  # fmt: skip
    assert early.succeeded.tolist() == [i == 2 for i in range(5)]
    assert early.steps.tolist() == [9, 9, 0, 9, 9]


def test_pgd_on_several_threads_gives_the_results_of_one():
    x, loss_fn = images(5), ce_loss(classifier(), torch.arange(5))
    seen = set()

    def sometimes_broken(z, index):
        seen.add(threading.get_ident())
        return torch.where(torch.tensor([i == 3 for i in index]), torch.nan, loss_fn(z, index))

    def attack(**more):
        success = lambda z, index: torch.tensor([i == 2 for i in index])  # noqa: E731
        return pgd(sometimes_broken, x, eps=0.1, step_size=0.02, steps=9, seed=3, success=success, **more)

    whole, shared = attack(), attack(workers=3)
    for name in ("x_adv", "loss", "steps", "zero_grad", "succeeded"):
        torch.testing.assert_close(getattr(shared, name), getattr(whole, name), equal_nan=True)
    assert shared.failed == whole.failed
    assert whole.failed[3] is not None
    assert len(seen) > 1


def test_pgd_gives_up_a_sample_that_is_not_finite():
    calls = []

    def loss_fn(z, index):
        calls.append(index)
        value = z.flatten(1).sum(1)
        return value + torch.tensor([math.inf if i == 1 and len(calls) == 3 else 0 for i in index])

    found = pgd(loss_fn, images(2) / 4, eps=0.5, step_size=0.1, steps=4, random_start=False)
    assert found.failed == [None, "loss is not finite at step 2"]
    assert found.steps.tolist() == [4, 2]
    assert bool(found.loss.isfinite().all())
    with pytest.raises(ValueError, match="steps"):
        pgd(loss_fn, images(2), eps=0.5, step_size=0.1, steps=0)


# --- suites


SHORT = SuiteSettings(steps=10)


def attacked(members, *, eps=0.02, **options):
    x, y = labelled()
    return x, y, run_suite(members, classifier(), x, y, eps=eps, settings=SHORT, seed=5, **options)


def test_a_line_leaves_no_more_standing_than_its_members():
    members = ("apgd-ce", "apgd-dlr", "apgd-t")
    alone = {m: attacked([m])[2] for m in members}
    broken = {m: [by is not None for by in found.broken_by] for m, found in alone.items()}
    assert all(0 < sum(b) < len(b) for b in broken.values())
    for line in (members[:2], members[::2]):
        x, y, found = attacked(line)
        for i, by in enumerate(found.broken_by):
            assert (by is not None) >= any(broken[m][i] for m in line[:1])
        assert sum(by is not None for by in found.broken_by) >= max(sum(broken[m]) for m in line)
        assert found.broken_by[0] == "clean"
        assert torch.equal(found.x_adv[0], x[0])
        z = classifier()(found.x_adv, [])
        assert fooled(z, y).tolist() == [by is not None for by in found.broken_by]
        torch.testing.assert_close(margin(z, y), found.margin)
        assert bool(((found.x_adv - x).abs() <= 0.02 + 1e-12).all())
        # no image is worse than the clean one
        assert bool((found.margin >= margin(classifier()(x, []), y) - 1e-12).all())


def test_the_steps_of_a_line_are_those_that_were_made():
    x, y = labelled()
    gradients = [0] * len(x)
    plain = classifier()

    def counting(z, index):
        if z.requires_grad:
            for i in index:
                gradients[i] += 1
        return plain(z, index)

    settings = replace(SHORT, random_start=False)
    found = run_suite(["apgd-ce", "apgd-t"], counting, x, y, eps=0.02, settings=settings, seed=5)
    own = run_suite(["apgd-ce"], plain, x, y, eps=0.02, settings=settings, seed=5)
    whole = settings.steps * (1 + plain(x, []).shape[1] - 1)
    for i, by in enumerate(found.broken_by):
        # the gradient at a point that breaks a sample is made before it is known that it does
        assert int(found.steps[i]) <= gradients[i] <= int(found.steps[i]) + (by is not None)
        assert by is not None or int(found.steps[i]) == whole
    assert found.steps[0] == 0  # misclassified as it is
    assert all(own.steps[i] <= settings.steps for i in range(len(x)))
    assert len(set(found.steps.tolist())) > 2


def test_each_member_sees_only_what_is_still_standing():
    x, y = labelled()
    seen = []
    logits = classifier()
    run_suite(["apgd-ce"], logits, x, y, eps=0.02, settings=SHORT, seed=5)
    first = attacked(["apgd-ce"])[2]
    standing = {i for i, by in enumerate(first.broken_by) if by is None}

    def spy(z, index):
        seen.append(set(index))
        return logits(z, index)

    run_suite(["apgd-ce", "apgd-t"], spy, x, y, eps=0.02, settings=SHORT, seed=5)
    assert seen[0] == set(range(12))
    assert all(0 not in rows for rows in seen[1:])  # misclassified as it is
    everyone = set(range(1, 12))
    looked = len(seen) - seen[::-1].index(everyone)  # after what the first member found was looked at
    assert standing < everyone
    assert len(seen) > looked
    assert all(rows <= standing for rows in seen[looked:])


def test_targets_are_the_likely_wrong_classes_in_turn(monkeypatch):
    import attacks.suite as suite

    wanted = []
    original = suite.targeted_dlr_loss

    def spy(logits, labels, targets):
        wanted.append(targets.tolist())
        return original(logits, labels, targets)

    monkeypatch.setattr(suite, "targeted_dlr_loss", spy)
    x, y = labelled(3)
    run_suite(["apgd-t"], classifier(), x, y, eps=1e-6, settings=SuiteSettings(steps=1))
    expected = likely_wrong(classifier()(x, []), y)[1:]  # the first is misclassified
    assert wanted == expected.T.tolist()
    assert len(wanted) == K - 1
    wanted.clear()
    many = classifier(classes=20)
    run_suite(["apgd-t"], many, x, many(x, []).argmax(1), eps=1e-6, settings=SuiteSettings(steps=1))
    assert len(wanted) == 9


def test_a_judge_decides_what_counts():
    _, _, free = attacked(["apgd-ce"])
    _, _, none = attacked(["apgd-ce"], judge=lambda z, index: torch.zeros(len(index), dtype=torch.bool))
    assert none.broken_by == [None] * 12
    assert sum(bool(m > 0) for m in none.margin) >= sum(by is not None for by in free.broken_by)
    asked = []

    def judge(z, index):
        asked.extend(index)
        return torch.tensor([i % 2 == 0 for i in index])

    _, _, even = attacked(["apgd-ce"], judge=judge)
    assert all(i % 2 == 0 for i, by in enumerate(even.broken_by) if by)
    assert any(even.broken_by)
    assert set(asked) <= {i for i, m in enumerate(none.margin) if m > 0}  # only about what fools the classifier


def test_attacks_for_another_classifier_go_on_to_the_end():
    _, y, early = attacked(["apgd-ce"], eps=0.05)
    x, _, late = attacked(["apgd-ce"], eps=0.05, stop_early=False)
    assert late.broken_by[0] == "apgd-ce"  # misclassified as it is, attacked all the same
    assert not torch.equal(late.x_adv[0], x[0])
    loss = ce_loss(classifier(), y)
    everyone = list(range(12))
    assert bool((loss(late.x_adv, everyone) >= loss(early.x_adv, everyone) - 1e-9).all())
    assert float(loss(late.x_adv, everyone).mean()) > 1.1 * float(loss(early.x_adv, everyone).mean())


def test_a_sample_s_result_does_not_depend_on_the_batch():
    x, y, whole = attacked(["apgd-ce", "apgd-t"])
    for i in (3, 7):
        alone = run_suite(
            ["apgd-ce", "apgd-t"], classifier(), x[i : i + 1], y[i : i + 1], eps=0.02, settings=SHORT, seed=[5 + i]
        )
        assert alone.broken_by == whole.broken_by[i : i + 1]
        torch.testing.assert_close(alone.x_adv, whole.x_adv[i : i + 1])
    _, _, threads = attacked(["apgd-ce", "apgd-t"], workers=3)
    assert threads.broken_by == whole.broken_by


def test_a_failure_is_told():
    x, y = labelled(2)
    logits = classifier()
    bad = run_suite(["pgd-margin"], lambda z, i: logits(z, i) + (math.nan if z.requires_grad else 0), x, y, eps=0.1)
    assert bad.failed[0] is None
    assert bad.failed[1] is not None
    flat = run_suite(["pgd-ce"], lambda z, i: logits(z, i).detach() + 0 * z.sum(), x, y, eps=0.1, settings=SHORT)
    assert flat.zero_grad.tolist() == [False, True]  # the first was never attacked


@pytest.mark.parametrize(
    ("members", "classes", "words"),
    [
        ([], 9, "standard alone"),
        (["fgsm"], 9, "standard alone"),
        (["standard", "fab"], 9, "standard alone"),
        (["apgd-dlr"], 2, "apgd-dlr needs at least 3"),
        (["apgd-ce", "apgd-t"], 3, "apgd-t needs at least 4"),
        (["standard"], 3, "standard needs at least 4"),
    ],
)
def test_lines_that_cannot_be(members, classes, words):
    with pytest.raises(ValueError, match=words):
        check_members(members, classes)


@pytest.mark.parametrize("member", ["fab", "square", "standard"])
def test_a_missing_library_is_named_in_one_line(member, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(LibraryMissingError, match=r"pip install 'lvlm-radapt\[autoattack\]'") as caught:
        attacked([member])
    assert "\n" not in str(caught.value)
