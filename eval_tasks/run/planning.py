"""From what a user writes to an attack with its budget, every contradiction refused in one line."""

from __future__ import annotations

from typing import Literal

import torch

from attacks.norms import Norm
from eval_tasks.config.presets import AttackConfig, Half, TaskConfig
from eval_tasks.crafting.craft import AttackPlan, Threat
from lvlm_radapt.utils.budget import parse_eps
from lvlm_radapt.utils.errors import UserError

HalfChoice = Literal["auto", "none", "bfloat16", "float16"]


def plan_attack(
    config: AttackConfig,
    *,
    eps: str,
    threat: Threat | None = None,
    norm: Norm | None = None,
    steps: int | None = None,
    target: str | None = None,
    half: HalfChoice = "auto",
    early_exit: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> AttackPlan | None:
    """The plan of `config`, None for the attack `none`. What is left out is the attack's own; an adaptive threat.

    half: of an ensemble's first stages; `auto` is the attack's own on a GPU, where it pays, and only there.
    early_exit: as in AttackPlan.
    device, dtype: of the model the attack is crafted on. Raises UserError for options that the attack does not know
    and for values that mean nothing.
    """
    if config.loss == "none":
        given = {"--threat": threat, "--norm": norm, "--target": target}
        named = [flag for flag, value in given.items() if value is not None] + ["--early-exit"] * early_exit
        if named:
            raise UserError(f"{named[0]} needs an attack: choose one with --attack")
        return None
    norm = norm or config.norm
    assert norm is not None  # presets: every attack but none has one
    budget = parse_eps(eps, norm)
    if steps is not None and steps < 1:
        raise UserError(f"--steps must be at least 1, got {steps}")
    if config.loss == "noise" and threat is not None:
        raise UserError(f"--attack {config.name} knows no model, so it has no threat model: leave --threat out")
    if steps is not None and config.steps is None:
        raise UserError(
            f"--steps is not for --attack {config.name}: it has none, or their number is part of what it is"
        )
    if config.loss != "targeted" and target is not None:
        raise UserError(f"--target is for --attack targeted: {config.name} has no target text")
    if config.loss == "targeted":
        target = " ".join((target or "").split())
        if not target:
            raise UserError("--attack targeted needs a text the model shall say: give it as --target TEXT")
    if config.ensemble is None and half != "auto":
        raise UserError(f"--half is for the first stages of --attack ensemble: {config.name} has none, see --dtype")
    if early_exit and config.loss not in ("nll", "ensemble"):
        raise UserError(
            f"--early-exit is for --attack e2e and ensemble: {config.name} "
            + ("leaves early in any case" if config.loss in ("targeted", "classifier") else "asks no answer on its way")
        )
    return AttackPlan(
        config=config.model_copy(update={"norm": norm}),
        threat=None if config.loss == "noise" else (threat or "adaptive"),
        eps=budget,
        steps=steps or config.steps,
        target=target,
        half=_half(config, half, device, dtype),
        early_exit=early_exit,
    )


def check_early_exit(plan: AttackPlan, task: TaskConfig) -> None:
    """UserError where no score is the lowest there can be."""
    if plan.early_exit and task.kind == "caption":
        raise UserError(f"--early-exit is for questions: a caption of {task.name} can always score less")


def _half(config: AttackConfig, half: HalfChoice, device: str, dtype: torch.dtype) -> Half | None:
    if config.ensemble is None or half == "none":
        return None
    if half != "auto":
        return half
    return config.ensemble.half if device.startswith("cuda") and dtype == torch.float32 else None
