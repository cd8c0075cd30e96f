"""One run's model as the undefended one of all other runs, where their folders do not say what they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eval_tasks.run.facts import judged, setting
from eval_tasks.run.records import Run
from lvlm_radapt.utils.errors import UserError


def credited(runs: Sequence[Run], baseline: Run) -> list[Run]:
    """The runs with `baseline` among them. Those of other models are measured against its model.

    UserError where that model is itself measured against another one, or no run is of another model.
    """
    base = setting(baseline, "model", "name")
    if judged(baseline):
        raise UserError(f"{baseline.path} is no baseline: its model is defended or fine-tuned; name a run of its base")
    if all(setting(run, "model", "name") == base for run in runs):
        raise UserError(f"every run is of {base} itself: --baseline is for runs of other models, leave it out")
    named = [run if setting(run, "model", "name") == base else _from(run, base) for run in runs]
    return named if any(run.path.resolve() == baseline.path.resolve() for run in runs) else [baseline, *named]


def _from(run: Run, base: str) -> Run:
    return replace(run, settings={**run.settings, "model": {**run.settings["model"], "tuned_from": base}})
