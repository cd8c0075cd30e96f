"""A comparison from the words of a command line: an undefended model, and the rows that are scored against it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_tasks.config.presets import load_protocol
from eval_tasks.crafting.make_attack import make_attack
from lvlm_radapt.defences import registry
from lvlm_radapt.experiments.compare.preset import Comparison, named_attack
from lvlm_radapt.experiments.rows import LONGEST_NAME, slug
from lvlm_radapt.loading.load import is_encoder, is_robustified
from lvlm_radapt.loading.locate import EMBEDDED
from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.plugins import is_plugin

TEST, TRAIN = "test", "images"
RATES = {"scenes": 8e-3, "published": 1e-4}
"""By recipe, the learning rate of low-rank changes: some ten times that of the weights themselves."""

DEFENCES: dict[str, dict[str, Any]] = {
    "filter": {"radapt": {"cutoff": 40.0, "alpha": 0.0}},
    "anchor": {"radapt": {"cutoff": None, "alpha": 1.0}},
    "radapt": {"radapt": {"cutoff": 40.0, "alpha": 1.0}},
    "learned": {"radapt": {"cutoff": 40.0, "alpha": 1.0, "anchor": "learned"}, "learn": {}},
}
"""Row words that put R-Adapt into the model: the filter, the white anchor, both, and the filter with a learned one."""
OTHERS = tuple(name for name in registry.DEFENCES if name not in DEFENCES)
"""Row words that put one of the other defences around it, as plug-ins do."""
WEIGHTS: dict[str, dict[str, Any]] = {
    "low-rank": {"finetune": {"rank": 16}},
    "shallow": {"finetune": {"scope": "shallow"}},
    "fare": {"finetune": {}},
}
"""Row words that fine-tune the vision tower (FARE): by changes of low rank, its first layers alone, or all of it."""
TRAINED = ("learned", *WEIGHTS)
_KNOWN = (
    f"{', '.join((*DEFENCES, *OTHERS, *WEIGHTS))}, low-rank+filter and the like, a plug-in as pkg.module:Name, or a "
    "model's folder or Hugging Face id"
)


def comparison_of(
    words: Sequence[str],
    *,
    task: str,
    data: Path,
    preset: str,
    attack: str | None = None,
    eps: Sequence[str] = ("4/255",),
    steps: int | None = None,
    samples: int | None = None,
    early_exit: bool = False,
    images: Path | None = None,
    image_count: int = 2000,
    train_steps: int | None = None,
) -> Comparison:
    """The first word's model, undefended, beside a row for each other word. All are scored on one task and data folder.

    A row word is a defence (of DEFENCES, OTHERS, or a plug-in's name), one of WEIGHTS, one of each joined by +, or the
    folder or Hugging Face id of a model of the same family. images: a folder to train on, for rows of TRAINED;
    image_count, train_steps: how much. What is None is the preset's, the attack's or the method's own.

    UserError, one line, for too few words, a word that is no row, and rows that lack images.
    """
    base, rows = words[0], words[1:]
    if not rows:
        raise UserError(f"compare needs rows beside {base}: {_KNOWN}")
    if is_robustified(base):
        raise UserError(f"{base} is robustified: the first model is the undefended one, name its base")
    twice = next((word for word in words if words.count(word) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice: name each row once")
    trained = [word for word in rows if {*word.split("+")} & {*TRAINED}]
    if trained and images is None:
        raise UserError(f"row {trained[0]} is trained: name a folder of images with --images, none that is scored")
    if images is not None and not trained:
        raise UserError(f"--images is for rows that are trained ({', '.join(TRAINED)}): leave it out")
    attack = attack or ("apgd-ce" if is_encoder(base) else "e2e")
    protocol = load_protocol(preset)
    made = make_attack(named_attack(attack, protocol))
    steps = steps or (None if made is None else made.gradient_steps)
    if steps is None:
        raise UserError(f"--attack {attack} has no number of steps of its own: choose e2e, ensemble or apgd-ce")
    folders = {TEST: data, TRAIN: images}
    training = {"set": TRAIN, "images": image_count, "steps": train_steps}
    finetuning = training | {"recipe": "scenes" if base in EMBEDDED else "published"}
    return Comparison.checked(
        name="models",
        description=f"{Path(base).name} on {task}, undefended and defended",
        protocol=preset,
        samples=samples or protocol.samples or MOST,
        steps=steps,
        eps=list(eps),
        sets={name: {"folder": str(one.expanduser().resolve())} for name, one in folders.items() if one is not None},
        columns=[{"title": task, "task": task, "model": base, "set": TEST, "attack": attack, "early_exit": early_exit}],
        rows=[
            {"name": name, **({} if word is base else _row(word, training, finetuning))}
            for name, word in zip(_names(words), words, strict=True)
        ],
    )


def _row(word: str, training: dict[str, Any], finetuning: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row but for its name."""
    parts = word.split("+")
    defences = [part for part in parts if part in DEFENCES or _is_other(part)]
    unknown = next((part for part in parts if part not in defences and part not in WEIGHTS), None)
    if unknown is not None:
        if word in EMBEDDED or "/" in word or Path(word).expanduser().exists():
            return {"model": word}
        near = difflib.get_close_matches(unknown.lower(), [*DEFENCES, *OTHERS, *WEIGHTS, *EMBEDDED], n=1, cutoff=0.5)
        raise UserError(f"row {word!r} is unknown: {f'did you mean {near[0]}? ' if near else ''}{_KNOWN}")
    for found, what in ((len(defences), "defences"), (len(parts) - len(defences), "ways to fine-tune")):
        if found > 1:
            known = ", ".join((*DEFENCES, *OTHERS))
            raise UserError(f"row {word} joins two {what}: join one of {', '.join(WEIGHTS)} and {known}")
    fields: dict[str, Any] = {}
    for part in parts:
        fields |= DEFENCES.get(part) or WEIGHTS.get(part) or {"defence": part}
    if "learn" in fields:
        fields["learn"] = training
    if "finetune" in fields:
        rate = {"lr": RATES[finetuning["recipe"]]} if "rank" in fields["finetune"] else {}
        fields["finetune"] = finetuning | rate | fields["finetune"]
    return fields


def _is_other(part: str) -> bool:
    return part in OTHERS or ("/" not in part and is_plugin("defence", part))


def _names(words: Sequence[str]) -> list[str]:
    """What the rows are called: a folder by its last part, unless another row has that name."""
    names = [Path(word).name for word in words]
    folders = [slug(name) for name in names]
    return [
        (name if folders.count(slug(name)) == 1 else word)[-LONGEST_NAME:]
        for name, word in zip(names, words, strict=True)
    ]
