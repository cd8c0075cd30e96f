"""What is known of the field's zero-shot data sets: their classes' names and CLIP's own templates."""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

from eval_tasks.config.config_paths import shipped_configs


class SetConfig(BaseModel):
    """A file of `configs/zero_shot`.

    classes: how many the field counts. names: by the key that stands on disk (a folder, a WordNet id, a number), in the
    order of the labels; empty where the key itself is the name. templates: those CLIP's authors wrote for the set (as
    CLIP_benchmark holds them), {} in the place of the name.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str
    classes: Annotated[int, Field(ge=2)]
    templates: list[str] = []
    names: dict[str, str] = {}

    def named(self, key: str) -> str | None:
        """The name of the class of that key, however its words are joined; None for an unknown one."""
        return self._by_letters.get(_letters(key))

    @cached_property
    def _by_letters(self) -> dict[str, str]:
        return {_letters(key): name for key, name in self.names.items()}


def zero_shot_sets() -> list[str]:
    """The names of all sets, sorted."""
    folder = shipped_configs() / "zero_shot"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@lru_cache(maxsize=32)
def set_config(name: str) -> SetConfig:
    """The set of that name."""
    content = (shipped_configs() / "zero_shot" / f"{name}.yaml").read_bytes()
    return SetConfig.model_validate(yaml.safe_load(content))


def _letters(key: str) -> str:
    return re.sub(r"[\W_]+", "", key).casefold()
