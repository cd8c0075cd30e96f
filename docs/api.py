"""Builds the API reference from the docstrings:

python docs/api.py site
"""

from __future__ import annotations

import sys
from pathlib import Path

import lvlm_radapt

MODULES = (
    "lvlm_radapt",
    "lvlm_radapt.plot",
    "lvlm_radapt.models.base",
    "lvlm_radapt.models.family",
    "lvlm_radapt.models.messages",
    "lvlm_radapt.utils.errors",
    "attacks",
    "attacks.autoattack",
    "attacks.blackbox",
    "attacks.classification",
    "attacks.suite",
    "attacks.lowfrequency",
    "attacks.norms",
    "attacks.pgd",
    "eval_tasks.audit",
    "eval_tasks.data",
    "attacks.eps",
    "eval_tasks.api",
    "eval_tasks.metrics",
    "eval_tasks.crafting.attack",
    "eval_tasks.crafting.batches",
    "eval_tasks.crafting.make_attack",
    "eval_tasks.config.presets",
    "eval_tasks.run.records",
    "eval_tasks.report.page",
    "eval_tasks.run.evaluate",
    "eval_tasks.tasks.base",
    "eval_tasks.tasks.make_task",
    "eval_tasks.tasks.text",
    "eval_tasks.run.options",
    "eval_tasks.report.table_formats",
    "eval_tasks.report.build_table",
)
"""What people build on: its names change only on purpose."""


def build(site: Path) -> None:
    """Write index.html and a page a module of MODULES into `site`."""
    import pdoc
    import pdoc.render

    for name in lvlm_radapt.__all__:  # they are imported on first use, which pdoc does not wait for
        setattr(lvlm_radapt, name, getattr(lvlm_radapt, name))
    pdoc.render.configure(show_source=False, footer_text="lvlm-radapt")
    pdoc.pdoc(*MODULES, output_directory=site)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
