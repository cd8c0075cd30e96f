"""What a comparison compares, as a typed YAML file (`configs/comparisons/`): rows, columns, budgets, image sets."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from eval_tasks.config.presets import AttackConfig, Protocol, load_attack, load_preset
from lvlm_radapt.embedded.scenes import Split
from lvlm_radapt.experiments.rows import Count, Name, RowSpec, slug
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.budget import parse_eps
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.fields import Strict
from lvlm_radapt.utils.json_files import first_problem
from lvlm_radapt.utils.names import is_one_part
from lvlm_radapt.utils.plugins import is_plugin


def _folder_name(name: str) -> str:
    if not is_one_part(name) or name.startswith("."):
        raise ValueError("a set's name is its folder's: it must not be a path or begin with a dot")
    return name


SetName = Annotated[Name, AfterValidator(_folder_name)]
"""Of a set of scenes, and of the folder that it is drawn into."""


class SceneSet(Strict):
    """Procedural scenes, drawn into the comparison's own folder; the split keeps them apart by content."""

    split: Split
    seed: Annotated[int, Field(ge=0)] = 0
    mixed: bool = False


class OwnSet(Strict):
    """Images of the user's own: the data folder of a column's task, or a folder of images that a row is trained on."""

    folder: Annotated[str, Field(min_length=1)]


class Column(Strict):
    """A task on one base model. `set`: what it is asked about; of scenes, classification sees the class folders.
    `early_exit`: of its adaptive attacks, as for `eval`."""

    title: Name
    task: str
    model: str
    set: str
    attack: str
    early_exit: bool = False


class Comparison(Strict):
    """The first row is the undefended model; the others are measured against it on the same samples. `eps`: one or more
    budgets as in 4/255; `samples`, `steps`, `protocol`: for every row and column alike. `cross`: every row is shown the
    adaptive images of all others, too, and has a column with the worst of all its attacks, sample by sample."""

    name: Name
    description: str
    protocol: str
    samples: Annotated[int, Field(ge=2, le=MOST)]
    steps: Count
    eps: Annotated[list[str], Field(min_length=1)]
    sets: Annotated[dict[SetName, SceneSet | OwnSet], Field(min_length=1)]
    columns: Annotated[list[Column], Field(min_length=1)]
    rows: Annotated[list[RowSpec], Field(min_length=2)]
    cross: bool = False

    @field_validator("eps")
    @classmethod
    def _budgets(cls, eps: list[str]) -> list[str]:
        for one in eps:
            parse_eps(one)
        return eps

    @model_validator(mode="after")
    def _consistent(self) -> Comparison:
        if not self.rows[0].plain:
            raise ValueError(f"the first row must be the undefended model, {self.rows[0].name} is defended")
        early = next((column.title for column in self.columns if self.cross and column.early_exit), None)
        if early is not None:
            raise ValueError(f"cross needs whole attacks: take early_exit from column {early}")
        names, titles = [row.name for row in self.rows], [column.title for column in self.columns]
        for what, given in (("rows", names), ("columns", titles), ("budgets", self.eps)):
            folders = [slug(one) for one in given]
            twice = next((one for one in given if folders.count(slug(one)) > 1), None)
            if twice is not None:
                raise ValueError(f"two {what} are called {twice}, or nearly so")
        used = {column.title: column.set for column in self.columns}
        for row in self.rows:
            for source in (row.learn, row.finetune):
                if source is None:
                    continue
                used[row.name] = source.set
                trained = self.sets.get(source.set)
                tested = any(self.sets.get(column.set) == trained for column in self.columns)
                if trained is not None and (tested or (isinstance(trained, SceneSet) and trained.split == "test")):
                    raise ValueError(f"row {row.name} is trained on the set {source.set}, which scores are taken on")
        unknown = next((f"{by}: set {one}" for by, one in used.items() if one not in self.sets), None)
        if unknown is not None:
            raise ValueError(f"{unknown} is not among the sets {', '.join(self.sets)}")
        return self

    def sizes(self, name: str) -> tuple[int, int]:
        """How many scenes of a set are needed, and how many images of single things."""
        scenes, singles = 2, 0
        needed = [(column.task == "imagefolder", self.samples) for column in self.columns if column.set == name]
        for row in self.rows:
            needed += [(row.learn.classes, row.learn.images)] if row.learn and row.learn.set == name else []
            needed += [(False, row.finetune.images)] if row.finetune and row.finetune.set == name else []
        for single, count in needed:
            scenes, singles = (scenes, max(singles, count)) if single else (max(scenes, count), singles)
        return scenes, singles

    def changed(self, **values: Any) -> Comparison:
        """With those values that are not None. UserError for one that no comparison can have."""
        return Comparison.checked(
            **self.model_dump() | {key: value for key, value in values.items() if value is not None}
        )

    @classmethod
    def checked(cls, **fields: Any) -> Comparison:
        """A comparison of these fields. UserError for one that none can have."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise UserError(f"comparison {fields['name']}: {first_problem(error)}") from error


def named_attack(name: str, protocol: Protocol) -> str | AttackConfig:
    """What `make_attack` takes: a plug-in's name, or a preset as the protocol adapts it."""
    return name if is_plugin("attack", name) else protocol.adapt(load_attack(name))


def load_comparison(name: str) -> Comparison:
    """A shipped comparison by name, or the user's own by the path of its YAML file. UserError for what is wrong."""
    return load_preset("comparisons", "comparison", name, Comparison)
