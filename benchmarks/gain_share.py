"""How much of full adversarial fine-tuning's gain a cheaper defence has, from a finished `lvlm-radapt compare`.

Rows called "NAME, seed 0", "NAME, seed 1" ... are one defence trained with several seeds: its score of a sample is the
mean over them. Lost beside: what it loses clean beyond what the whole one does. A share is (defence - undefended) /
(whole - undefended) of the adaptive scores, its interval a paired bootstrap over images; that the seeds differ shows
in the shares of each seed beside it.

Run: lvlm-radapt compare scopes --out FOLDER, then: python benchmarks/gain_share.py FOLDER [--whole FARE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval_tasks.metrics import gain_share_ci, paired_difference_ci
from eval_tasks.metrics.intervals import score_ci
from eval_tasks.run.records import Run, images_of, read_run
from lvlm_radapt.experiments.compare.preset import Comparison
from lvlm_radapt.experiments.rows import slug
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import read_json

Scores = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--whole", default="FARE", help="the defence whose gain counts as 100 %%")
    args = parser.parse_args()
    try:
        print_tables(args.folder, args.whole)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def print_tables(folder: Path, whole: str) -> None:
    """A table a column and budget. UserError for a folder that holds no finished comparison, or none of `whole`."""
    comparison = Comparison.model_validate(read_json(folder / "plan.json"))
    if whole not in (names := {_defence(row.name) for row in comparison.rows}):
        raise UserError(f"{folder} has no defence {whole}: choose --whole of {', '.join(sorted(names))}")
    for column in comparison.columns:
        for eps in comparison.eps:
            attacked = f"{slug(column.title)}-adaptive-{slug(eps)}"
            print(f"\n{column.title}, adaptive {eps}, {comparison.steps} steps, n = {comparison.samples}\n")
            print("\n".join(rows(folder, comparison, attacked, whole)))


def rows(folder: Path, comparison: Comparison, attacked: str, whole: str) -> Iterator[str]:
    """The lines of a Markdown table; attacked: the name of the runs to read, one in each row's folder."""
    defences: dict[str, list[Run]] = {}
    for row in comparison.rows:
        defences.setdefault(_defence(row.name), []).append(read_run(folder / "runs" / slug(row.name) / attacked))
    undefended, best = comparison.rows[0].name, defences[whole]
    metric, images = best[0].metrics["metric"], images_of(best[0].samples)
    base, full = _mean(defences[undefended], "adversarial"), _mean(best, "adversarial")
    yield f"| defence | weights, % | clean | lost beside {whole} | adaptive | share of {whole}'s gain, % | by seed |"
    yield "|---|---:|---:|---:|---:|---:|---|"
    for name, runs in defences.items():
        clean, own = _mean(runs, "clean"), _mean(runs, "adversarial")
        cells = [name, _weights(runs), _interval(clean, metric, images)]
        if name in (undefended, whole):
            cells += ["", _interval(own, metric, images), "", ""]
        else:
            loss = _mean(best, "clean") - clean
            low, high = paired_difference_ci(_mean(best, "clean").tolist(), clean.tolist(), images=images)
            each = [_mean([run], "adversarial") for run in runs]
            cells += [f"{loss.mean():+.1f} [{low:+.1f}, {high:+.1f}]", _interval(own, metric, images)]
            cells += _shares(own, each, full, base, images)
        yield "| " + " | ".join(cells) + " |"


def _defence(row: str) -> str:
    """The name of a row less its seed."""
    return row.partition(", seed ")[0]


def _shares(
    own: Scores, each: Sequence[Scores], full: Scores, base: Scores, images: Sequence[str] | None
) -> tuple[str, str]:
    """The share of the gain with its interval, and that of each seed; or that there is no gain."""
    try:
        low, high = gain_share_ci(own.tolist(), full.tolist(), base.tolist(), images=images)
    except UserError:  # the three are of the same samples: the gain is not clear
        return "no clear gain", ""
    share, *seeds = (100 * (one - base).mean() / (full - base).mean() for one in (own, *each))
    return f"{share:.0f} [{100 * low:.0f}, {100 * high:.0f}]", ", ".join(f"{one:.0f}" for one in seeds)


def _mean(runs: Sequence[Run], answer: str) -> Scores:
    """A score a sample, the mean over runs of the same samples."""
    return np.mean([[getattr(sample, answer).score for sample in run.samples] for run in runs], axis=0)


def _interval(scores: Scores, metric: str, images: Sequence[str] | None) -> str:
    low, high = score_ci(scores.tolist(), metric, images)
    return f"{scores.mean():.1f} [{low:.1f}, {high:.1f}]"


def _weights(runs: Sequence[Run]) -> str:
    """How many of the tower's weights were trained, from the log beside the model that was scored."""
    log = Path(runs[0].settings["model"]["name"]) / "training.json"
    if not log.is_file():
        return ""
    told = json.loads(log.read_text())
    return f"{100 * told['trained'] / told['weights']:.1f}"


if __name__ == "__main__":
    main()
