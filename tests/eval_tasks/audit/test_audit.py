"""The audit can fail: a flaw is planted in a sound target, and the audit names it."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from attacks import apgd
from attacks.eight_bit import to_8bit
from attacks.straight_through import straight_through
from eval_tasks.audit import CHECKS, Audit, Finding, full_audit
from eval_tasks.audit.rules import Difference, difference, exceeds, t_quantile
from tests.helpers.audit_subjects import B, Net, sound

NET = Net()


def crafted_with(wrong_eps):
    """The evaluation's own images under another budget than the one it states."""
    s = sound()

    def craft(eps, steps):
        used = wrong_eps(eps)
        return to_8bit(apgd(s.loss, s.x, eps=used, steps=steps).x_adv, s.x, eps=used, norm="Linf")

    return replace(s, craft=craft)


def partly_detached():
    """Nine tenths of the pixels have no path to the loss."""
    kept = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.1
    return sound(lambda x: NET.classify(torch.where(kept, x, x.detach())))


def quantised(through):
    def logits(x):
        coarse = (x * 15).round() / 15
        return NET.classify(x + (coarse - x).detach() if through else coarse)

    return sound(logits)


def randomised():
    generator = torch.Generator().manual_seed(0)
    return sound(lambda x: NET.classify(x + 0.05 * torch.randn(x.shape, generator=generator)))


def batch_dependent():
    """As a normalisation that was left in training mode."""
    return sound(lambda x: NET.classify(x) - NET.classify(x).mean(0))


def wrong_sign():
    s = sound()
    return replace(s, loss=straight_through(s.loss, lambda x, index: -s.loss(x, index)))


def rippled():
    """A fine ripple that hides the slope beneath it: the gradient is right and leads nowhere."""

    def logits(x):
        ripple = 0.004 * torch.sin(1600 * x).flatten(1)
        return NET.classify(x) + torch.stack([ripple[:, k::3].sum(1) for k in range(3)], dim=1)

    plain = sound()
    return replace(sound(logits), undefended=plain.loss)


def stale_answers():
    """What is scored is the clean image."""
    s = sound()
    return replace(s, answers=lambda x, index: s.answers(s.x[index], index))


def rejecting():
    """A scorer that falls back on the clean image when the change is large: not monotone in eps."""
    s = sound()

    def answers(x, index):
        far = (x - s.x[index]).abs().amax() > 10 / 255
        return s.answers(s.x[index] if far else x, index)

    return replace(s, answers=answers)


def other_targets():
    """The attack raises the loss of a text that is none of the references."""
    s = sound()
    labels = NET.classify(s.x).argmax(1)
    return replace(
        s,
        loss=lambda x, index: F.cross_entropy(NET.classify(x), (labels[index] + 1) % 3, reduction="none"),
        targeted={f"class {c}": lambda x, index, c=c: NET.classify(x)[:, c] for c in range(3)},
    )


def dead_start():
    """A distance from the clean image, begun at the clean image: its gradient there is zero."""
    s = sound()
    with torch.no_grad():
        clean = NET.classify(s.x)

    def loss(x, index):
        return (NET.classify(x) - clean[index]).square().sum(1)

    def craft(eps, steps):
        return to_8bit(apgd(loss, s.x, eps=eps, steps=steps, random_start=False).x_adv, s.x, eps=eps, norm="Linf")

    return replace(s, loss=loss, craft=craft, random_start=False, half=None, targeted={}, undefended=None)


def creeping():
    """So small a step that the attack ends far from where it would get to."""
    return replace(sound(), random_start=False, step_scale=0.01)


def half_is_the_better():
    """Full precision has a flaw that half precision has not."""
    return replace(partly_detached(), half=sound().loss)


def not_finite():
    return sound(lambda x: NET.classify(x) / torch.where(x.mean((1, 2, 3)) > 0.5, 0.0, 1.0)[:, None])


EXACT = {
    "detached": (lambda: sound(lambda x: NET.classify(x.detach())), {"gradients"}),
    "detached, with a path of weight zero": (lambda: sound(lambda x: NET.classify(x.detach() + 0 * x)), {"gradients"}),
    "saturated": (lambda: sound(lambda x: 1e4 * NET.classify(x)), {"gradients"}),
    "not finite": (not_finite, {"gradients"}),
    "quantised": (lambda: quantised(through=False), {"gradients", "input resolution"}),
    "quantised, straight through": (lambda: quantised(through=True), {"input resolution"}),
    "randomised": (randomised, {"determinism"}),
    "batch dependent": (batch_dependent, {"batch invariance"}),
    "eps doubled": (lambda: crafted_with(lambda eps: 2 * eps), {"ball"}),
    "eps divided by 255 twice": (lambda: crafted_with(lambda eps: eps / 255), {"ball"}),
    "eps one level too large": (lambda: crafted_with(lambda eps: eps + 1 / 255), {"ball"}),
    "other prompts": (lambda: replace(sound(), prompts=lambda: (["a"] * B, ["a"] * (B - 1) + ["b"])), {"prompts"}),
    "not monotone": (rejecting, {"eps"}),
}
NAMED = {
    "partly detached": (partly_detached, {"gradient accuracy"}),
    "gradient of the wrong sign": (wrong_sign, {"gradient accuracy", "random search", "spsa"}),
    "rippled": (rippled, {"transfer", "bpda"}),
    "stale answers": (stale_answers, {"eps"}),
    "other targets": (other_targets, {"targeted loss", "eps"}),
    "dead start": (dead_start, {"ball", "noise", "random search", "spsa", "restarts"}),
    "creeping": (creeping, {"steps"}),
    "half is the better": (half_is_the_better, {"gradient accuracy", "half precision"}),
}


def shown(audit: Audit) -> str:
    return "\n".join(f"{f.verdict} {f.name}: {f.explanation}" for f in audit.findings) + f"\n{dict(audit.skipped)}"


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sound_subject_passes_every_check(seed):
    target = replace(sound(), seeds=[seed * 100 + i for i in range(B)])
    audit = full_audit(replace(target, draws=3, drawn=lambda times: target.loss))
    assert [f.name for f in audit.findings] == [check.name for check in CHECKS]
    assert {f.verdict for f in audit.findings} == {"pass"}, shown(audit)
    assert audit.verdict == "pass"
    assert audit.line() == f"pass ({len(CHECKS)} checks)"
    assert json.loads(json.dumps(audit.to_dict(), allow_nan=False)) == audit.to_dict()
    assert Audit.from_dict(json.loads(json.dumps(audit.to_dict()))) == audit


@pytest.mark.parametrize("flaw", EXACT)
def test_a_planted_flaw_fails_its_check_and_no_other(flaw):
    make, expected = EXACT[flaw]
    audit = full_audit(make())
    assert set(audit.named("fail")) == expected, shown(audit)
    assert audit.verdict == "fail"


@pytest.mark.parametrize("flaw", NAMED)
def test_a_planted_flaw_that_has_consequences_is_named_among_them(flaw):
    make, expected = NAMED[flaw]
    audit = full_audit(make())
    assert expected <= set(audit.named("fail")), shown(audit)


def test_checks_that_cannot_mean_anything_are_skipped_and_say_why():
    audit = full_audit(replace(randomised(), undefended=None, prompts=None))
    assert audit.skipped["gradient accuracy"] == "says nothing while determinism fails"
    assert audit.skipped["transfer"] == "the model has no defence, so no undefended model"
    assert audit.skipped["prompts"] == "the model takes no prompts"
    assert len(audit.findings) + len(audit.skipped) == len(CHECKS)


def test_an_audit_says_the_same_again():
    one, two = (full_audit(replace(sound(), steps=3)) for _ in range(2))
    assert one == two


def test_differences_of_samples_that_share_images():
    first, second = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0], [2.0, 7.0, 1.0, 8.0, 2.0, 8.0]
    half = difference(first, second)
    # every pair twice, from one image: nothing is learnt by the second
    doubled = [[value for value in values for _ in range(2)] for values in (first, second)]
    images = [i // 2 for i in range(12)]
    assert difference(*doubled, images) == pytest.approx(half)
    assert difference(*doubled).low > half.low
    assert difference(first, second, "abcdef") == pytest.approx(half)
    assert difference(first, second, "aaaaaa").low == -math.inf
    # by hand: differences 6, 0, 0 of two images; the mean 2; the sums of the deviations of an image 2 and -2
    found = difference([6.0, 0.0, 0.0], [0.0, 0.0, 0.0], "aab")
    assert found.mean - found.low == pytest.approx(t_quantile(1) * math.sqrt(2 / 1 * (2**2 + 2**2) / 3**2))


def test_the_rules_of_differences():
    assert t_quantile(1) == pytest.approx(12.706, abs=1e-3)
    assert t_quantile(30) == pytest.approx(2.0423, abs=1e-3)
    assert t_quantile(1000) == pytest.approx(1.9623, abs=1e-3)
    found = difference([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])  # differences 2, 3, 1: s = 1, t(2) = 4.303
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(4.303 / 3**0.5)
    assert exceeds(found, 0.5) == "warn"
    assert exceeds(Difference(2.0, 0.1, 3.9), 0.5) == "fail"
    assert exceeds(Difference(2.0, 0.1, 3.9), 2.5) == "pass"
    assert exceeds(difference([1e9], [0.0]), 1.0) == "warn"  # a single image proves nothing
    assert exceeds(difference([1.0, 1.0], [1.0, 1.0]), 0.0) == "pass"


def confident():
    """So sure of its answers that rounding moves the loss more than the image does."""
    sure = 9.0 * F.one_hot(NET.classify(sound().x).argmax(1), 3)

    def loss(x, index):
        logits = sure[index] + 1e-4 * NET.classify(x)
        return F.cross_entropy(logits, sure[index].argmax(1), reduction="none")

    return replace(sound(undefended=None), loss=loss, half=None, targeted={})


def test_what_has_no_signal_is_not_judged():
    audit = full_audit(confident())
    assert "may be rounding" in audit.skipped["gradient accuracy"]
    assert audit.skipped["input resolution"] == "the loss is next to nothing at these images"
    for rival in ("noise", "random search", "spsa", "8-bit round trip"):
        assert "rounding" in audit.skipped[rival]
    assert not {*audit.named("fail"), *audit.named("warn")} & {"gradient accuracy", "noise", "random search", "spsa"}


def test_scores_of_nothing_cannot_be_lowered():
    s = sound()
    audit = full_audit(replace(s, score=lambda texts, index: [0.0 for _ in texts]))
    assert audit.skipped["targeted loss"] == "the model scores nothing on these images, clean as they are"


def test_few_checks_are_no_ground_for_a_pass():
    def audit(*verdicts):
        return Audit("short", 2, 1, tuple(Finding(f"check {i}", v, "") for i, v in enumerate(verdicts)), {"other": ""})

    assert audit(*["pass"] * 5).line() == "pass (5 checks)"
    assert audit(*["pass"] * 4).verdict == "too little to judge"
    assert audit(*["pass"] * 4).line() == "too little to judge (4 of 5 checks ran, 5 are the least)"
    assert audit().verdict == "too little to judge"
    assert audit("warn").line() == "warn (1 of 1 checks): check 0"
    assert Audit.from_dict(audit("pass").to_dict()).verdict == audit("pass").to_dict()["verdict"]
