"""What a run decides for another one that scores its attacked images again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.eps import eps_text
from eval_tasks.config.presets import names
from eval_tasks.crafting.attack import Attack
from eval_tasks.data import Sample
from eval_tasks.data.selection import ids_digest
from eval_tasks.run.documents import is_defended
from eval_tasks.run.records import Run, read_run
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
    fixed: dict[str, Any] = {
        "task": run.settings["task"],
        "attack": made["name"],
        "norm": made["norm"],
        "eps": made["eps"],
        "steps": made["steps"],
        "target": made.get("target"),
        # the attack is made without half precision, whatever its device would choose
        "half": made.get("half") or ("none" if "stages" in made else "auto"),
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


def image_source(
    images_from: Path | None, attack: Attack | None, document: dict[str, Any], samples: Sequence[Sample]
) -> tuple[Run | None, dict[str, Any]]:
    """The run whose images are scored again, checked to be the same attack on the same samples; and run.json's
    document with the model that they were made on, `document` itself where no images are taken."""
    if images_from is None:
        return None, document
    own = document["attack"]
    if attack is None or attack.threat != "transfer":
        raise UserError("saved images are scored under --threat transfer only: they were not made for this model")
    run = read_run(images_from)
    made = run.settings["attack"]
    if made is None:
        raise UserError(f"run {images_from} has no attacked images: it was clean")
    if made.get("early_exit") and made["threat"] == "adaptive":
        raise UserError(
            f"run {images_from} left its images as soon as they fooled its own model: make it without --early-exit"
        )
    if ids_digest(s.id for s in samples) != run.settings["ids"]["sha256"]:
        raise UserError(f"run {images_from} attacked other samples: use the same data, --samples and --seed")
    differs = attack.differs_from(made, own)
    if differs is not None:
        raise UserError(f"run {images_from} was made with another {differs}: {made[differs]}, not {own[differs]}")
    if any(run.settings.get(key) != document.get(key) for key in ("classes", "gallery")):
        raise UserError(f"run {images_from} was made among other classes or captions, or asked for by other templates")
    victim = run.settings["model"]
    twin = victim["name"] == document["model"]["name"] and not is_defended(victim)
    # None is the undefended model, as when the images are crafted anew
    surrogate = made["surrogate"] or (None if twin else victim["name"])
    return run, document | {
        "attack": own | {"surrogate": surrogate},
        "left_out": document["left_out"] or run.settings.get("left_out"),
    }
