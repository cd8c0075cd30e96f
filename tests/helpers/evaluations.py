"""Evaluations in one call: a task, an attack and how much of it."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from eval_tasks.api import EvalOptions, Evaluation, evaluate, make_attack, make_task
from eval_tasks.config.presets import load_attack, load_protocol
from eval_tasks.run.records import Run
from lvlm_radapt.models.base import PixelModel

_OPTIONS = {field.name for field in fields(EvalOptions)}


def evaluation(
    task: str,
    data: Path,
    attack: str | None = None,
    *,
    preset: str = "scenes",
    steps: int | None = None,
    tokenizer: Any = "ptb",
    **more: Any,
) -> Evaluation:
    """steps: left out for attacks that have none. more: fields of EvalOptions and keywords of `make_attack`."""
    options = {key: more.pop(key) for key in _OPTIONS & more.keys()}
    protocol, chosen = load_protocol(preset), None
    if attack is not None:
        config = protocol.adapt(load_attack(attack))
        chosen = make_attack(config, steps=steps if "steps" in config.settings else None, **more)
    return Evaluation(
        make_task(task, protocol, tokenizer=tokenizer), chosen, EvalOptions(data=data, **options), protocol
    )


def score(model: PixelModel, asked: Evaluation, out: Path, **more: Any) -> Run:
    """The run of `asked` on a model that is open."""
    return evaluate(model, asked.task, asked.attack, out, asked.options, **more)


def with_options(asked: Evaluation, **options: Any) -> Evaluation:
    """The same with other options."""
    return replace(asked, options=replace(asked.options, **options))
