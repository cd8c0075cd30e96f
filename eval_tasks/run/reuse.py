"""What a run decides for another one that scores its attacked images again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.eps import eps_text
from eval_tasks.config.presets import names
from eval_tasks.run.records import read_run
from lvlm_radapt.utils.budget import parse_eps
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True)
class Taken:
    """The flags of `eval` by name, and the ids of the samples in order."""

    flags: dict[str, Any]
    ids: tuple[str, ...]


def taken_from(folder: Path, given: Mapping[str, Any]) -> Taken:
    """What the run in `folder` was made with. given: the user's own flags, None where they are left out.

    Raises UserError for a flag that says something else, for a run without attacked images, and where the preset is
    left out and does not ship. Another preset may be given: it asks the model, while the images are what they are.
    """
    run = read_run(folder)
    made = run.settings["attack"]
    if made is None:
        raise UserError(f"run {folder} has no attacked images: it was clean")
    staged = made["loss"] == "ensemble"
    fixed: dict[str, Any] = {
        "task": run.settings["task"],
        "attack": made["name"],
        "norm": made["norm"],
        "eps": made["eps"],
        "steps": made["steps"],
        "target": made["target"],
        "half": made.get("half") or ("none" if staged else "auto"),
        "early_exit": made.get("early_exit", False),
        "samples": len(run.samples),
        "seed": run.settings["seed"],
    }
    for flag, value in given.items():
        if flag == "preset" or value is None:
            continue
        if flag == "eps":
            value = parse_eps(value, made["norm"])
        elif flag == "target":
            value = " ".join(value.split())
        if value != fixed[flag]:
            was, wanted = (eps_text(one, made["norm"]) if flag == "eps" else one for one in (fixed[flag], value))
            name = flag.replace("_", "-")
            raise UserError(f"run {folder} was made with another {name}: {was}, not {wanted}; leave --{name} out")
    preset = given.get("preset") or run.settings["preset"]
    if given.get("preset") is None and preset not in names("protocols"):
        raise UserError(f"run {folder} was made with preset {preset}, a file of yours: name it with --preset")
    exact = {"eps": repr(float(made["eps"])), "preset": preset}
    return Taken(fixed | exact, tuple(record.id for record in run.samples))
