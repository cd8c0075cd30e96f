"""What the commands that score a model under attack make of their flags, the same for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_radapt.cli.options import NormName
from lvlm_radapt.cli.placing import default_preset, device_named

if TYPE_CHECKING:
    from eval_tasks.config.presets import Protocol
    from eval_tasks.crafting.craft import AttackPlan
    from eval_tasks.run.settings import EvalSettings


def protocol_of(preset: str | None, model: str) -> Protocol:
    """The preset that was asked for, or the one that fits the model."""
    from eval_tasks.config.presets import load_protocol

    return load_protocol(preset or default_preset(model))


def plan_of(
    attack: str, protocol: Protocol, place: dict[str, Any], *, norm: NormName | None = None, **flags: Any
) -> AttackPlan | None:
    """The attack as the protocol wants it, None for none. place: of `place_of`; flags: keywords of `plan_attack`."""
    from eval_tasks.config.presets import load_attack
    from eval_tasks.run.planning import plan_attack

    return plan_attack(
        protocol.adapt(load_attack(attack)),
        norm=norm.value if norm else None,
        device=device_named("auto") if place["device_map"] else place["device"],
        dtype=place["dtype"],
        **flags,
    )


def settings_of(
    task: str,
    data: Path,
    protocol: Protocol,
    plan: AttackPlan | None,
    *,
    samples: int | None,
    seed: int | None,
    **more: Any,
) -> EvalSettings:
    """The evaluation; samples and seed are the protocol's where they are None. more: further fields of its settings."""
    from eval_tasks.config.presets import load_task_config
    from eval_tasks.run.settings import EvalSettings

    return EvalSettings(
        task=load_task_config(task).name,
        data=data,
        protocol=protocol,
        attack=plan,
        samples=protocol.samples if samples is None else samples,
        seed=protocol.seed if seed is None else seed,
        **more,
    )
