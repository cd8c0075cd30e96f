"""How the model of a row is made from an undefended one, as typed parts of a comparison's YAML file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.registry import find_defence
from lvlm_radapt.training.scopes import WHOLE
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.fields import Strict

LONGEST_NAME = 60
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Count = Annotated[int, Field(ge=1, le=MOST)]


def slug(text: str) -> str:
    """A folder's name for a row, column, budget or model: small letters, digits, + and single dashes."""
    return re.sub(r"[^a-z0-9+]+", "-", text.lower()).strip("-") or "x"


class Learn(Strict):
    """How a row's anchor is learned, once: on `model` (None: the column's own) and images of `set`, of its `classes`
    alone or of its scenes. What is None is the method's own default."""

    set: str
    classes: bool = False
    images: Annotated[int, Field(ge=8, le=MOST)] = 2000
    model: str | None = None
    eps: str | None = None
    steps: Count | None = None
    batch: Count | None = None


class Finetune(Strict):
    """How a row's weights are fine-tuned, once for each base model, on images of `set`. `scope`, `rank`: as for
    `finetune`; `recipe`: in configs/finetune; `eps`, `steps`, `batch`, `lr`: in place of its own."""

    method: Literal["fare"] = "fare"
    scope: Annotated[str, Field(min_length=1)] = WHOLE
    rank: Count | None = None
    recipe: str
    seed: Annotated[int, Field(ge=0)] = 0
    set: str
    images: Annotated[int, Field(ge=8, le=MOST)] = 2000
    eps: str | None = None
    steps: Count | None = None
    batch: Count | None = None
    lr: Annotated[float, Field(gt=0)] | None = None


class RowSpec(Strict):
    """How a row's model is made of a column's base model: another `tower` in its place (of an encoder: that encoder),
    fine-tuned weights, a `model` of its own, or nothing of these; then the defence `radapt`, its anchor guided or
    learned where it says so, or any `defence` that `find_defence` knows, with its default settings. `model`: a folder
    or Hugging Face id of the base model's family, with any R-Adapt in it.
    """

    name: Name
    radapt: dict[str, Any] | None = None
    guide: str | None = None
    learn: Learn | None = None
    tower: str | None = None
    finetune: Finetune | None = None
    model: str | None = None
    defence: str | None = None

    @field_validator("radapt")
    @classmethod
    def _valid(cls, radapt: dict[str, Any] | None) -> dict[str, Any] | None:
        if radapt is not None:
            RAdaptConfig.from_dict(radapt)
        return radapt

    @field_validator("defence")
    @classmethod
    def _known(cls, defence: str | None) -> str | None:
        if defence is not None:
            find_defence(defence)
        return defence

    @model_validator(mode="after")
    def _consistent(self) -> RowSpec:
        source = (self.radapt or {}).get("anchor", "white")
        for field, kind in (("guide", "guided"), ("learn", "learned")):
            if (getattr(self, field) is not None) != (source == kind):
                raise ValueError(f"{field} and radapt.anchor {kind} go together, in row {self.name}")
        if sum(one is not None for one in (self.tower, self.finetune, self.model)) > 1:
            raise ValueError(f"row {self.name} has two of tower, finetune and model: choose one")
        if self.model is not None and self.radapt is not None:
            raise ValueError(f"row {self.name} has a model of its own: robustify that folder, and name the new one")
        if self.defence is not None and (self.radapt is not None or self.model is not None):
            raise ValueError(f"row {self.name} has a defence beside radapt or a model of its own: choose one")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `model` and `defence` where there is none: folders of earlier versions have neither in their plan."""
        later = ("model", "defence")
        return {key: value for key, value in whole(self).items() if key not in later or value is not None}

    @property
    def own_weights(self) -> bool:
        """Whether its weights are other ones than the base model's."""
        return self.tower is not None or self.finetune is not None or self.model is not None

    @property
    def plain(self) -> bool:
        """Whether it is the undefended model itself."""
        return self.radapt is None and self.defence is None and not self.own_weights
