"""One process that trains, or several that train one model, each on its share of every batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lvlm_radapt.utils.errors import Unfinished
from lvlm_radapt.utils.signals import check_stopped


class SingleProcess:
    """This process is the only one."""

    rank = 0
    size = 1

    def mean(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> float:
        """The loss over the whole batch; gradients become the whole batch's, in place."""
        return float(loss.detach())

    def leave(self) -> None:
        """To be called when training is over."""


class DataParallel(SingleProcess):
    """The processes that `accelerate launch` or torchrun started; gradients are averaged by accelerate."""

    def __init__(self, device: torch.device) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=device.type == "cpu")
        self.rank = self._accelerator.process_index
        self.size = self._accelerator.num_processes

    def mean(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> float:
        reached = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([loss.detach().float().reshape(1), *(gradient.flatten() for gradient in reached)])
        try:
            flat = self._accelerator.reduce(flat, reduction="mean")
        except RuntimeError as error:
            check_stopped()  # who is stopped may first notice that the others are
            raise Unfinished(
                f"process {self.rank} has lost the others: what was saved is safe, go on with --resume"
            ) from error
        for gradient, mean in zip(reached, flat[1:].split([one.numel() for one in reached]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return float(flat[0])

    def leave(self) -> None:
        self._accelerator.end_training()
