"""A patch embedding's gradient as a matrix product: the library's own, with the library's forward pass."""

import copy

import pytest
import torch
from torch import nn

from lvlm_radapt.models.speedups import patch_gradient

SHAPES = [
    (nn.Conv2d, 3, (14, 14), (2, 3, 56, 42)),
    (nn.Conv2d, 3, (14, 7), (1, 3, 45, 30)),  # a rim that no patch covers
    (nn.Conv2d, 1, (4, 4), (3, 1, 4, 4)),
    (nn.Conv3d, 3, (2, 14, 14), (5, 3, 2, 14, 14)),  # Qwen: a patch a row
    (nn.Conv3d, 2, (2, 4, 3), (2, 2, 5, 9, 7)),
]


def embedding(kind, channels, kernel, **more):
    module = kind(channels, 8, kernel_size=kernel, stride=kernel, **more).double()
    return module.requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kind", "channels", "kernel", "shape"), SHAPES)
def test_gradient_and_output_are_the_library_s(kind, channels, kernel, shape, bias):
    own = embedding(kind, channels, kernel, bias=bias)
    stock = copy.deepcopy(own)
    patch_gradient.prepare(own)
    x = torch.randn(shape, dtype=torch.float64)
    found, expected = (x.clone().requires_grad_() for _ in range(2))
    ours, theirs = own(found), stock(expected)
    assert torch.equal(ours, theirs)
    assert type(ours.grad_fn).__name__ == "_PatchesBackward"
    slope = torch.randn(ours.shape, dtype=torch.float64)
    ours.backward(slope)
    theirs.backward(slope)
    torch.testing.assert_close(found.grad, expected.grad)


def test_gradient_against_finite_differences():
    own = embedding(nn.Conv2d, 2, (3, 3), padding="valid")
    patch_gradient.prepare(own)
    assert torch.autograd.gradcheck(own, torch.randn(2, 2, 7, 6, dtype=torch.float64, requires_grad=True))


def test_under_autocast():
    own = embedding(nn.Conv2d, 3, (7, 7)).float()
    stock = copy.deepcopy(own)
    patch_gradient.prepare(own)
    x = torch.randn(2, 3, 28, 28)
    found, expected = (x.clone().requires_grad_() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = own(found), stock(expected)
    assert torch.equal(ours, theirs)
    slope = torch.randn(ours.shape).to(ours)
    ours.backward(slope)
    theirs.backward(slope)
    assert found.grad.dtype == torch.float32
    torch.testing.assert_close(found.grad, expected.grad, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 8, kernel_size=3, stride=2),
        nn.Conv2d(3, 8, kernel_size=3, stride=3, padding=1),
        nn.Conv2d(3, 8, kernel_size=1, stride=1, padding="same"),
        nn.Conv2d(4, 8, kernel_size=3, stride=3, groups=2),
        nn.Conv2d(3, 8, kernel_size=3, stride=3, dilation=2),
        nn.Linear(3, 8),
    ],
    ids=str,
)
def test_what_cuts_no_patches_is_left_alone(module):
    patch_gradient.prepare(module.requires_grad_(False))
    assert not module._forward_hooks


def test_training_and_plain_passes_are_left_alone_and_preparing_twice_changes_nothing():
    module = nn.Conv2d(3, 8, kernel_size=4, stride=4)
    patch_gradient.prepare(module)
    patch_gradient.prepare(module)
    assert len(module._forward_hooks) == 1
    x = torch.randn(1, 3, 8, 8)
    module(x.requires_grad_()).sum().backward()
    assert module.weight.grad is not None
    assert x.grad is not None
    assert not module.requires_grad_(False)(x.detach()).requires_grad


def test_every_family_has_it(tmp_path):
    from lvlm_radapt import load_model
    from lvlm_radapt.towers import find_tower
    from lvlm_radapt.towers.parts import patch_embedding
    from tests.helpers.families import FAMILIES

    for family in FAMILIES.values():
        model = load_model(family.save(tmp_path / family.name))
        embedding = patch_embedding(find_tower(model.tower))
        if isinstance(embedding, nn.Linear):  # a product already
            continue
        assert patch_gradient.replace_gradient in embedding._forward_hooks.values(), family.name
