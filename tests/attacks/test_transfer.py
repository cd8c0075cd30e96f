"""The ascent behind transfer images, and its crops."""

import pytest
import torch

from attacks.transfer import draw_boxes, random_crops, transfer_ascent

X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(3)) / 2 + 0.25
W = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(4))
HOW = {"eps": 0.1, "step_size": 0.03, "steps": 12}


def pull(weights):
    return lambda x, step: (x * weights).flatten(1).sum(dim=1)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_a_linear_loss_is_raised_to_its_maximum(momentum):
    found = transfer_ascent([pull(W)], X, momentum=momentum, **HOW)
    assert torch.allclose(found, X + 0.1 * W.sign(), atol=1e-6)
    euclid = transfer_ascent([pull(W)], X, norm="L2", momentum=momentum, **HOW)
    wanted = X + 0.1 * W / W.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(euclid, wanted, atol=3e-3)


def test_several_losses_count_alike():
    found = transfer_ascent([pull(W), pull(W), pull(-3 * W)], X, **HOW)
    assert torch.allclose(found, X - 0.1 * W.sign(), atol=1e-6)


def test_a_row_does_not_depend_on_the_others():
    whole = transfer_ascent([pull(W)], X, seed=[5, 6, 7], **HOW)
    alone = transfer_ascent([pull(W[1:2])], X[1:2], seed=[6], **HOW)
    assert torch.equal(whole[1:2], alone)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"step_size": 0}, {"eps": -1}, {"norm": "L1"}])
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(ValueError):  # noqa: PT011 - each check has its own words
        transfer_ascent([pull(W)], X, **HOW | wrong)


def test_a_crop_of_all_is_the_image_and_others_lie_where_they_say():
    whole = torch.tensor([[1.0, 0.3, 0.9]])
    assert torch.allclose(random_crops(X[:1], whole), X[:1], atol=1e-6)
    across = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 3, 8, 8)  # a ramp from left to right
    for place, least, most in ((0.0, 0.0, 3.25), (1.0, 3.75, 7.0)):  # the left half, and the right one
        crop = random_crops(across, torch.tensor([[0.5, place, 0.5]]))
        assert crop.min() == pytest.approx(least, abs=0.26)
        assert crop.max() == pytest.approx(most, abs=0.26)
        assert torch.allclose(crop[0, 0, 0], crop[0, 0, -1])


def test_crops_pass_gradients_and_boxes_are_drawn_anew_at_every_step():
    x = X.clone().requires_grad_()
    boxes = draw_boxes([1, 2, 3], 0, 0.5)
    random_crops(x, boxes.float()).sum().backward()
    assert bool((x.grad != 0).any())
    assert not torch.equal(boxes, draw_boxes([1, 2, 3], 1, 0.5))
    assert torch.equal(boxes[1:2], draw_boxes([2], 0, 0.5))
    many = draw_boxes(range(500), 0, 0.5)
    assert 0.5 <= float(many[:, 0].min()) < 0.52
    assert 0.98 < float(many[:, 0].max()) <= 1
