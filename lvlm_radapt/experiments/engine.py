"""The one engine behind every experiment: rows of models, each scored clean, under transfer and under adaptive attack.

A row is an open model. A trial is one task on one data set, under one attack at one budget. The first row is the
undefended model: its attacked images are the transfer images of all others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from eval_tasks.crafting.attack import Attack
from eval_tasks.report.page import write_report
from eval_tasks.run.evaluate import evaluate
from eval_tasks.run.options import Evaluation, Selection, select_samples
from eval_tasks.run.processes import Group
from eval_tasks.run.progress import Advance
from eval_tasks.run.records import Run, Scored
from lvlm_radapt.experiments.rows import slug
from lvlm_radapt.models.base import PixelModel

Threat = Literal["adaptive", "transfer", "control"]
"""control: random noise, which knows no model."""

Key = tuple[str, str, Threat, str]
"""(row, column, threat, eps)."""

Crossed = tuple[str, str, str, str]
"""(row, column, the row whose images they are, eps)."""


@dataclass(frozen=True)
class Trial:
    """What every row is scored on. asked: with the adaptive attack, or with noise, which the first row alone gets.

    base: the name of the undefended model. column, eps: name the trial within its experiment.
    """

    base: str
    column: str
    eps: str
    asked: Evaluation

    @property
    def attack(self) -> Attack:
        """The attack. There always is one."""
        assert self.asked.attack is not None
        return self.asked.attack


class Sweep:
    """The runs of one experiment. A run that its folder already holds is not done again.

    first: the undefended row. undefended: by base, the model that transfer images are crafted on. folder: where a run
    goes. apart: craft the transfer images in a run of their own, whatever the attack.
    """

    def __init__(
        self,
        first: str,
        undefended: Mapping[str, PixelModel],
        folder: Callable[[str, Trial, Threat], Path],
        *,
        command: str = "",
        group: Group | None = None,
        apart: bool = False,
    ) -> None:
        self.runs: dict[Key, Run] = {}
        self.crossed: dict[Crossed, Run] = {}
        self._first = first
        self._undefended = undefended
        self._folder = folder
        self._command = command
        self._group = group
        self._apart = apart
        self._selections: dict[str, Selection] = {}
        self._clean: defaultdict[tuple[str, str], dict[str, Scored]] = defaultdict(dict)

    def threats(self, row: str, trial: Trial) -> tuple[Threat, ...]:
        """The runs that a row makes on a trial. The first row makes no transfer run where its adaptive images serve."""
        if row != self._first:
            return ("transfer", "adaptive") if trial.attack.knows_model else ()
        if not trial.attack.knows_model:
            return ("control",)
        return ("adaptive",) if self._source(trial) == "adaptive" else ("adaptive", "transfer")

    def count(self, rows: Sequence[str], trials: Sequence[Trial]) -> int:
        """How many runs these rows make on these trials."""
        return sum(len(self.threats(row, trial)) for row in rows for trial in trials)

    def score(self, row: str, trial: Trial, model: PixelModel, tell: Advance) -> list[Run]:
        """Score a row's model on one trial, under each of its `threats`. The first row must come first.

        tell: called with samples done, and with the trial in words. UserError as for `evaluate`.
        """
        return [self._run(row, trial, threat, model, tell) for threat in self.threats(row, trial)]

    def cross(self, row: str, trial: Trial, model: PixelModel, tell: Advance) -> None:
        """Show a row's model the adaptive images of every other row. All rows must be scored.

        The first row's images are left out where they are the transfer images already. tell: as for `score`.
        """
        for other in dict.fromkeys(key[0] for key in self.runs):
            if other != row and (other != self._first or self._source(trial) != "adaptive"):
                self.crossed[row, trial.column, other, trial.eps] = self._run(
                    row, trial, "transfer", model, tell, other
                )

    def _run(
        self, row: str, trial: Trial, threat: Threat, model: PixelModel, tell: Advance, source: str | None = None
    ) -> Run:
        """The only place where an experiment evaluates. source: the row whose adaptive images are transfer images."""
        out = self._folder(row, trial, threat)
        if source is not None:
            out = out.with_name(f"{out.name}-from-{slug(source)}")
        what = " ".join(filter(None, (trial.column, threat, trial.eps, source and f"from {source}")))
        attack = trial.attack if threat == "control" else replace(trial.attack, threat=threat)
        surrogate = images_from = None
        if threat == "transfer":
            # a model with a defence in it is its own surrogate, the defence switched off
            surrogate = self._undefended[trial.base] if model.defence is None else None
            if source is not None:
                images_from = self.runs[source, trial.column, "adaptive", trial.eps].path
            elif row != self._first:
                images_from = self.runs[self._first, trial.column, self._source(trial), trial.eps].path
        run = evaluate(
            model,
            trial.asked.task,
            attack,
            out,
            trial.asked.options,
            selection=self._selection(trial),
            surrogate=surrogate,
            images_from=images_from,
            resume=True,
            command=self._command,
            advance=lambda done, text: tell(done, " · ".join(filter(None, (what, text)))),
            group=self._group,
            clean=self._clean[row, trial.column],
        )
        if (self._group is None or self._group.first) and not (out / "report.html").is_file():
            write_report([run], out / "report.html")
        if source is None:
            self.runs[row, trial.column, threat, trial.eps] = run
        return run

    def _source(self, trial: Trial) -> Threat:
        """Which of the first row's runs makes the transfer images. Those that just fool one model fool no other."""
        return "transfer" if self._apart or trial.attack.for_one_model else "adaptive"

    def _selection(self, trial: Trial) -> Selection:
        """The samples of the trial's column, read once."""
        if trial.column not in self._selections:
            self._selections[trial.column] = select_samples(trial.asked.task, trial.asked.options)
        return self._selections[trial.column]
