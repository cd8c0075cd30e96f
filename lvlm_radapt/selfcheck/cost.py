"""What one attack step costs: its memory, its time, its arithmetic."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from lvlm_radapt.selfcheck.result import Check, checked
from lvlm_radapt.selfcheck.trial import Trial

NAMES = ("one attack step",)


def check_cost(trial: Trial) -> Iterator[Check]:
    """A loss and its gradient on one image, the second time: the first one fills caches."""
    loss, cuda = trial.loss(trial.batch), trial.model.device.type == "cuda"

    def step() -> None:
        x = trial.batch.x.detach().clone().requires_grad_()
        loss(x, [0]).sum().backward()
        if cuda:
            torch.cuda.synchronize(trial.model.device)

    with FlopCounterMode(display=False) as counter:
        step()
    reset_peak(trial.model.device)
    begun = time.monotonic()
    step()
    seconds, flop = time.monotonic() - begun, counter.get_total_flops() / 1e12
    held = peak_memory(trial.model.device)
    memory = "memory not told here" if held is None else f"{held / 1e9:.2f} GB {'on the GPU' if cuda else 'in all'}"
    size = trial.model.size_words(trial.batch)
    said = f"{seconds:.3g} s, {flop:.3g} TFLOP, {memory}, for one image ({size})"
    yield checked(NAMES[0], True, said, seconds=seconds, tflop=flop, memory_bytes=held)


def reset_peak(device: torch.device) -> None:
    """Begin to watch a GPU's memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """The most bytes held: on a GPU since `reset_peak`, elsewhere by this process; None where no system tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
