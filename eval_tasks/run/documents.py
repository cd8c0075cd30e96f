"""What run.json and metrics.json must look like where readers look: fields may lack or be added, but not be of another
type. Every reader of a run gets them through here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from eval_tasks.audit.findings import Audit
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json, validated

SCHEMA = 2
_READ = (1, SCHEMA)

_Count = Annotated[int, Field(ge=0, le=10**12)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)


class _Ids(_Part):
    n: _Count
    sha256: str


class _Radapt(_Part):
    cutoff: float | None = None
    cutoff_unit: str = ""
    boundary: str = ""
    alpha: float = 0.0
    mix: str = ""
    anchor: str = ""
    anchor_from: str | None = None


class _Plugin(_Part):
    name: str
    version: str | None = None
    sha256: str | None = None


class _Defence(_Part):
    """One that is not R-Adapt."""

    name: str
    settings: dict[str, Any]
    gradient: Literal["exact", "bpda"]
    random: bool
    draws: _Count | None = None
    plugin: _Plugin | None = None


class _Model(_Part):
    name: str = ""
    tuned_from: str | None = None
    radapt: _Radapt | None = None
    defence: _Defence | None = None


class _Attack(_Part):
    name: str
    threat: str | None = None
    surrogate: str | None = None
    norm: str | None
    eps: Annotated[float, Field(gt=0, le=1e6)]
    eps_text: str | None = None
    steps: _Count | None = None
    target: str | None = None


class _Answers(_Part):
    style: str
    rule: str = ""


class _Classes(_Part):
    sha256: str
    templates: list[str]


class _Gallery(_Part):
    sha256: str
    images: _Count
    captions: _Count


class RunSettings(_Part):
    """run.json."""

    ids: _Ids
    created: str = ""
    command: str = ""
    environment: dict[str, Any] = {}
    model: _Model = _Model()
    task: str = ""
    preset: str = ""
    seed: int = 0
    tokenizer: str | None = None
    attack: _Attack | None = None
    answers: _Answers | None = None
    classes: _Classes | None = None
    gallery: _Gallery | None = None
    left_out: str | None = None


class _Score(_Part):
    """`METRIC: mean score` is beside it under its own name."""

    ci95: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None


class _Success(_Part):
    success_rate: float
    ci95: Annotated[list[float], Field(min_length=2, max_length=2)]


class RunMetrics(_Part):
    """metrics.json."""

    n: _Count = 0
    metric: str = ""
    clean: _Score | None = None
    adversarial: _Score | None = None
    success: _Success | None = None
    zero_grad: _Count = 0
    failed: _Count = 0
    seconds: float = 0.0
    notes: list[str] = []
    retrieval: dict[str, dict[str, dict[str, Any]]] = {}
    audit: dict[str, Any] | None = None

    @field_validator("audit")
    @classmethod
    def _an_audit(cls, audit: dict[str, Any] | None) -> dict[str, Any] | None:
        if audit is not None:
            Audit.from_dict(audit)
        return audit

    @model_validator(mode="after")
    def _scored(self) -> RunMetrics:
        if self.metric in _Score.model_fields:
            raise ValueError(f"metric {self.metric} is none")
        for part in ("clean", "adversarial"):
            score = getattr(self, part)
            value = None if score is None else (score.model_extra or {}).get(self.metric)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{part}.{self.metric} must be a number")
        return self

    @field_validator("retrieval")
    @classmethod
    def _recalls(cls, retrieval: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
        for part, directions in retrieval.items():
            for direction, found in directions.items():
                for key, value in found.items():
                    pair = key.startswith("ci95@")
                    numbers = value if pair and isinstance(value, list) else [value]
                    if len(numbers) != 1 + pair or not all(type(one) in (int, float) for one in numbers):
                        raise ValueError(f"{part}.{direction}.{key} must be {'two numbers' if pair else 'a number'}")
        return retrieval


def own_file(run: Path, *names: str) -> Path:
    """The path of that name in a run folder. UserError where links lead to another place: a run may come from somebody
    else, and must not show other files."""
    path = run.joinpath(*names)
    if os.path.realpath(path) != os.path.join(os.path.realpath(run), *names):
        raise UserError(f"{path} is a link to another place: copy the file there, or remove the link")
    return path


def is_defended(model: Mapping[str, Any]) -> bool:
    """Whether run.json's `model` has a defence of any kind."""
    return model["radapt"] is not None or model.get("defence") is not None


def read_settings(folder: Path) -> dict[str, Any]:
    """run.json of a run folder; UserError when it is none, or damaged or of another schema."""
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no run.json")
    settings = read_json(own_file(folder, path.name))
    if settings.get("schema") not in _READ:
        shown = json.dumps(settings.get("schema"))[:60]
        raise UserError(f"{path} has schema {shown}, this version reads up to {SCHEMA}")
    validated(RunSettings, settings, path)
    return settings


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of a run folder; UserError when it is damaged."""
    path = own_file(folder, "metrics.json")
    metrics = read_json(path)
    validated(RunMetrics, metrics, path)
    return metrics
