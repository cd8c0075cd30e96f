"""The shipped tasks' names and loaders, read without torch."""

from __future__ import annotations

import yaml

from eval_tasks.config.config_paths import known_as, shipped_configs
from eval_tasks.config.validation import unknown_name


def task_names() -> list[str]:
    """The shipped tasks, sorted."""
    folder = shipped_configs() / "tasks"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def task_loader(name: str) -> str:
    """A shipped task's loader as `package.module:function`. UserError with the nearest name for an unknown task."""
    if name not in task_names():
        raise unknown_name("task", name, task_names(), known_as("tasks", name))
    return str(yaml.safe_load((shipped_configs() / "tasks" / f"{name}.yaml").read_bytes())["loader"])
