"""Any number of runs ranked: by the adaptive score, in a table for each setting, as a page and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from attacks.eps import budget_text
from eval_tasks.audit import Audit
from eval_tasks.audit.findings import Judgement
from eval_tasks.metrics.bootstrap import Interval
from eval_tasks.report.build_table import MODEL_SETTINGS, TOO_HIGH, comparison, shared_settings
from eval_tasks.report.figures import text_uri
from eval_tasks.report.html_templates import templates, write_text
from eval_tasks.report.table_formats import METRICS, Cell, Row
from eval_tasks.run.facts import setting, threat_of
from eval_tasks.run.records import Run
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.text_table import TextTable
from lvlm_radapt.utils.writing import check_file

FORMAT: Literal["lvlm-radapt leaderboard"] = "lvlm-radapt leaderboard"
VERSION: Literal[1] = 1
_KICKER = "Robustness leaderboard"
_MARKS = (f"<title>{_KICKER}: ".encode(), f'"format": "{FORMAT}"'.encode())

Status = Literal["measured", "unsound", "transfer only"]
STATUS: dict[Status, str] = {
    "measured": "",
    "unsound": "not a measurement yet: ",
    "transfer only": "not shown to hold: no adaptive attack was run",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Score(_Part):
    """A mean in the metric's unit, with its 95 % interval over images; None where there is none."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, cell: Cell) -> Score | None:
        """The number in a table's cell; None for words."""
        if cell.value is None:
            return None
        low, high = cell.interval or (None, None)
        return cls(value=cell.value, low=low, high=high)

    def cell(self, *, signed: bool = False) -> Cell:
        """The same for tables. signed: it is a difference."""
        interval = None if self.low is None or self.high is None else Interval(self.low, self.high)
        return Cell(value=self.value, interval=interval, signed=signed)


class Entry(_Part):
    """A model. rank: by the adaptive score, None where none is shown. status: `measured`; `unsound`, where the audit
    fails or a transfer attack does more harm than the adaptive one; `transfer only`. transfer: under the strongest
    transfer attack of those that were run, made on `surrogate`. gain: the adaptive score minus that of the undefended
    model. runs: names of the run folders."""

    rank: int | None
    model: str
    defended: bool
    status: Status
    adaptive: Score | None
    gain: Score | None
    clean: Score | None
    transfer: Score | None
    surrogate: str | None
    audit: Judgement | None
    notes: tuple[str, ...]
    runs: tuple[str, ...]

    @property
    def words(self) -> str:
        """Why it has no rank; nothing where it has one."""
        why = TOO_HIGH if TOO_HIGH in self.notes else "its audit fails"
        return STATUS[self.status] + (why if self.status == "unsound" else "")


class Board(_Part):
    """Models under the same attack on the same samples. eps: in [0, 1] pixel units, under L2 a length. more: the other
    settings they share, in words."""

    task: str
    metric: str
    preset: str
    attack: str
    norm: str
    eps: float
    steps: int | None
    target: str | None
    n: int
    more: dict[str, str]
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """Task, attack and budget in words."""
        target = [f'"{self.target}"'] if self.target else []
        steps = [f"{self.steps} steps"] if self.steps else []
        return ", ".join([self.task, self.attack, *target, f"{self.norm} {budget_text(self.eps, self.norm)}", *steps])

    @property
    def unit(self) -> str:
        """The metric with its unit."""
        return METRICS.get(self.metric, self.metric)

    def table(self) -> TextTable:
        """For the terminal."""
        rows = []
        for entry in self.entries:
            found = (entry.adaptive, entry.gain, entry.clean, entry.transfer)
            cells = [one.cell(signed=one is entry.gain).lines() if one else "-" for one in found]
            rows.append([entry.rank or "-", entry.model + (f"\n{entry.words}" if entry.words else ""), *cells])
        return TextTable(("Rank", "Model", "Adaptive", "Gain", "Clean", "Transfer"), rows, range(2, 6))


class Leaderboard(_Part):
    """What `leaderboard` writes as JSON. The version grows when a field changes its meaning or goes. left_out: how many
    runs nobody attacked."""

    format: Literal["lvlm-radapt leaderboard"] = FORMAT
    version: Literal[1] = VERSION
    package: str
    created: str
    left_out: int
    boards: tuple[Board, ...]


def leaderboard(runs: Sequence[Run]) -> Leaderboard:
    """The runs ranked, in a board for each task, attack, budget, number of steps and set of samples.

    UserError for no runs under attack, for runs of two schema versions, and as `comparison`.
    """
    runs = list({run.path.resolve(): run for run in runs}.values())
    schemas = {run.settings["schema"]: run for run in runs}
    if len(schemas) > 1:
        told = ", ".join(f"{run.path} has {schema}" for schema, run in sorted(schemas.items()))
        raise UserError(f"runs of two schema versions are not ranked together: {told}; run the older ones again")
    attacked = [run for run in runs if threat_of(run) in ("adaptive", "transfer")]
    if not attacked:
        raise UserError("none of these runs is under attack: nothing to rank; run eval with --attack")
    groups: dict[str, list[Run]] = {}
    for run in attacked:
        groups.setdefault(shared_settings(run), []).append(run)
    return Leaderboard(
        package=version("lvlm-radapt"),
        created=max(str(run.settings.get("created", "")) for run in runs),
        left_out=len(runs) - len(attacked),
        boards=tuple(sorted(map(_board, groups.values()), key=lambda board: (board.task, board.attack, board.eps))),
    )


@dataclass(frozen=True)
class _Candidate:
    """All rows of one model: each has the same adaptive run, and a transfer run from another surrogate."""

    rows: Sequence[Row]
    audit: Judgement | None

    @property
    def status(self) -> Status:
        if self.rows[0].adaptive.value is None:
            return "transfer only"
        return "unsound" if self.audit == "fail" or any(TOO_HIGH in row.notes for row in self.rows) else "measured"

    @property
    def order(self) -> tuple[int, float, str]:
        """Measured ones first, the highest adaptive score on top; never by the transfer score."""
        adaptive = self.rows[0].adaptive.value
        return [*STATUS].index(self.status), -(adaptive or 0.0), self.rows[0].model

    def entry(self, rank: int, *, alone: bool) -> Entry:
        """alone: no other candidate has this model's name."""
        row = min(self.rows, key=lambda one: math.inf if one.transfer.value is None else one.transfer.value)
        return Entry(
            rank=rank if self.status == "measured" else None,
            model=row.model if alone or not row.variant else f"{row.model} ({row.variant})",
            defended=row.defended,
            status=self.status,
            adaptive=Score.of(row.adaptive),
            gain=Score.of(row.gain),
            clean=Score.of(row.clean),
            transfer=Score.of(row.transfer),
            surrogate=row.hidden.get("surrogate"),
            audit=self.audit,
            notes=tuple(dict.fromkeys(note for one in self.rows for note in one.notes)),
            runs=tuple(dict.fromkeys(folder.name for one in self.rows for folder in one.folders)),
        )


def _board(runs: Sequence[Run]) -> Board:
    by_path = {run.path: run for run in runs}
    models: dict[str, list[Row]] = {}
    rows = comparison(runs).rows
    for row in rows:
        own = {key: value for key, value in row.hidden.items() if key != "surrogate"}
        models.setdefault(f"{row.model} {own}", []).append(row)
    found = [_Candidate(one, _audit(by_path[path] for row in one for path in row.folders)) for one in models.values()]
    found.sort(key=lambda one: one.order)
    names = [one.rows[0].model for one in found]
    attack, first = setting(runs[0], "attack"), rows[0]
    return Board(
        task=first.task,
        metric=first.metric,
        preset=setting(runs[0], "preset"),
        attack=first.attack,
        norm=attack["norm"],
        eps=attack["eps"],
        steps=first.steps,
        target=first.target,
        n=first.n,
        more={key: value for key, value in first.hidden.items() if key not in MODEL_SETTINGS},
        entries=tuple(
            one.entry(rank, alone=names.count(one.rows[0].model) == 1) for rank, one in enumerate(found, start=1)
        ),
    )


def _audit(runs: Iterable[Run]) -> Judgement | None:
    audits = [run.metrics["audit"] for run in runs if run.metrics.get("audit") is not None]
    return Audit.from_dict(audits[0]).verdict if audits else None


def check_leaderboard(out: Path) -> None:
    """UserError unless a leaderboard may be written there: a new file or an earlier one."""
    check_file(out, what="leaderboard", own=lambda head: any(mark in head for mark in _MARKS))


def write_leaderboard(made: Leaderboard, out: Path, command: str = "") -> Path:
    """The file `out`, whole or not at all: JSON where its name ends in .json, else a page that loads nothing and holds
    the JSON. UserError when it cannot be written."""
    check_leaderboard(out)
    text = made.model_dump_json(indent=1) + "\n"
    if out.suffix == ".json":
        return write_text(out, text)
    count = len({entry.model for board in made.boards for entry in board.entries})
    page = templates().get_template("leaderboard.html.j2")
    return write_text(
        out,
        page.render(
            kicker=_KICKER,
            title=f"{count} model{'' if count == 1 else 's'} under attack",
            made=made,
            json_uri=text_uri("application/json", text),
            command=command,
        ),
    )
