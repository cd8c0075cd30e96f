"""Embedding losses against formulas written out, finite differences, and as an attack's objective."""

import math

import pytest
import torch

from attacks import apgd, embedding_loss

B, T, D, PIXELS = 3, 5, 4, 12
WEIGHTS = torch.randn(PIXELS, T * D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def features(x, index):
    return torch.tanh(x.flatten(1) @ WEIGHTS.to(x.dtype)).view(len(x), T, D) + 0.1


def images(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(B, 3, 2, 2, generator=g, dtype=torch.float64).to(dtype)


def plain(distance, tokens, clean):
    """The mean over tokens, in plain floats."""
    total = 0.0
    for u, v in zip(tokens.tolist(), clean.tolist(), strict=True):
        if distance == "l2":
            total += sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
        else:
            dot = sum(a * b for a, b in zip(u, v, strict=True))
            total += 1 - dot / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v))
    return total / len(tokens)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_value_is_the_mean_over_tokens_and_rows_follow_index(distance):
    clean = features(images(), None)
    other = images(1)
    loss_fn = embedding_loss(features, clean, distance=distance)
    for index in ([0, 1, 2], [2, 0], [1]):
        values = loss_fn(other[index], index)
        expected = [plain(distance, features(other[i : i + 1], None)[0], clean[i]) for i in index]
        assert values.tolist() == pytest.approx(expected, abs=1e-12)


def test_values_by_hand():
    clean = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    moved = torch.tensor([[[0.0, 3.0], [0.0, -1.0]]])  # turned by 90 and by 180 degrees
    x = torch.zeros(1, 1, 1, 1)
    cosine = embedding_loss(lambda z, index: moved, clean)
    assert cosine(x, [0]).tolist() == pytest.approx([1.5])  # (1 + 2) / 2
    squared = embedding_loss(lambda z, index: moved, clean, distance="l2")
    assert squared(x, [0]).tolist() == pytest.approx([9.5])  # (1 + 9 + 9) / 2


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_gradient_against_finite_differences(distance):
    loss_fn = embedding_loss(features, features(images(), None), distance=distance)
    x = images(1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss_fn(x, [0, 1, 2]).sum(), x)
    h = 1e-6
    numeric = torch.zeros(x.numel(), dtype=torch.float64)
    for i in range(x.numel()):
        bump = torch.zeros(x.numel(), dtype=torch.float64)
        bump[i] = h
        up, down = (loss_fn((x + s * bump.view_as(x)).detach(), [0, 1, 2]).sum() for s in (1, -1))
        numeric[i] = (up - down) / (2 * h)
    torch.testing.assert_close(gradient.flatten(), numeric, rtol=1e-6, atol=1e-8)
    assert gradient.abs().max() > 1e-2


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_are_compared_in_float32(distance, dtype):
    clean = features(images(), None).to(dtype)
    other = features(images(1), None).to(dtype)
    loss_fn = embedding_loss(lambda x, index: other[index], clean, distance=distance)
    values = loss_fn(images(), [0, 1, 2])
    assert values.dtype == torch.float32
    expected = [plain(distance, other[i].double(), clean[i].double()) for i in range(B)]
    assert values.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_at_the_clean_image_is_exactly_zero_and_a_random_start_cures_it(distance, dtype):
    x = images(dtype=dtype)
    loss_fn = embedding_loss(features, features(x, None), distance=distance)
    stuck = apgd(loss_fn, x, eps=0.05, steps=5, random_start=False)
    assert stuck.zero_grad.all()
    assert torch.equal(stuck.x_adv, x)
    moving = apgd(loss_fn, x, eps=0.05, steps=5)
    assert not moving.zero_grad.any()
    assert (moving.loss > 1e-4).all()


def test_cosine_is_precise_close_to_the_clean_image():
    # A turn by 1e-4 rad: 1 - cos = 5e-9, of which float32's own 1 - cos would leave nothing.
    clean = torch.tensor([[[1.0, 0.0]]])
    turned = torch.tensor([[[math.cos(1e-4), math.sin(1e-4)]]])
    value = embedding_loss(lambda x, index: turned, clean)(torch.zeros(1, 1, 1, 1), [0])
    assert value.item() == pytest.approx(5e-9, rel=1e-3)


def test_clean_tokens_are_a_constant():
    clean = features(images(), None).requires_grad_()
    loss_fn = embedding_loss(features, clean)
    loss_fn(images(1).requires_grad_(), [0, 1, 2]).sum().backward()
    assert clean.grad is None


def test_bad_arguments():
    clean = features(images(), None)
    with pytest.raises(ValueError, match="distance must be one of cosine, l2"):
        embedding_loss(features, clean, distance="l1")
    with pytest.raises(ValueError, match=r"\[B, T, D\]"):
        embedding_loss(features, clean[0])
    with pytest.raises(ValueError, match="not finite"):
        embedding_loss(features, clean * math.inf)
    with pytest.raises(ValueError, match="length 0"):
        embedding_loss(features, clean * (torch.arange(T) != 2)[:, None])
    embedding_loss(features, clean * 0, distance="l2")
    with pytest.raises(ValueError, match=r"tokens \(3, 5, 4\), the clean ones are \(2, 5, 4\)"):
        embedding_loss(features, clean)(images(), [0, 1])
