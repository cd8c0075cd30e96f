"""Loss curves and scores for the tracker that a user has: accelerate's own trackers, one road to all four."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lvlm_radapt.utils.errors import UserError, first_sentence

if TYPE_CHECKING:
    from eval_tasks.run.records import Run
    from lvlm_radapt.training.finetune import TrainingLog

TrackerName = Literal["wandb", "tensorboard", "mlflow", "trackio"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)
_PROJECT = "lvlm-radapt"


def check_tracker(name: TrackerName | None) -> None:
    """UserError where the tracker's library is missing."""
    if name is None:
        return
    found = find_spec(name)
    if found is None or found.origin is None:  # a folder of that name, which trackers make, is no library
        raise UserError(f"--report-to {name} needs the library {name}: pip install {name}")


class Tracker:
    """A run of the tracker `name`, named after the folder `out`. settings: what decides the numbers.

    wandb, trackio and mlflow find their server, keys and project in their own environment variables; the project is
    `lvlm-radapt` where none is given. TensorBoard's files go to tensorboard/OUT in the current folder. tell: told in
    one line when the tracker takes no more, which stops no work. UserError where it cannot be begun.
    """

    def __init__(
        self, name: TrackerName, out: Path, settings: Mapping[str, Any], tell: Callable[[str], None] = lambda text: None
    ) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS
        from accelerate.utils import clear_environment

        self._name, self._tell, self._failed = name, tell, False
        out, here = out.expanduser().resolve(), Path.cwd().resolve()
        within = out.relative_to(here) if out.is_relative_to(here) and out != here else Path(out.name)
        project = os.environ.get(f"{name.upper()}_PROJECT", _PROJECT)
        how: dict[TrackerName, dict[str, Any]] = {
            "tensorboard": {"run_name": str(within), "logging_dir": "tensorboard"},
            "mlflow": {"experiment_name": project, "run_name": out.name},
            "wandb": {"run_name": project, "name": out.name},
            "trackio": {"run_name": project, "name": out.name},
        }
        with clear_environment():  # accelerate's logging asks for it; launched processes are not joined
            PartialState(cpu=True)
        try:
            with redirect_stdout(sys.stderr):  # trackio talks there, which machines may read
                self._tracker = LOGGER_TYPE_TO_CLASS[name](**how[name])
                self._tracker.start()
                self._tracker.store_init_configuration(_flat(settings))
        except Exception as error:  # libraries of others
            raise UserError(f"--report-to {name}: {first_sentence(error)}") from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers by name."""
        self._try(lambda: self._tracker.log(dict(values), step=step))

    def finish(self) -> None:
        """Send what waits."""
        self._try(lambda: self._tracker.finish())

    def _try(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            with redirect_stdout(sys.stderr):
                action()
        except Exception as error:
            self._failed = True
            self._tell(f"note: {self._name} takes no more, the work goes on without it: {first_sentence(error)}")


def curves(tracker: Tracker) -> Callable[[TrainingLog], None]:
    """What `finetune` calls now and then: sends each step once, those from before a resume too."""
    sent = 0

    def watch(log: TrainingLog) -> None:
        nonlocal sent
        probes = {probe.step: probe for probe in log.probes}
        for step in range(sent, len(log.losses) + 1):
            values = {"loss": log.losses[step - 1], "rate": log.rates[step - 1]} if step else {}
            if step in probes:
                values |= {"held_back/clean": probes[step].clean, "held_back/attacked": probes[step].robust}
            if values:
                tracker.log(values, step)
        sent = len(log.losses) + 1

    return watch


def send_scores(name: TrackerName, run: Run, tell: Callable[[str], None] = lambda text: None) -> None:
    """The scores of a finished run with their intervals, under `clean` and its threat model. UserError as for
    `Tracker`; the run is whole then."""
    from eval_tasks.run.facts import metric_of, threat_of

    settings = {key: value for key, value in run.settings.items() if key not in ("environment", "resumed", "schema")}
    try:
        tracker = Tracker(name, run.path, settings | {"metric": metric_of(run)}, tell)
    except UserError as error:
        raise UserError(f"{error}; the run is whole in {run.path}, --resume sends it again") from error
    values: dict[str, float] = {"n": len(run.samples)}
    for part, called in (("clean", "clean"), ("adversarial", threat_of(run))):
        found = run.metrics.get(part)
        if found and found.get(metric_of(run)) is not None:
            values[called] = found[metric_of(run)]
            values |= dict(zip((f"{called}_low", f"{called}_high"), found.get("ci95") or (), strict=False))
    tracker.log(values, step=0)
    tracker.finish()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    flat: dict[str, str | int | float | bool] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat
