"""What the commands that score a model under attack make of their flags, the same for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_radapt.cli.options import Norm
from lvlm_radapt.cli.placing import default_preset, device_named

if TYPE_CHECKING:
    from eval_tasks.config.presets import Protocol
    from eval_tasks.crafting.attack import Attack
    from eval_tasks.metrics.tokenizers import TokenizerName
    from eval_tasks.run.options import Evaluation


def protocol_of(preset: str | None, model: str) -> Protocol:
    """The preset that was asked for, or the one that fits the model."""
    from eval_tasks.config.presets import load_protocol

    return load_protocol(preset or default_preset(model))


def attack_of(
    attack: str, protocol: Protocol, place: dict[str, Any], *, norm: Norm | None = None, **flags: Any
) -> Attack | None:
    """The attack as the protocol wants it, None for none. place: of `place_of`; flags: keywords of `make_attack`."""
    from eval_tasks.config.presets import load_attack
    from eval_tasks.crafting.make_attack import make_attack
    from lvlm_radapt.utils.plugins import is_plugin

    return make_attack(
        attack if is_plugin("attack", attack) else protocol.adapt(load_attack(attack)),
        norm=norm,
        device=device_named("auto") if place["device_map"] else place["device"],
        dtype=place["dtype"],
        **flags,
    )


def evaluation_of(
    task: str,
    data: Path,
    protocol: Protocol,
    attack: Attack | None,
    *,
    samples: int | None,
    seed: int | None,
    tokenizer: TokenizerName = "ptb",
    **more: Any,
) -> Evaluation:
    """The evaluation; samples and seed are the protocol's where they are None. more: further fields of its options."""
    from eval_tasks.run.options import EvalOptions, Evaluation
    from eval_tasks.tasks.make_task import make_task

    options = EvalOptions(
        data=data,
        samples=protocol.samples if samples is None else samples,
        seed=protocol.seed if seed is None else seed,
        **more,
    )
    return Evaluation(make_task(task, protocol, tokenizer=tokenizer), attack, options, protocol)
