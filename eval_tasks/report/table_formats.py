"""The comparison table: transfer and adaptive scores always side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.console
from rich.text import Text

from attacks.eps import budget_text
from eval_tasks.metrics.bootstrap import Images, Interval, paired_difference_ci
from eval_tasks.metrics.intervals import LEAST, count_images, score_ci
from lvlm_radapt.utils.text_table import TextTable, as_text

UNDEFENDED = "n/a (undefended)"
NO_SCORE = "n/a (no score)"
TOO_FEW = "too few samples to tell"
LEGEND = (
    "Transfer: crafted on the undefended model (or on the surrogate named), scored on this one. "
    "Adaptive: crafted white-box on the model that is scored, through its defence. "
    "Gain: this model minus the undefended one under the adaptive attack, paired by sample. "
    "Intervals are bootstrap ones over images, Wilson's where all answers score 0 or all 100. "
    f"A difference over fewer than {LEAST} images is too few to tell."
)
METRICS = {
    "cider": "CIDEr x100",
    "vqa_accuracy": "VQA accuracy, %",
    "accuracy": "accuracy, %",
    "recall@1": "image to text, recall@1, %",
}
COLUMNS = (
    "Model",
    "Task",
    "Attack (name, norm, eps, steps)",
    "n",
    "Clean [95% CI]",
    "Transfer [95% CI]",
    "Adaptive [95% CI]",
    "Gain under adaptive [95% CI]",
    "Note",
)


@dataclass(frozen=True)
class Cell:
    """A score (or a difference, `signed`) with its 95 % interval; or, when `value` is None, words instead.

    images: of a difference, how many it is over. success, success_rate: of a targeted attack, how often its text was
    read, in words and in percent.
    """

    words: str = ""
    value: float | None = None
    interval: Interval | None = None
    detail: str = ""
    signed: bool = False
    images: int | None = None
    success: str = ""
    success_rate: float | None = None

    @property
    def too_few(self) -> bool:
        """Whether a difference is over too few images to be judged."""
        return self.images is not None and self.images < LEAST

    @property
    def sign(self) -> int:
        """1 or -1 where a difference is judged and its whole interval on one side of 0; 0 for all else."""
        if self.interval is None or self.too_few:
            return 0
        return (self.interval.low > 0) - (self.interval.high < 0)

    @property
    def number(self) -> str:
        """The value with one decimal, or the words."""
        return self.words if self.value is None else self._format(self.value)

    @property
    def bounds(self) -> str:
        """`[low, high]`, or nothing when there is no interval."""
        if self.interval is None:
            return ""
        return f"[{self._format(self.interval.low)}, {self._format(self.interval.high)}]"

    @property
    def numbers(self) -> tuple[float, float, float] | None:
        """(value, low, high), the value itself for ends that are not known; None for words."""
        if self.value is None:
            return None
        low, high = self.interval or (self.value, self.value)
        return self.value, low, high

    def lines(self) -> str:
        """One part a line, for a narrow terminal. Why a cell has no number is said by the legend."""
        parts = (self.number.split(" (")[0], self.bounds, self.detail, self.success.replace(" [", "\n["))
        return "\n".join(part for part in parts if part)

    def __str__(self) -> str:
        detail = f"({self.detail})" if self.detail else ""
        success = f"({self.success})" if self.success else ""
        return " ".join(part for part in (self.number, self.bounds, detail, success) if part)

    def _format(self, value: float) -> str:
        value = round(value, 1) + 0.0  # no "-0.0"
        return f"{value:+.1f}" if self.signed and value else f"{value:.1f}"


def difference_cell(first: Sequence[float], second: Sequence[float], images: Images | None) -> Cell:
    """Mean of first - second, two scores of the same samples in the same order, with its paired interval.

    images: the image of each sample, as in `bootstrap_ci`. Raises as `paired_difference_ci`.
    """
    interval = paired_difference_ci(first, second, images=images)
    count = count_images(len(first), images)
    mean = sum(a - b for a, b in zip(first, second, strict=True)) / len(first)
    detail = TOO_FEW if count < LEAST else ""
    return Cell(value=mean, interval=interval, signed=True, images=count, detail=detail)


def score_cell(scores: Sequence[float], metric: str, images: Images | None) -> Cell:
    """Mean of the scores with its interval, as in `score_ci`."""
    return Cell(value=sum(scores) / len(scores), interval=score_ci(scores, metric, images))


@dataclass(frozen=True)
class Row:
    """One line. `transfer_gain` and `clean_change` are paired differences to the undefended model, for prose.

    `adaptive_loss` is the mean of the adaptive attack's loss over the samples, for curves.

    `no_base`: the undefended model scores about zero on clean images, so that no gain means anything.

    `variant` tells it from a row that reads the same; `eps` is in [0, 1] pixel units, None without an attack and where
    nobody attacked, whose strength `variant` tells; `target` is a targeted attack's text; `folders` are
    those of its runs.
    """

    model: str
    defended: bool
    task: str
    metric: str
    attack: str
    norm: str | None
    eps: float | None
    steps: int | None
    target: str | None
    variant: str
    n: int
    clean: Cell
    transfer: Cell
    adaptive: Cell
    gain: Cell
    transfer_gain: Cell | None
    clean_change: Cell | None
    adaptive_loss: Cell | None
    only_transfer: bool
    no_base: bool
    notes: tuple[str, ...]
    hidden: Mapping[str, str]
    folders: tuple[Path, ...]

    @property
    def attack_settings(self) -> str:
        """Target, norm, eps, steps and variant in words."""
        parts = [f'"{self.target}"'] if self.target else []
        parts += [] if self.eps is None else [f"{self.norm} {budget_text(self.eps, self.norm)}"]
        parts += [f"{self.steps} steps"] if self.steps else []
        return ", ".join([*parts, *([self.variant] if self.variant else [])])

    @property
    def attack_text(self) -> str:
        """Name and settings in words."""
        return ", ".join(part for part in (self.attack, self.attack_settings) if part)

    @property
    def metric_text(self) -> str:
        """The metric with its unit."""
        return METRICS.get(self.metric, self.metric)

    def texts(self) -> tuple[str, ...]:
        """One text a column of COLUMNS."""
        cells = (self.clean, self.transfer, self.adaptive, self.gain)
        task = f"{self.task} ({self.metric_text})"
        note = "; ".join(self.notes)
        return (self.model, task, self.attack_text, str(self.n), *map(str, cells), note)


@dataclass(frozen=True)
class Table:
    """Rows of one preset, with remarks that concern all of them."""

    preset: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """A pipe table, followed by what its columns mean."""
        body = TextTable(COLUMNS, [row.texts() for row in self.rows], range(3, 8)).to_markdown()
        remarks = " ".join([f"Preset {as_text(self.preset)}. {LEGEND}", *map(as_text, self.notes)])
        return f"{body}\n{remarks}\n"

    def to_csv(self) -> str:
        """Numbers at full precision; a missing score is its words in all three of its columns."""
        names = ("clean", "transfer", "adaptive", "gain")
        header = ["preset", "model", "task", "metric", "attack", "norm", "eps", "steps", "variant", "n"]
        for name in names:
            header += [name, f"{name}_low", f"{name}_high"]
        header += ["surrogate", "note", "target", "transfer_success", "adaptive_success"]
        lines = []
        for row in self.rows:
            line: list[Any] = [self.preset, row.model, row.task, row.metric, row.attack, row.norm, row.eps]
            line += [row.steps, row.variant, row.n]
            for name in names:
                cell: Cell = getattr(row, name)
                if cell.value is None:
                    line += [cell.words] * 3
                else:
                    line += [cell.value, *(cell.interval or (NO_SCORE, NO_SCORE))]
            successes = [cell.success_rate for cell in (row.transfer, row.adaptive)]
            lines.append([*line, row.hidden.get("surrogate", ""), "; ".join(row.notes), row.target, *successes])
        return TextTable(header, lines).to_csv()

    def to_rich(self) -> rich.console.Group:
        """For the terminal, readable at 80 columns: a block a task and attack; texts are never read as markup."""
        blocks: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
        for row in self.rows:
            blocks[row.task, row.attack_text, row.n].append(row)
        parts: list[rich.console.RenderableType] = [Text(f"Preset {self.preset}", style="bold")]
        for (task, attack, n), rows in blocks.items():
            heading = f"{task} ({rows[0].metric_text}) · {attack or 'no attack'} · n = {n}"
            made = TextTable(("Model", "Clean", "Transfer", "Adaptive", "Gain"), list(map(_block, rows)))
            parts += [Text(), Text(heading, style="bold"), made.to_rich(min_width=13)]
        remarks = " ".join([LEGEND, "In brackets: 95% CI.", *self.notes])
        return rich.console.Group(*parts, Text(), Text(remarks, style="dim"))


def _block(row: Row) -> tuple[Text | str, ...]:
    label = Text(row.model)
    for note in row.notes:
        label.append(f"\n{note}", style="yellow")
    return (label, *(cell.lines() for cell in (row.clean, row.transfer, row.adaptive, row.gain)))
