"""What the fields of YAML files have in common: no unknown names, no converted types, budgets as `4/255`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from lvlm_radapt.utils.budget import parse_eps


class Strict(BaseModel):
    """Settings that are read as they stand: an unknown name or another type is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Named(Strict):
    """A preset: its name, and a description for `lvlm-radapt list`."""

    name: Annotated[str, Field(min_length=1)]
    description: str


def _with_places(templates: list[str]) -> list[str]:
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"{template!r} must contain {{}}")
    return templates


def _budget(value: Any) -> Any:
    return parse_eps(value) if isinstance(value, str) else value


Templates = Annotated[list[str], Field(min_length=1), AfterValidator(_with_places)]
"""Texts for class names, each with the place {} for the name."""
Eps = Annotated[float, Field(gt=0, le=1), BeforeValidator(_budget)]
"""An Linf budget in [0, 1] pixel units, a number or the text `4/255`."""
