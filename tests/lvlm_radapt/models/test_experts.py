"""Language models with experts: a sample's neighbours do not change what it gets, and gradients reach the router."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.helpers.families import FAMILIES, Case
from tests.helpers.inputs import noise

NAMES = [name for name in ("qwen3-moe", "qwen3.5-moe", "glm-moe", "gemma4-large") if name in FAMILIES]
SHARED = (112, 84, 0)
QUESTION, ANSWER = "how many red circles are on the left", "two"
OTHERS = [("what", "a large blue square"), ("describe the image with a word .", "yes"), ("is this a pig ?", "no")]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def routers(model: Any) -> list[Any]:
    found = [module for module in model.hf.modules() if type(module).__name__.lower().endswith("router")]
    assert found
    return found


def asked(case: Case, place: int, others: list[int]) -> tuple[Tensor, Tensor, str]:
    """Loss, pixel gradient and answer of the shared sample at that place among others of these seeds."""
    seeds = [*others[:place], 0, *others[place:]]
    texts = [(QUESTION, ANSWER) if seed == 0 else OTHERS[seed % 3] for seed in seeds]
    batch = case.ours.pixels([noise(*SHARED[:2], seed) for seed in seeds])
    x = batch.x.clone().requires_grad_()
    prompts, targets = zip(*texts, strict=True)
    losses = case.ours.loss(batch.replace(x), prompts, targets)
    (slope,) = torch.autograd.grad(losses.sum(), x)
    return losses[place].detach(), slope[place], case.ours.generate(batch, prompts, 6)[place]


def test_a_sample_gives_the_same_in_other_batches(case: Case) -> None:
    loss, slope, answer = asked(case, 0, [1, 2])
    assert slope.abs().max() > 0
    for place, others in ((1, [3]), (3, [4, 5, 6]), (0, [])):
        again, other_slope, other_answer = asked(case, place, others)
        torch.testing.assert_close(again, loss, rtol=1e-4, atol=1e-5)
        assert (other_slope - slope).norm() <= 1e-4 * slope.norm()
        assert other_answer == answer
    another = case.ours.loss(case.ours.pixels([noise(*SHARED[:2], 7)]), [QUESTION], [ANSWER])[0]
    assert (another - loss).abs() > 1e-3  # else the test shows nothing


def test_the_gradient_flows_through_the_router(case: Case) -> None:
    """Held fast, the shares of the experts would leave another gradient of the same loss."""
    loss, slope, _ = asked(case, 0, [])
    held = [
        router.register_forward_hook(
            lambda _module, _args, out: tree_map(lambda each: each.detach() if isinstance(each, Tensor) else each, out)
        )
        for router in routers(case.ours)
    ]
    try:
        same, without, _ = asked(case, 0, [])
    finally:
        for handle in held:
            handle.remove()
    torch.testing.assert_close(same, loss, rtol=1e-5, atol=1e-6)
    assert (without - slope).norm() > 1e-3 * slope.norm()
