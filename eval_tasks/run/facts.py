"""What a run says of itself: its settings by name, model, metric and threat model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attacks.eps import budget_text
from eval_tasks.run.documents import is_defended
from eval_tasks.run.records import Run
from lvlm_radapt.utils.errors import UserError

EARLIER = "an earlier rule"
"""The style of VQA scores in runs made before runs named it. It is none of the official ones."""


_OF_EVERY_ATTACK = frozenset(
    {"name", "loss", "norm", "eps", "eps_8bit", "steps", "target", "threat", "surrogate", "plugin"}
)


def model_label(run: Run) -> str:
    """`tiny-llava`, or `tiny-llava + R-Adapt (cutoff 40, alpha 1, interpolate, white)`."""
    setting(run, "model", "name"), setting(run, "model", "radapt")
    return model_words(setting(run, "model"))


def model_words(model: Mapping[str, Any]) -> str:
    """The same of the entry `model` in run.json or audit.json. A plug-in goes by its whole path, never by a name that
    it gives itself."""
    said, defence = [str(model["name"])], model.get("defence")
    if model["radapt"] is not None:
        said.append(f"R-Adapt ({_radapt_text(model['radapt'])})")
    if defence is not None:
        settings = ", ".join(f"{key} {plain_value(value)}" for key, value in defence["settings"].items())
        name = defence["plugin"]["name"] if defence.get("plugin") else defence["name"]
        said.append(f"{name} ({settings})" if settings else name)
    return " + ".join(said)


def defended(run: Run) -> bool:
    """Whether the run's model had a defence of any kind."""
    setting(run, "model", "radapt")
    return is_defended(setting(run, "model"))


def base_of(run: Run) -> str | None:
    """The model that the weights were fine-tuned from, or that is named as baseline; None for neither."""
    base = setting(run, "model").get("tuned_from")
    return None if base is None else str(base)


def judged(run: Run) -> bool:
    """Whether the run's model is measured against an undefended one: it has a defence, or its weights have a base."""
    return defended(run) or base_of(run) is not None


def is_named(run: Run, model: str) -> bool:
    """Whether the run is of the model of that name: also where one of the two is the full path of a folder."""
    name = str(setting(run, "model", "name"))
    return model in (name, str(Path(name).expanduser().resolve()))


def setting(run: Run, *path: str) -> Any:
    """A value of run.json; UserError naming the field when it is not there."""
    value: Any = run.settings
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            raise UserError(f"{run.path / 'run.json'} lacks the field {'.'.join(path)}: run it again")
        value = value[part]
    return value


def metric_of(run: Run) -> str:
    """`cider`, `vqa_accuracy`, ...; UserError when metrics.json does not say."""
    metric = run.metrics.get("metric")
    if not isinstance(metric, str):
        raise UserError(f"{run.path / 'metrics.json'} lacks the field metric: run it again")
    return metric


def vqa_style_of(run: Run) -> str | None:
    """How answers were normalised: a style of `eval_tasks.metrics.vqa`, or EARLIER for a run that does not say; None
    where the score is no VQA accuracy."""
    if metric_of(run) != "vqa_accuracy":
        return None
    return str(setting(run, "answers", "style")) if "answers" in run.settings else EARLIER


def threat_of(run: Run) -> str:
    """`adaptive`, `transfer`, `natural` (no attacker), `noise` (knows no model, whatever is recorded) or `none` (no
    attack); UserError where run.json says something else."""
    name = "none" if setting(run, "attack") is None else setting(run, "attack", "name")
    if name in ("none", "noise"):
        return str(name)
    threat = setting(run, "attack", "threat")
    if threat not in ("adaptive", "transfer", "natural"):
        raise UserError(
            f"{run.path / 'run.json'}: attack.threat is {threat!r}, it must be adaptive, transfer or natural"
        )
    return str(threat)


def strength_of(run: Run) -> str:
    """How strong the run's attack is, in words: its norm and eps. What no attacker makes has no budget: its own
    settings."""
    attack = setting(run, "attack")
    if threat_of(run) != "natural":
        return f"{attack['norm']} {budget_text(attack['eps'], attack['norm'])}"
    own = {key: value for key, value in attack.items() if key not in _OF_EVERY_ATTACK}
    return ", ".join(f"{key.replace('_', ' ')} {plain_value(value)}" for key, value in own.items())


def plain_value(value: object) -> str:
    """A setting in words: yes and no, none, numbers without needless digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _radapt_text(radapt: Mapping[str, Any]) -> str:
    parts = []
    if radapt.get("cutoff") is None:
        parts.append("no filter")
    else:
        unit = " per image side" if radapt.get("cutoff_unit") == "image" else ""
        parts.append(f"cutoff {plain_value(radapt['cutoff'])}{unit}")
        if radapt.get("boundary") == "periodic":
            parts.append("periodic")
    if radapt.get("alpha") == 0:
        parts.append("no anchor")
    else:
        parts.append(f"alpha {plain_value(radapt.get('alpha'))}")
        parts += [str(radapt[key]) for key in ("mix", "anchor") if key in radapt]
        if radapt.get("anchor_from") is not None:
            parts[-1] += f" from {radapt['anchor_from']}"
    return ", ".join(parts)
