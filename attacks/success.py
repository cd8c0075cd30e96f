"""At which steps an attack asks the model whether it has succeeded already."""

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.apgd import SuccessFn


def geometric_schedule(done: int) -> bool:
    """True after 1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 63, 94 ... steps, about half as many again each time.

    Most samples that fall do so early. One that holds is asked about a dozen times in 100 steps.
    """
    point = 1
    while point < done:
        point += max(1, point // 2)
    return point == done


def check_on(due: Callable[[int], bool], ask: SuccessFn, *, count: int, steps: int) -> SuccessFn:
    """APGD's `success`, which calls `ask` only at the steps where `due` is true.

    due: `due(done)` says whether to ask after so many steps of a restart; its start point is 0. count: samples of the
    attack. steps: of a restart. Use the result for one attack only: it counts the steps of each sample.
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
