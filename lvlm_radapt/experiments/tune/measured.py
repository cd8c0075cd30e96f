"""What the runs of a sweep say of each setting, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval_tasks.metrics import Interval, bootstrap_ci
from eval_tasks.report.build_table import comparison
from eval_tasks.report.table_formats import Cell, Row
from eval_tasks.run.facts import model_label
from eval_tasks.run.records import Run, images_of
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.experiments.tune.knobs import point_name, point_text

CELLS = ("clean", "transfer", "adaptive", "clean_change", "transfer_gain", "gain")


@dataclass(frozen=True)
class Measured:
    """One setting's scores with their 95 % intervals, and their paired differences to the undefended model's.

    differences: adaptive score minus the undefended model's, a sample each, for intervals at other levels; images: the
    image of each, as in `bootstrap_ci`.
    """

    point: RAdaptConfig
    row: Row
    differences: tuple[float, ...]
    images: tuple[str, ...] | None = None

    def gain_at(self, level: float) -> Interval:
        """The interval of the gain under the adaptive attack at that confidence level."""
        # an interval far out in the tails needs more draws than one of 95 %
        return bootstrap_ci(self.differences, images=self.images, level=level, resamples=20_000)

    def cell(self, name: str) -> Cell:
        """One of CELLS; words where there is no number."""
        found: Cell | None = getattr(self.row, name)
        return Cell("no score") if found is None else found

    def to_dict(self) -> dict[str, Any]:
        """As tune.json keeps it; the curves are drawn from this."""
        return {
            "name": point_name(self.point),
            "text": point_text(self.point),
            "cutoff": self.point.cutoff,
            "alpha": self.point.alpha,
            "mix": self.point.mix,
            **{name: numbers_of(self.cell(name)) for name in CELLS},
            "notes": list(self.row.notes),
        }


def measure(point: RAdaptConfig, undefended: Sequence[Run], transfer: Run, adaptive: Run) -> Measured:
    """A setting beside the undefended model. undefended: its runs; the first under its own adaptive attack."""
    ours = model_label(adaptive)
    row = next(row for row in comparison([*undefended, transfer, adaptive]).rows if row.model == ours)
    theirs, mine = (run.scores("adversarial") for run in (undefended[0], adaptive))
    shared = [sample for sample in adaptive.samples if sample.id in mine and sample.id in theirs]
    images = images_of(shared)
    differences = tuple(mine[sample.id] - theirs[sample.id] for sample in shared)
    return Measured(point, row, differences, None if images is None else tuple(images))


def numbers_of(cell: Cell) -> Mapping[str, float | None]:
    """value, low, high; None where there is no number."""
    return dict(zip(("value", "low", "high"), cell.numbers or (None, None, None), strict=True))
