"""The loop that every embedded model is trained in: optimisers, learning rate, checkpoint files, the log line."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

Schedule = Callable[[int], float]


def _cosine(total: int, warm: int) -> Schedule:
    """Linear warm-up to 1, then a cosine down to 2 %."""
    return lambda s: min((s + 1) / warm, 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, s / total))))


def _split(modules: dict[str, nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices between hidden states, which Muon trains in fewer steps, and everything else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules.values():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                inner = parameter.ndim == 2 and ("layers." in name or "blocks." in name)
                (matrices if inner else rest).append(parameter)
    return matrices, rest


def save_whole(content: object, path: Path) -> None:
    """The file, whole or not at all."""
    torch.save(content, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


class Run:
    """What both stages share: data order, optimiser, checkpoint files, the log line."""

    def __init__(
        self,
        args: argparse.Namespace,
        stage: str,
        modules: dict[str, nn.Module],
        steps: int,
        lr: float,
        saved_every: int = 200,
    ) -> None:
        self.stage, self.modules, self.steps, self.saved_every = stage, modules, steps, saved_every
        self.path = args.work / f"{args.name}-{stage}.pt"
        matrices, rest = _split(modules)
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
        self.lr, self.schedule, self.step = lr, _cosine(steps, 60), 0
        self.parameters = matrices + rest
        self.ema = 0.0
        self.started = time.monotonic()
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            for name, module in modules.items():
                module.load_state_dict(state[name])
            for i, optimiser in enumerate(self.optimisers):
                optimiser.load_state_dict(state[f"optimiser{i}"])
            self.step = state["step"]

    def update(self, loss: torch.Tensor) -> None:
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.lr * self.schedule(self.step)
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        value = float(loss.detach())
        self.ema = value if self.ema == 0 else 0.97 * self.ema + 0.03 * value
        if self.step % 50 == 0:
            rate = (time.monotonic() - self.started) / 50
            self.started = time.monotonic()
            print(f"{self.stage} {self.step}/{self.steps} loss {self.ema:.4f} {rate:.2f} s/step", flush=True)
        if self.step % self.saved_every == 0 or self.step == self.steps:
            state: dict[str, Any] = {name: m.state_dict() for name, m in self.modules.items()}
            state |= {f"optimiser{i}": o.state_dict() for i, o in enumerate(self.optimisers)}
            state["step"] = self.step
            save_whole(state, self.path)
