"""A comparison's numbers in the paper's shape: a line a defence; clean, transfer and adaptive columns for each task."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import rich.console
from rich.text import Text

from eval_tasks.metrics.intervals import LEAST
from eval_tasks.report.answer_retention import retained_of
from eval_tasks.report.table_formats import METRICS, UNDEFENDED, Cell, difference_cell, score_cell
from eval_tasks.run.records import Part, Run, images_of
from lvlm_radapt.experiments.compare.runs import ComparisonRuns
from lvlm_radapt.experiments.engine import Threat
from lvlm_radapt.utils.text_table import TextTable, as_text

BETTER, WORSE = "\N{BLACK UP-POINTING TRIANGLE}", "\N{BLACK DOWN-POINTING TRIANGLE}"
THREATS: tuple[Threat, ...] = ("transfer", "adaptive")
WORST = "worst"
LOWEST = (
    "Worst: the lowest score of each sample over all attacks on the row: its own of every column with that task, and "
    "the images made for any other row"
)
LEGEND = (
    "Transfer: images crafted once, on the undefended model, scored on every row. Adaptive: crafted white-box on each "
    "row's own model, through its defence. Brackets: 95 % bootstrap interval over images, Wilson's where all answers "
    "score 0 or all 100. Kept: share, in percent, of the "
    "undefended model's clean answers that is still there (captions: CIDEr against that caption over its own). "
    f"{BETTER} and {WORSE}: clearly better or worse than the undefended model under its own attack, paired by sample, "
    f"over {LEAST} images at least."
)


@dataclass(frozen=True)
class Entry:
    """score and kept, each with its interval; change: the paired difference to the undefended model, clean to clean and
    attacked to attacked under its own adaptive attack, None for that model itself."""

    score: Cell
    kept: Cell
    change: Cell | None
    run: Run | None

    @property
    def sign(self) -> str:
        """BETTER or WORSE where the whole interval of the change is on one side of 0, else nothing."""
        return "" if self.change is None else {1: BETTER, -1: WORSE, 0: ""}[self.change.sign]


@dataclass(frozen=True)
class Line:
    """One defence; entries by (column title, heading), headings as in `headings`."""

    name: str
    entries: Mapping[tuple[str, str], Entry]


@dataclass(frozen=True)
class ComparisonTable:
    """`columns`: (title, task with metric); `headings`: clean, transfer 4/255, ...; settings: a line for all of it."""

    title: str
    settings: str
    columns: tuple[tuple[str, str], ...]
    headings: tuple[str, ...]
    lines: tuple[Line, ...]

    def to_markdown(self) -> str:
        """A pipe table a task, and what the columns mean."""
        parts = []
        for title, about in self.columns:
            rows = [[line.name, *(_text(line.entries[title, h]) for h in self.headings)] for line in self.lines]
            body = TextTable(["defence", *self.headings], rows).to_markdown()
            parts.append(f"**{as_text(title)}** ({as_text(about)})\n\n{body}")
        return "\n".join([*parts, f"{self.settings}. {LEGEND}", *self.findings(), ""])

    def to_csv(self) -> str:
        """A line a score, numbers at full precision; what has no number is empty."""
        names = ("score", "kept", "change")
        head = ["defence", "column", "threat", "eps", "n", *(n + e for n in names for e in ("", "_low", "_high"))]
        rows = []
        for line in self.lines:
            for (title, heading), entry in line.entries.items():
                threat, _, eps = heading.partition(" ")
                cells = (entry.score, entry.kept, entry.change or Cell())
                numbers = [x for cell in cells for x in cell.numbers or (None, None, None)]
                n = "" if entry.run is None else len(entry.run.samples)
                rows.append([line.name, title, threat, eps, n, *numbers])
        return TextTable(head, rows).to_csv()

    def to_rich(self) -> rich.console.Group:
        """For the terminal, readable at 80 columns: a block a task and budget."""
        parts: list[rich.console.RenderableType] = [Text(self.title, style="bold")]
        budgets = list(dict.fromkeys(heading.partition(" ")[2] for heading in self.headings[1:]))
        for (title, about), eps in itertools.product(self.columns, budgets):
            headings = ["clean", *(h for h in self.headings[1:] if h.partition(" ")[2] == eps)]
            rows = [[line.name, *(_block(line.entries[title, heading]) for heading in headings)] for line in self.lines]
            made = TextTable(["Defence", *headings], rows)
            parts += [Text(), Text(f"{title}, {eps} ({about})", style="bold"), made.to_rich()]
        parts += [Text(), *map(Text, self.findings()), Text(f"{self.settings}. {LEGEND}", style="dim")]
        return rich.console.Group(*parts)

    def findings(self) -> list[str]:
        """What each defence buys, a sentence each: of one task its differences, of several how often it is better.

        What only transfer shows comes first.
        """
        return [*self.remarks(), *(f"{said}: {figures}." for said, figures in self.headlines())]

    def remarks(self) -> list[str]:
        """What is true of several defences, or of all."""
        few, tallies = self._few(), self._tallies()
        said = []
        if few is not None:
            said.append(f"Too few samples to tell: {few} images show no difference for sure, {LEAST} are the least.")
        only = [line.name for line, of in tallies if of["transfer"][0] and not of["adaptive"][0]]
        if only and few is None:
            names = ", ".join(only)
            said.append(f"Better than undefended only under transfer, never under the adaptive attack: {names}.")
        if len(self.columns) == 1:
            said.append(f"Differences to {self.lines[0].name}, paired by sample, with 95 % intervals over images:")
        return said

    def headlines(self) -> list[tuple[str, str]]:
        """Of each defence whether it helps, and the numbers behind that."""
        few, tallies = self._few(), self._tallies()
        if len(self.columns) == 1:
            return [self._verdict(line, of["adaptive"], few is not None) for line, of in tallies]
        counted = [] if few is not None else tallies
        return [(line.name, "; ".join(f"{threat} {_counts(tally)}" for threat, tally in of.items()))
                for line, of in counted]  # fmt: skip

    def _few(self) -> int | None:
        """On how few images a difference is judged, where they are too few."""
        counts = [entry.change for line in self.lines for entry in line.entries.values() if entry.change is not None]
        return min((change.images for change in counts if change.images is not None and change.too_few), default=None)

    def _tallies(self) -> list[tuple[Line, dict[str, tuple[int, int, int]]]]:
        threats = ("adaptive", "transfer", "clean")
        return [(line, {threat: self._tally(line, threat) for threat in threats}) for line in self.lines[1:]]

    def _verdict(self, line: Line, adaptive: tuple[int, int, int], few: bool) -> tuple[str, str]:
        """Whether a defence helps under the adaptive attack, and the paired differences with their 95 % intervals."""
        better, worse, neither = adaptive
        if few:
            word = "cannot be judged"
        elif better and worse:
            word = "helps at some budgets and does harm at others"
        elif better or worse:
            word = ("helps" if better else "does harm") + (" at some budgets" if neither else "")
        else:
            word = "makes no clear difference"
        changes = [(heading, entry.change) for (_, heading), entry in line.entries.items() if entry.change is not None]
        changes.sort(key=lambda one: not one[0].startswith("adaptive"))
        figures = ", ".join(f"{heading} {change.number} {change.bounds}" for heading, change in changes)
        return f"{line.name} {word}", figures

    def _tally(self, line: Line, threat: str) -> tuple[int, int, int]:
        """In how many columns it is clearly better, clearly worse, and neither."""
        signs = [entry.sign for (_, heading), entry in line.entries.items() if heading.startswith(threat)]
        better, worse = signs.count(BETTER), signs.count(WORSE)
        return better, worse, len(signs) - better - worse


def table_of(compared: ComparisonRuns) -> ComparisonTable:
    """The table of a finished comparison."""
    comparison = compared.comparison
    first = comparison.rows[0].name
    lines = []
    for row in comparison.rows:
        entries: dict[tuple[str, str], Entry] = {}
        for column in comparison.columns:
            stock = compared.any_run(first, column.title)
            own = row.name == first
            entries[column.title, "clean"] = _entry(
                compared.any_run(row.name, column.title), stock, stock, own, attacked=False
            )
            for threat in THREATS:
                for eps in comparison.eps:
                    run = compared.runs.get((row.name, column.title, threat, eps))
                    under = compared.runs[first, column.title, "adaptive", eps]
                    entries[column.title, f"{threat} {eps}"] = (
                        Entry(Cell(UNDEFENDED), Cell(), None, None)
                        if run is None
                        else _entry(run, stock, under, own, attacked=True)
                    )
            for eps in comparison.eps if comparison.cross else ():
                entries[column.title, f"{WORST} {eps}"] = _worst(compared, row.name, column.title, eps)
        lines.append(Line(row.name, entries))
    columns = tuple((c.title, _about(compared.any_run(first, c.title))) for c in comparison.columns)
    attacked = (*THREATS, WORST) if comparison.cross else THREATS
    headings = ("clean", *(f"{threat} {eps}" for threat in attacked for eps in comparison.eps))
    settings = f"{comparison.steps} steps, preset {comparison.protocol}{'. ' + LOWEST if comparison.cross else ''}"
    return ComparisonTable(comparison.description, settings, columns, headings, tuple(lines))


def _about(run: Run) -> str:
    attack, metric = run.settings["attack"], run.metrics["metric"]
    task, model = run.settings["task"], run.settings["model"]["name"]
    # a set may hold fewer samples than were asked for
    n = len(run.samples)
    early = ", early exit" if attack.get("early_exit") else ""
    return f"{model}, {task}, {METRICS.get(metric, metric)}; {attack['name']}, {attack['norm']}{early}; n = {n}"


def _entry(run: Run, stock: Run, against: Run, own: bool, *, attacked: bool) -> Entry:
    """stock: the undefended model's clean answers; against: its run that the change is measured from."""
    part: Part = "adversarial" if attacked else "clean"
    scores = [*run.scores(part).values()]
    metric, images = str(run.metrics["metric"]), images_of(run.samples)
    kept = retained_of(run, stock, attacked=attacked)
    change = None
    if not own:
        change = difference_cell(scores, [*against.scores(part).values()], images)
    # what the undefended model keeps of its own clean answers is 100 % by definition, and no estimate
    share = "accuracy" if metric != "cider" and (attacked or not own) else ""
    return Entry(score_cell(scores, metric, images), score_cell(kept, share, images), change, run)


def _worst(compared: ComparisonRuns, row: str, column: str, eps: str) -> Entry:
    """The lowest score of each sample over all attacks on the row: its own, the first row's and the other rows'."""
    first = compared.comparison.rows[0].name
    own = compared.runs[row, column, "adaptive", eps]
    lowest, against = (_lowest(compared.attacks_on(name, column, eps)) for name in (row, first))
    images = images_of(own.samples)
    change = None if row == first else difference_cell(lowest, against, images)
    return Entry(score_cell(lowest, str(own.metrics["metric"]), images), Cell(), change, None)


def _lowest(runs: Sequence[Run]) -> list[float]:
    """Sample by sample."""
    scores = [run.scores("adversarial") for run in runs]
    return [min(one[sample] for one in scores) for sample in scores[0]]


def _text(entry: Entry) -> str:
    if entry.score.value is None:
        return "\N{EN DASH}"
    kept = f"; kept {entry.kept.number} {entry.kept.bounds}" if entry.kept.value is not None else ""
    return f"{_marked(entry)} {entry.score.bounds}{kept}"


def _block(entry: Entry) -> str:
    if entry.score.value is None:
        return "\N{EN DASH}"
    kept = f"\nkept {entry.kept.number}" if entry.kept.value is not None else ""
    return f"{_marked(entry)}\n{entry.score.bounds}{kept}"


def _marked(entry: Entry) -> str:
    return " ".join(part for part in (entry.score.number, entry.sign) if part)


def _counts(tally: tuple[int, int, int]) -> str:
    better, worse, neither = tally
    return f"better in {better}, worse in {worse}, no clear difference in {neither}"
