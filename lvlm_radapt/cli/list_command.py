"""`lvlm-radapt list`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from lvlm_radapt.cli.app import app, console
from lvlm_radapt.cli.group import exit_unless_rank0

if TYPE_CHECKING:
    from lvlm_radapt.models.family import Family


Listing = Literal["models", "defences", "tasks", "attacks", "presets"]


@app.command("list")
def list_(
    what: Annotated[Listing | None, typer.Argument(help="What to list; everything when left out.")] = None,
) -> None:
    """List the embedded models, defences, tasks, attacks and presets."""
    exit_unless_rank0()
    from eval_tasks.config import presets
    from lvlm_radapt.defences.registry import DEFENCES
    from lvlm_radapt.experiments.compare.preset import load_comparison
    from lvlm_radapt.loading.locate import EMBEDDED, embedded_models
    from lvlm_radapt.models.families import encoder_families, lvlm_families
    from lvlm_radapt.utils.plugins import available, summary

    def attack_text(name: str) -> str:
        return presets.load_attack(name).description

    def defence_text(name: str, package: str) -> str:
        return f"of the package {package}" if package else summary(DEFENCES[name])

    def read_by(families: Mapping[str, Family]) -> dict[str, str]:
        return {kind: f"checkpoints of {family.available[kind]}" for kind, family in families.items()}

    sections: dict[Listing, dict[str, dict[str, str]]] = {
        "models": {
            "models inside the package": {name: EMBEDDED[name] for name in embedded_models()},
            "families, by model_type (original LLaVA too)": read_by(lvlm_families()),
            "image encoders, for imagefolder and --surrogate (and open_clip files)": read_by(encoder_families()),
        },
        "defences": {
            "defences, for --defence (or your own class, as pkg.module:Name)": {
                name: defence_text(name, package) for name, package in available("defence", DEFENCES).items()
            }
        },
        "tasks": {"tasks": {name: presets.load_task_config(name).description for name in presets.names("tasks")}},
        "attacks": {"attacks": {name: attack_text(name) for name in presets.names("attacks")}},
        "presets": {
            "presets": {name: presets.load_protocol(name).description for name in presets.names("protocols")},
            "comparisons": {name: load_comparison(name).description for name in presets.names("comparisons")},
            "recipes of finetune": {name: presets.load_recipe(name).description for name in presets.names("finetune")},
        },
    }
    for section, parts in sections.items():
        for title, entries in parts.items() if what in (None, section) else ():
            table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
            table.add_column(style="bold", no_wrap=True)
            table.add_column()
            for name, text in entries.items():
                table.add_row(name, text)
            console.print(table)
            console.print()
