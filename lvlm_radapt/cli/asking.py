"""What the commands that attack a model, or defend it, make of their flags, the same for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_radapt.cli.options import Norm
from lvlm_radapt.cli.placing import default_preset, device_named
from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from eval_tasks.config.presets import Protocol
    from eval_tasks.crafting.attack import Attack
    from eval_tasks.metrics.tokenizers import TokenizerName
    from eval_tasks.run.options import Evaluation
    from lvlm_radapt.defences.base import Defence


def protocol_of(preset: str | None, model: str) -> Protocol:
    """The preset that was asked for, or the one that fits the model."""
    from eval_tasks.config.presets import load_protocol

    return load_protocol(preset or default_preset(model))


def attack_of(
    attack: str, protocol: Protocol, place: dict[str, Any], *, norm: Norm | None = None, **flags: Any
) -> Attack | None:
    """The attack as the protocol wants it, None for none. place: of `place_of`; flags: keywords of `make_attack`."""
    from eval_tasks.crafting.make_attack import make_attack
    from lvlm_radapt.experiments.compare.preset import named_attack

    return make_attack(
        named_attack(attack, protocol),
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


def defence_of(name: str | None, settings: Sequence[str] | None, draws: int | None = None) -> Defence | None:
    """The defence that these flags name, None for none. UserError for flags that do not fit together, and as for
    `find_defence`: all before a model is loaded."""
    from lvlm_radapt.defences.registry import find_defence
    from lvlm_radapt.utils.plugins import read_settings

    if name is None:
        if settings:
            raise UserError("--defence-set is for --defence: name the defence, or leave the settings out")
        if draws is not None:
            raise UserError("--eot-draws is for a random --defence: name one, or leave it out")
        return None
    defence = find_defence(name, read_settings(settings or ()))
    if draws is not None and not defence.random:
        raise UserError(f"--eot-draws is for a random defence: {defence.name} draws nothing, leave it out")
    return defence
