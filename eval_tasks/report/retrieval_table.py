"""Recall in both directions, of the runs that retrieve: what the comparison's one score a run leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import rich.table

from eval_tasks.run.facts import metric_of, model_label, setting, strength_of, threat_of
from eval_tasks.run.records import Run, images_of
from eval_tasks.run.run_metrics import mean_score
from eval_tasks.tasks.retrieval import DIRECTIONS
from eval_tasks.tasks.retrieval_corpus import CUTS
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.text_table import TextTable

FROM_METRICS = (
    "Of the recalls, samples.jsonl holds recall@1 of image to text alone: the others are those that metrics.json says."
)
COLUMNS = ("Model", "Task", "Images", *(f"{words} R@{k}, %" for words in DIRECTIONS.values() for k in CUTS))


@dataclass(frozen=True)
class RecallRow:
    """One model on clean images or under one attack. cells: (recall in percent, its 95 % interval), a column each."""

    model: str
    task: str
    images: str
    cells: tuple[tuple[float, tuple[float, float]], ...]

    def texts(self) -> tuple[str, ...]:
        """One text a column of COLUMNS."""
        shown = (f"{value:.1f} [{low:.1f}, {high:.1f}]" for value, (low, high) in self.cells)
        return (self.model, self.task, self.images, *shown)


def recall_rows(runs: Sequence[Run]) -> list[RecallRow]:
    """The rows of all runs on retrieval tasks; what several runs say of the same clean images is said once."""
    return list(dict.fromkeys(row for run in runs if "retrieval" in run.metrics for row in _rows(run)))


def _rows(run: Run) -> Iterator[RecallRow]:
    gallery = setting(run, "gallery")
    task = f"{setting(run, 'task')}, {gallery['images']} images, {gallery['captions']} captions"
    attack = setting(run, "attack")
    for part in run.metrics["retrieval"]:
        images = "clean"
        if part != "clean":
            steps = f", {attack['steps']} steps" if attack.get("steps") else ""
            images = f"{attack['name']} ({threat_of(run)}), {strength_of(run)}{steps}"
            if attack.get("surrogate"):
                images += f", crafted on {attack['surrogate']}"
        yield RecallRow(model_label(run), task, images, _cells(run, part))


def _cells(run: Run, part: str) -> tuple[tuple[float, tuple[float, float]], ...]:
    """A cell a column of recalls: captions' recall@1 by the records, the others as metrics.json has them."""
    try:
        found = [run.metrics["retrieval"][part][direction] for direction in DIRECTIONS]
        cells = [(by[f"recall@{k}"], (by[f"ci95@{k}"][0], by[f"ci95@{k}"][1])) for by in found for k in CUTS]
        answers = [getattr(sample, part) for sample in run.samples]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{run.path / 'metrics.json'} lacks a recall of {part} images: run it again") from error
    counted = mean_score(answers, metric_of(run), images_of(run.samples))
    if counted is None:
        raise UserError(f"{run.path / 'samples.jsonl'} has no score of {part} images: run it again")
    mean, interval, _ = counted
    return ((mean, (interval.low, interval.high)), *cells[1:])


def recall_table(rows: Sequence[RecallRow]) -> rich.table.Table:
    """For the terminal: a line a direction, readable at 80 columns."""
    lines = []
    for row in rows:
        for at, words in enumerate(DIRECTIONS.values()):
            label = f"{row.model}, {row.images}\n{row.task}" if at == 0 else ""
            numbers = row.texts()[3 + at * len(CUTS) : 3 + (at + 1) * len(CUTS)]
            lines.append((label, words, *(number.replace(" ", "\n", 1) for number in numbers)))
    head = ("Model, images", "Retrieved", *(f"R@{k}, %" for k in CUTS))
    return TextTable(head, lines, range(2, len(head))).to_rich()


def recall_markdown(rows: Sequence[RecallRow]) -> str:
    """A pipe table."""
    return TextTable(COLUMNS, [row.texts() for row in rows], range(3, len(COLUMNS))).to_markdown()
