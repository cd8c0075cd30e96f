"""What a comparison compares, as a typed YAML file (`configs/comparisons/`): rows, columns, budgets, image sets."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from eval_tasks.config.presets import load_preset
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.embedded.scenes import Split
from lvlm_radapt.training.scopes import WHOLE
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.budget import parse_eps
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import first_problem
from lvlm_radapt.utils.names import is_one_part

Name = Annotated[str, Field(min_length=1, max_length=60)]


def _folder_name(name: str) -> str:
    if not is_one_part(name) or name.startswith("."):
        raise ValueError("a set's name is its folder's: it must not be a path or begin with a dot")
    return name


SetName = Annotated[Name, AfterValidator(_folder_name)]
"""Of a set of scenes, and of the folder that it is drawn into."""


def slug(text: str) -> str:
    """A folder's name for a row, column, budget or model: small letters, digits, + and single dashes."""
    return re.sub(r"[^a-z0-9+]+", "-", text.lower()).strip("-") or "x"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class SceneSet(_Part):
    """Procedural scenes, drawn into the comparison's own folder; the split keeps them apart by content."""

    split: Split
    seed: Annotated[int, Field(ge=0)] = 0
    mixed: bool = False


class Column(_Part):
    """A task on one base model. `set`: of the scenes it is asked about; classification sees their class folders.
    `early_exit`: of its adaptive attacks, as for `eval`."""

    title: Name
    task: str
    model: str
    set: str
    attack: str
    early_exit: bool = False


class Learn(_Part):
    """How a row's anchor is learned, once: on `model` (None: the column's own) and images of `set`, of its `classes`
    alone or of its scenes. What is None is the method's own default."""

    set: str
    classes: bool = False
    images: Annotated[int, Field(ge=8, le=MOST)] = 2000
    model: str | None = None
    eps: str | None = None
    steps: Annotated[int, Field(ge=1, le=MOST)] | None = None
    batch: Annotated[int, Field(ge=1, le=MOST)] | None = None


class Finetune(_Part):
    """How a row's weights are fine-tuned, once for each base model, on images of `set`. `scope`, `rank`: as for
    `finetune`; `recipe`: in configs/finetune; `eps`, `steps`, `batch`, `lr`: in place of its own."""

    method: Literal["fare"] = "fare"
    scope: Annotated[str, Field(min_length=1)] = WHOLE
    rank: Annotated[int, Field(ge=1, le=MOST)] | None = None
    recipe: str
    seed: Annotated[int, Field(ge=0)] = 0
    set: str
    images: Annotated[int, Field(ge=8, le=MOST)] = 2000
    eps: str | None = None
    steps: Annotated[int, Field(ge=1, le=MOST)] | None = None
    batch: Annotated[int, Field(ge=1, le=MOST)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None


class RowSpec(_Part):
    """How a row's model is made of a column's base model: another `tower` in its place (of an encoder: that encoder),
    or fine-tuned weights, or neither; then the defence `radapt`, its anchor guided or learned where it says so."""

    name: Name
    radapt: dict[str, Any] | None = None
    guide: str | None = None
    learn: Learn | None = None
    tower: str | None = None
    finetune: Finetune | None = None

    @field_validator("radapt")
    @classmethod
    def _valid(cls, radapt: dict[str, Any] | None) -> dict[str, Any] | None:
        if radapt is not None:
            RAdaptConfig.from_dict(radapt)
        return radapt

    @model_validator(mode="after")
    def _consistent(self) -> RowSpec:
        source = (self.radapt or {}).get("anchor", "white")
        for field, kind in (("guide", "guided"), ("learn", "learned")):
            if (getattr(self, field) is not None) != (source == kind):
                raise ValueError(f"{field} and radapt.anchor {kind} go together, in row {self.name}")
        if self.tower is not None and self.finetune is not None:
            raise ValueError(f"row {self.name} has a tower and fine-tuned weights: choose one")
        return self

    @property
    def plain(self) -> bool:
        """Whether it is the undefended model itself."""
        return self.radapt is None and self.tower is None and self.finetune is None


class Comparison(_Part):
    """The first row is the undefended model; the others are measured against it on the same samples. `eps`: one or more
    budgets as in 4/255; `samples`, `steps`, `protocol`: for every row and column alike."""

    name: Name
    description: str
    protocol: str
    samples: Annotated[int, Field(ge=2, le=MOST)]
    steps: Annotated[int, Field(ge=1, le=MOST)]
    eps: Annotated[list[str], Field(min_length=1)]
    sets: Annotated[dict[SetName, SceneSet], Field(min_length=1)]
    columns: Annotated[list[Column], Field(min_length=1)]
    rows: Annotated[list[RowSpec], Field(min_length=2)]

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
                tested = [c.title for c in self.columns if self.sets.get(c.set) == self.sets.get(source.set)]
                if source.set in self.sets and (tested or self.sets[source.set].split == "test"):
                    raise ValueError(f"row {row.name} is trained on the set {source.set}, which scores are taken on")
        unknown = next((f"{by}: set {one}" for by, one in used.items() if one not in self.sets), None)
        if unknown is not None:
            raise ValueError(f"{unknown} is not among the sets {', '.join(self.sets)}")
        return self

    def changed(self, **values: Any) -> Comparison:
        """With those values that are not None. UserError for one that no comparison can have."""
        chosen = {key: value for key, value in values.items() if value is not None}
        try:
            return Comparison.model_validate(self.model_dump() | chosen)
        except ValidationError as error:
            raise UserError(f"comparison {self.name}: {first_problem(error)}") from error


def load_comparison(name: str) -> Comparison:
    """A shipped comparison by name, or the user's own by the path of its YAML file. UserError for what is wrong."""
    return load_preset("comparisons", "comparison", name, Comparison)
