"""When, in the course of an attack, a model is asked whether it is beaten already."""

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.apgd import SuccessFn


def early_and_rarer(done: int) -> bool:
    """After 1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 63, 94 ... steps, about half as many again each time: what falls mostly
    falls soon, and what holds is asked in vain a dozen times in 100 steps."""
    point = 1
    while point < done:
        point += max(1, point // 2)
    return point == done


def asked_when(due: Callable[[int], bool], ask: SuccessFn, *, count: int, steps: int) -> SuccessFn:
    """`ask` as APGD's `success`, which is called after every step, passed on only where it is due.

    due: `due(done)`, whether to ask after so many steps of a restart; its start point is 0. count: samples of the
    attack. steps: of a restart. For one attack only: it counts the steps of each sample.
    """
    seen = [0] * count

    def success(x_adv: Tensor, index: list[int]) -> Tensor:
        places = []
        for place, i in enumerate(index):
            if due(seen[i] % (steps + 1)):
                places.append(place)
            seen[i] += 1
        said = torch.zeros(len(index), dtype=torch.bool, device=x_adv.device)
        if places:
            said[places] = ask(x_adv[places], [index[place] for place in places]).to(said.device)
        return said

    return success
