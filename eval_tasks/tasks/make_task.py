"""From a task's name and a preset to the task."""

from __future__ import annotations

from typing import Any

from eval_tasks.config.presets import Protocol, load_protocol, load_task_config
from eval_tasks.metrics.tokenizers import TokenizerName
from eval_tasks.tasks.base import Task
from eval_tasks.tasks.caption import Caption
from eval_tasks.tasks.choice import Choice, YesNo
from eval_tasks.tasks.retrieval import Retrieval
from eval_tasks.tasks.text import TextTask
from eval_tasks.tasks.vqa import Vqa
from eval_tasks.tasks.zero_shot import ZeroShotTask
from lvlm_radapt.utils.plugins import is_plugin, resolve

TYPES: dict[str, type[Task]] = {
    "caption": Caption,
    "vqa": Vqa,
    "yes_no": YesNo,
    "letter": Choice,
    "zero_shot": ZeroShotTask,
    "retrieval": Retrieval,
}
"""The tasks that presets are made of, by their `type`."""


def make_task(name: str, preset: str | Protocol, *, tokenizer: TokenizerName = "ptb") -> Task:
    """A task by name, asked and scored as the preset says. tokenizer: how captions become words.

    name: a shipped task, the path of a YAML file of one's own, or a plug-in.

    A plug-in is a subclass of Task, named `pkg.module:Name` or by its entry point in the group `lvlm_radapt.tasks`. It
    brings its own settings; of the preset it gets the name.

    Raises UserError for a name that is not known, and for a preset that lacks a setting of this task.
    """
    protocol = load_protocol(preset) if isinstance(preset, str) else preset
    own_file = name.endswith((".yaml", ".yml"))
    if not own_file and is_plugin("task", name):
        made: Task = resolve("task", name, {}, Task, {"name": name, "preset": protocol.name})  # type: ignore[type-abstract]
        return made
    config = load_task_config(name)
    of = TYPES[config.type]
    settings: dict[str, Any] = {"name": config.name, "preset": protocol.name}
    settings["loader"] = config.loader if own_file else None
    if issubclass(of, TextTask):
        settings |= {
            "template": protocol.template(config.name, of.kind),
            "max_new_tokens": protocol.tokens(config.name, of.kind),
            "threshold": protocol.threshold(config.name, of.kind),
        }
    if issubclass(of, Caption):
        settings["tokenizer"] = tokenizer
    if issubclass(of, Vqa):
        settings["style"] = protocol.vqa_style(config.name)
    if issubclass(of, ZeroShotTask):
        templates = protocol.templates
        settings["templates"] = templates if isinstance(templates, str) else tuple(templates)
        settings["class_names"] = protocol.class_names
    return of(**settings)
