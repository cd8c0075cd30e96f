"""From what a user writes to an attack with its budget, every contradiction refused in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError

from attacks.norms import Norm
from eval_tasks.config.presets import AttackConfig, load_attack
from eval_tasks.config.validation import first_problem
from eval_tasks.crafting.attack import Attack, Threat
from eval_tasks.crafting.classifier import Classifier
from eval_tasks.crafting.contrastive import Contrastive
from eval_tasks.crafting.corruption import Corruption
from eval_tasks.crafting.embedding import Embedding
from eval_tasks.crafting.end_to_end import EndToEnd
from eval_tasks.crafting.ensemble import Ensemble
from eval_tasks.crafting.noise import Noise
from eval_tasks.crafting.query import Query
from eval_tasks.crafting.targeted import Targeted
from eval_tasks.crafting.transfer_ensemble import TransferEnsemble
from lvlm_radapt.utils.budget import parse_eps
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.plugins import is_plugin, resolve

HalfChoice = Literal["auto", "none", "bfloat16", "float16"]
TYPES: dict[str, type[Attack]] = {
    one.kind: one
    for one in (
        Noise,
        Embedding,
        EndToEnd,
        Targeted,
        Ensemble,
        Classifier,
        Contrastive,
        Corruption,
        Query,
        TransferEnsemble,
    )
}
"""The attacks that presets are made of, by their `type`."""
EPS = "4/255"
_FLAGS = {
    "steps": "--steps is not for --attack {}: it has none, or their number is part of what it is",
    "target": "--target is for --attack targeted: {} has no target text",
    "half": "--half is for the first stages of --attack ensemble: {} has none, see --dtype",
    "early_exit": "--early-exit is for --attack e2e and ensemble: {} ends by a rule of its own",
    "threat": "--attack {} knows no model, so it has no threat model: leave --threat out",
}


def make_attack(
    attack: str | AttackConfig,
    *,
    eps: str | float | None = None,
    threat: Threat | None = None,
    norm: Norm | None = None,
    steps: int | None = None,
    target: str | None = None,
    half: HalfChoice = "auto",
    early_exit: bool = False,
    settings: Mapping[str, Any] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Attack | None:
    """The attack of a preset (by name, or as a protocol adapts it), or a plug-in; None for `none`. What is left out is
    the attack's own, and the threat is adaptive.

    A plug-in is a subclass of Attack, named `pkg.module:Name` or by its entry point in the group `lvlm_radapt.attacks`.

    eps: `4/255` or a number in [0, 1] pixel units; a length under L2. None: the attack's own, 4/255 for most. settings:
    further ones of the attack's class, in place of the preset's. half: of an ensemble's first stages; `auto` is
    the attack's own on a GPU, where it pays, and only there. early_exit: a sample stops once its answer scores 0.
    device, dtype: of the model that the attack is crafted on.

    Raises UserError for options that the attack does not know and for values that mean nothing.
    """
    own = dict(settings or {})
    flags: dict[str, Any] = {"threat": threat, "steps": steps, "target": target, "early_exit": early_exit or None}
    flags["half"] = None if half == "auto" else half
    if isinstance(attack, str) and is_plugin("attack", attack):
        return _plugin(attack, eps, norm, flags, own)
    config = load_attack(attack) if isinstance(attack, str) else attack
    if config.type not in TYPES:
        given: dict[str, Any] = {"--threat": threat, "--norm": norm, "--target": target}
        given |= {"--early-exit": early_exit or None, "--attack-set": own or None}
        named = [flag for flag, value in given.items() if value is not None]
        if named:
            raise UserError(f"{named[0]} needs an attack: choose one with --attack")
        return None
    if steps is not None and steps < 1:
        raise UserError(f"--steps must be at least 1, got {steps}")
    of, preset = TYPES[config.type], config.settings
    norm = norm or preset.get("norm", "Linf")
    for flag, value in flags.items():
        if value is not None and not _takes(of, preset, flag):
            raise UserError(_FLAGS[flag].format(config.name))
    if half == "none" or (half == "auto" and not (device.startswith("cuda") and dtype == torch.float32)):
        preset.pop("half", None)
        flags["half"] = None
    chosen = own | {name: value for name, value in flags.items() if value is not None}
    budget = _budget(preset.get("eps", EPS) if eps is None else eps, norm)
    return built(of, preset | chosen | {"name": config.name, "eps": budget, "norm": norm}, f"attack {config.name}")


def _budget(eps: str | float, norm: Norm) -> float:
    return eps if isinstance(eps, float) else parse_eps(eps, norm)


def _plugin(
    name: str, eps: str | float | None, norm: Norm | None, flags: Mapping[str, Any], own: Mapping[str, Any]
) -> Attack:
    """An attack of somebody else's, given the flags and settings that the user chose."""
    chosen = {**own, **{flag: value for flag, value in flags.items() if value is not None}}
    budget = _budget(EPS if eps is None else eps, norm or "Linf")
    settings = chosen | {"name": name, "eps": budget} | ({} if norm is None else {"norm": norm})
    made: Attack = resolve("attack", name, {}, Attack, settings)  # type: ignore[type-abstract]
    return made


def built(of: type[Attack], values: Mapping[str, Any], where: str) -> Attack:
    """An attack of that class; UserError for settings that it does not know or that are of another type."""
    try:
        return TypeAdapter(of).validate_json(json.dumps(values))  # strict, but an object may be a mapping
    except ValidationError as error:
        cause = error.errors()[0].get("ctx", {}).get("error")
        if isinstance(cause, UserError):  # it speaks of the user's own flags
            raise cause from None
        raise UserError(f"{where}: {first_problem(error)}") from error


def _takes(of: type[Attack], settings: Mapping[str, Any], flag: str) -> bool:
    """Whether an attack of that class with these settings lets a user choose this one."""
    if flag == "threat":
        return of.knows_model
    if flag == "steps" and issubclass(of, Classifier):
        return flag in settings  # a line without gradient attacks has none
    return flag in {field.name for field in fields(of)}
