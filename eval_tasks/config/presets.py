"""Presets: protocols, attacks and tasks as typed YAML files (`configs/`), shipped inside the wheel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from eval_tasks.config.config_paths import known_as, shipped_configs
from eval_tasks.config.validation import first_problem, read_bytes, unknown_name
from eval_tasks.config.vqa_style import Style
from lvlm_radapt.models.conversations import Conversation, conversation_of
from lvlm_radapt.training.recipe import FinetuneRecipe
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.fields import Named, Strict, Templates

Kind = Literal["protocols", "attacks", "tasks", "comparisons", "finetune"]
Half = Literal["bfloat16", "float16"]
PLACES = ("{question}", "{question_capitalised}")


class TaskConfig(Named):
    """A task: which class of `eval_tasks.tasks` asks and scores it, and what reads its data."""

    type: Literal["caption", "vqa", "yes_no", "letter", "zero_shot", "retrieval"]
    loader: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    """`package.module:function` that reads the data folder; None for the sets of `configs/zero_shot`."""
    known_as: tuple[str, ...] = Field(default=(), strict=False)
    """What other programs call it, for hints."""
    licence: str | None = None
    """Of its images, as far as it is known here; for packs."""


class AttackConfig(Strict):
    """An attack as a preset names it: which class of `eval_tasks.crafting` it is, and the settings of that class."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1)]
    description: str
    type: Literal[
        "none",
        "noise",
        "embedding",
        "nll",
        "targeted",
        "ensemble",
        "classifier",
        "contrastive",
        "corruption",
        "transfer-ensemble",
        "query",
    ]
    known_as: tuple[str, ...] = Field(default=(), strict=False)
    """What other programs and papers call it, for hints."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the class is given, checked when the attack is made."""
        return dict(self.model_extra or {})


class AttackOverride(Strict):
    """What a protocol changes in an attack's APGD settings; None leaves the attack's own value."""

    steps: Annotated[int, Field(ge=1, le=MOST)] | None = None
    restarts: Annotated[int, Field(ge=1, le=MOST)] | None = None
    random_start: bool | None = None
    step_scale: Annotated[float, Field(gt=0)] | None = None


class ConversationSettings(Strict):
    """How a preset wants the model to be asked.

    A built-in `name` alone is that conversation whole, `system` puts another system prompt into it; under a name of
    its own a preset gives the whole `template`, with the places <image>, {text} and, for `system`, {system}.
    """

    name: str
    system: str | None = None
    template: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ConversationSettings:
        self.whole()
        return self

    def whole(self) -> Conversation:
        """The conversation itself; ValueError where these fields make none."""
        return conversation_of(self.name, self.system, self.template)


class Threshold(Strict):
    """When an image counts as broken: a score in the metric's unit ("absolute"), or a share of the score that
    the sample's first reference would get ("canonical_share")."""

    kind: Literal["absolute", "canonical_share"]
    value: Annotated[float, Field(ge=0)]

    def reached(self, score: float, canonical: Callable[[], float]) -> bool:
        """True when `score` is below the threshold, or 0: nothing is left to attack then. canonical: gives the score of
        the sample's first reference."""
        return score < (self.value if self.kind == "absolute" else self.value * canonical()) or score <= 0


class Protocol(Named):
    """Everything that decides what a score means, apart from the model, the task and the attack's budget."""

    geometry: Literal["stock", "pad"] | None
    """None: the checkpoint's own, padding for original LLaVA-1.5 checkpoints and the image processor's elsewhere."""
    conversation: ConversationSettings | None
    """None: the checkpoint's own chat template."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    samples: Annotated[int, Field(ge=1, le=MOST)] | None
    """None: the whole set."""
    prompts: dict[str, str]
    """By task name or, for the others, by kind ("caption", "vqa", "choice"); so are the next three."""
    max_new_tokens: dict[str, Annotated[int, Field(ge=1, le=MOST)]]
    thresholds: dict[str, Threshold]
    vqa_styles: dict[str, Style] = Field(default_factory=dict)
    """How answers are normalised before they are compared."""
    attacks: dict[str, AttackOverride] = Field(default_factory=dict)
    templates: Templates | Literal["task"] = Field(default_factory=lambda: ["a photo of a {}."])
    """What a zero-shot classifier asks for, {} in the place of the class name; the mean of several. "task": those of
    the data set (`configs/zero_shot`), "a photo of a {}." where it has none."""
    class_names: Literal["as told", "lower case"] = "as told"
    """How the names are written there: "lower case" also makes spaces of _, - and /, as TeCoA does."""

    @field_validator("prompts")
    @classmethod
    def _complete(cls, prompts: dict[str, str]) -> dict[str, str]:
        if not prompts:  # a preset for image encoders alone
            return prompts
        for kind in ("caption", "vqa"):
            if not prompts.get(kind):
                raise ValueError(f"a prompt for {kind} is missing")
        if not any(place in prompts["vqa"] for place in PLACES):
            raise ValueError(f"the prompt for vqa must contain {PLACES[0]}")
        return prompts

    def opening(self) -> dict[str, Any]:
        """The keywords of `load_any` that this protocol decides."""
        return {
            "geometry": self.geometry,
            "conversation": None if self.conversation is None else self.conversation.whole(),
        }

    def template(self, task: str, kind: str) -> str:
        """The task's own prompt or its kind's, questions left open. UserError where the protocol has none."""
        text = self.prompts.get(task) or self.prompts.get(kind)
        if text is None:
            raise UserError(f"preset {self.name} has no prompt for task {task}: add it to prompts")
        return text

    def tokens(self, task: str, kind: str) -> int:
        """The longest answer, in new tokens."""
        return self._for_task(self.max_new_tokens, "max_new_tokens", task, kind)

    def threshold(self, task: str, kind: str) -> Threshold | None:
        """When an ensemble leaves an image of this task alone; None where the preset does not say."""
        return self.thresholds.get(task, self.thresholds.get(kind))

    def vqa_style(self, task: str) -> Style:
        """How answers to the task's questions are normalised."""
        return self._for_task(self.vqa_styles, "vqa_styles", task, "vqa")

    def adapt(self, attack: AttackConfig) -> AttackConfig:
        """The attack with this protocol's overrides of its APGD settings; UserError where it has no such settings."""
        override = self.attacks.get(attack.name)
        if override is None:
            return attack
        changed = override.model_dump(exclude_none=True)
        if changed.keys() - attack.settings.keys():
            raise UserError(f"preset {self.name} overrides APGD settings of {attack.name}, which has none")
        return attack.model_copy(update=changed)

    def _for_task(self, values: Mapping[str, ValueT], field: str, task: str, kind: str) -> ValueT:
        if task not in values and kind not in values:
            raise UserError(f"preset {self.name} has no {field} for task {task}: add it to the preset")
        return values[task] if task in values else values[kind]


ValueT = TypeVar("ValueT")
ModelT = TypeVar("ModelT", bound=BaseModel)


def names(kind: Kind) -> list[str]:
    """The shipped presets of one kind, sorted."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in (shipped_configs() / kind).iterdir()
        if entry.name.endswith(".yaml")
    )


def load_protocol(name: str) -> Protocol:
    """A shipped protocol by name, or the user's own when `name` is the path of a .yaml or .yml file. Raises UserError
    for a name that is not known, and for a file that cannot be read, is damaged or takes a shipped name."""
    if name.endswith((".yaml", ".yml")):
        protocol = _parse(read_bytes(Path(name)), name, Protocol)
        if protocol.name in names("protocols"):
            # Tables are grouped by the preset's name.
            raise UserError(f"{name}: field name: {protocol.name!r} is a shipped preset's name, choose another")
        return protocol
    return _shipped("protocols", "preset", name, Protocol)


def load_attack(name: str) -> AttackConfig:
    """A shipped attack by name; UserError with the nearest name for an unknown one."""
    return _shipped("attacks", "attack", name, AttackConfig)


def load_recipe(name: str) -> FinetuneRecipe:
    """A shipped recipe of fine-tuning by name, or the user's own by the path of its YAML file."""
    if name.endswith((".yaml", ".yml")):
        return _parse(read_bytes(Path(name)), name, FinetuneRecipe)
    return _shipped("finetune", "fine-tuning preset", name, FinetuneRecipe)


def load_task_config(name: str) -> TaskConfig:
    """A shipped task by name, or the user's own by the path of its .yaml or .yml file. UserError with the nearest name
    for an unknown one, and for a file that cannot be read, is damaged, names no loader or takes a shipped name."""
    if not name.endswith((".yaml", ".yml")):
        return _shipped("tasks", "task", name, TaskConfig)
    config = _parse(read_bytes(Path(name)), name, TaskConfig)
    if config.name in names("tasks"):
        raise UserError(f"{name}: field name: {config.name!r} is a shipped task's name, choose another")
    if config.loader is None:
        raise UserError(f"{name}: field loader: name what reads its data, as package.module:function")
    return config


def load_preset(kind: Kind, what: str, name: str, model: type[ModelT]) -> ModelT:
    """A shipped preset of that kind, as `model`, or the user's own when `name` is the path of a .yaml or .yml file."""
    if name.endswith((".yaml", ".yml")):
        return _parse(read_bytes(Path(name)), name, model)
    return _shipped(kind, what, name, model)


def _shipped(kind: Kind, what: str, name: str, model: type[ModelT]) -> ModelT:
    known = names(kind)
    if name not in known:
        raise unknown_name(what, name, known, known_as(kind, name))
    return _parse((shipped_configs() / kind / f"{name}.yaml").read_bytes(), f"{kind}/{name}.yaml", model)


def _parse(content: bytes, where: str, model: type[ModelT]) -> ModelT:
    try:
        fields = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{where} is not a preset: it must be a YAML mapping with name, description, ...")
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error)}") from error
