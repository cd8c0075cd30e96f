"""The stages of FARE's ensembles: which text each pushes away from or pulls to, from where, in which precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacks import Stage
from attacks.losses import LossFn
from eval_tasks.config.presets import Half
from eval_tasks.crafting.source_model import SourceModel


@dataclass(frozen=True)
class StagePlan:
    """A stage by what it does: the NLL of reference number `reference` (from 0) raised, that of `target` lowered, or,
    where both are None, that of the reference whose stage left the lowest score raised again."""

    name: str
    reference: int | None = None
    target: str | None = None
    start: Literal["clean", "best"] = "clean"
    half: bool = False


def stage_plans(references: int, targets: Sequence[str]) -> list[StagePlan]:
    """The stages against so many references and towards these texts, in order."""
    away = [StagePlan(f"reference {k + 1}", reference=k, half=True) for k in range(references)]
    again = StagePlan("best reference", start="best")
    towards = [StagePlan(f"target {text}", target=text) for text in targets]
    return [*away, again, *towards]


def stages(
    plans: Sequence[StagePlan],
    view: SourceModel,
    prompts: Sequence[str],
    references: Sequence[Sequence[str]],
    half: Half | None,
) -> list[Stage]:
    """The stages over one batch; a sample with fewer references skips the stages it has none for."""
    against = {plan.name: plan.reference for plan in plans if plan.reference is not None}

    def made(plan: StagePlan) -> Stage:
        number, target = plan.reference, plan.target
        precision = half if plan.half else None

        def loss(so_far: Mapping[str, Tensor]) -> LossFn:
            if target is not None:
                return view.nll(prompts, [target] * len(prompts), half=precision, sign=-1)
            chosen = _best(so_far, against) if number is None else [number] * len(prompts)
            texts = [own[k] if k < len(own) else "" for own, k in zip(references, chosen, strict=True)]
            return view.nll(prompts, texts, half=precision)

        rows = None if number is None else [i for i, texts in enumerate(references) if number < len(texts)]
        return Stage(plan.name, loss, start=plan.start, rows=rows)

    return [made(plan) for plan in plans]


def _best(so_far: Mapping[str, Tensor], against: Mapping[str, int]) -> list[int]:
    """The number of the reference whose stage left each sample's lowest score, the first among equals."""
    numbers = list(against.values())
    lowest = torch.stack([so_far[name] for name in against]).argmin(dim=0)
    return [numbers[i] for i in lowest.tolist()]
