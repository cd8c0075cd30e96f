"""Runs put into the table: which share a row, which are compared, and what a reader has to know of them."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval_tasks.metrics.bootstrap import bootstrap_ci
from eval_tasks.report.disagreements import disagreements
from eval_tasks.report.retrieval_table import FROM_METRICS
from eval_tasks.report.table_formats import NO_SCORE, UNDEFENDED, Cell, Row, Table, difference_cell
from eval_tasks.run.facts import (
    EARLIER,
    base_of,
    defended,
    is_named,
    judged,
    metric_of,
    model_label,
    plain_value,
    setting,
    strength_of,
    threat_of,
    vqa_style_of,
)
from eval_tasks.run.records import Part, Run, Scored, images_of
from eval_tasks.run.run_metrics import mean_score, target_hits
from lvlm_radapt.utils.errors import UserError

NOT_RUN = "not run"
ABOUT_ZERO = 5.0
"""A clean score, of 100, below which a model does not do the task: a captioner of other images has a CIDEr of 1."""
NO_BASE = "the undefended model scores about zero on clean images: gains mean nothing here"
ONLY_TRANSFER = "holds only against attacks that do not know it"
TOO_HIGH = "the transfer attack beats the adaptive one: the adaptive score is too high"
MODEL_SETTINGS = ("dtype", "quantize", "geometry", "asked", "texts", "surrogate", "gradient", "EOT draws", "plug-in")
"""Settings of a row that are its model's own, so that models which differ in them can be ranked."""


def tables(runs: Sequence[Run]) -> dict[str, Table]:
    """One table a preset, in the order of the runs; raises as `comparison`.

    Where runs of a preset score a task's answers by different rules, each rule has a table of its own for that task.
    """
    runs = _distinct(runs)
    mixed = {(preset, task) for preset, task, _ in _rules_that_differ(runs)}
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        preset, task = setting(run, "preset"), setting(run, "task")
        groups[f"{preset}, answers by {vqa_style_of(run)}" if (preset, task) in mixed else preset].append(run)
    return {label: replace(comparison(group), preset=label) for label, group in groups.items()}


def comparison(runs: Sequence[Run]) -> Table:
    """The table of runs that share a preset.

    A transfer and an adaptive run share a row when all else is equal: model and its defence, precision,
    geometry, task, seed, samples and every setting of the attack. The same holds between a defended model and
    the undefended one it is compared with. Raises UserError for no runs, several presets, several rules for the
    answers of one task, two runs that would fill the same cell, and settings or metrics that lack a field.
    """
    runs = _distinct(runs)
    presets = list(dict.fromkeys(setting(run, "preset") for run in runs))
    if len(presets) > 1:
        raise UserError(f"presets never share a table, these runs use {', '.join(presets)}: compare each preset alone")
    for _, task, rules in _rules_that_differ(runs):
        raise UserError(f"runs of {task} score answers by different rules: {', '.join(rules)}: compare each rule alone")
    groups: dict[_Key, _Group] = {}
    for run in runs:
        groups.setdefault(_key(run), _Group()).add(run)
    rows = [row for key, group in groups.items() for row in _rows(key, group, groups)]
    models = list(dict.fromkeys(setting(run, "model", "name") for run in runs))
    defences = list(dict.fromkeys(row.model for row in rows))
    base = {model_label(run): models.index(setting(run, "model", "name")) for run in runs}
    rows.sort(
        key=lambda row: (
            row.task,
            row.attack == "noise",
            row.attack,
            row.eps or 0.0,
            row.steps or 0,
            base[row.model],
            row.defended,
            defences.index(row.model),
        )
    )
    return Table(presets[0], tuple(_told_apart(_with_short_names(rows, models))), _remarks(runs))


def _with_short_names(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows with a folder's own name in place of its whole path, where that still tells the models apart."""
    last = [Path(name).name for name in names]
    short = {
        name: own for name, own in zip(names, last, strict=True) if Path(name).is_absolute() and last.count(own) == 1
    }
    made = []
    for row in rows:
        name = next((one for one in short if row.model == one or row.model.startswith(f"{one} + ")), "")
        made.append(replace(row, model=short[name] + row.model.removeprefix(name)) if name else row)
    return made


_Key = tuple[str, str, str]  # model name, all of its defence, everything else that must be equal
_UNDEFENDED = "null"


class _Group:
    """The runs that differ in nothing but the threat model."""

    def __init__(self) -> None:
        self.single: dict[str, Run] = {}  # by threat: none, noise, natural, adaptive
        self.transfer: dict[str | None, Run] = {}  # by surrogate; None is the model's undefended model

    @property
    def any(self) -> Run:
        """One of its runs."""
        return next(iter((*self.single.values(), *self.transfer.values())))

    def add(self, run: Run) -> None:
        threat = threat_of(run)
        place: dict[Any, Run] = self.transfer if threat == "transfer" else self.single
        index = _surrogate(run) if threat == "transfer" else threat
        if index in place:
            raise UserError(f"{place[index].path} and {run.path} have the same settings: give only one of them")
        place[index] = run


def _rows(key: _Key, group: _Group, groups: Mapping[_Key, _Group]) -> list[Row]:
    stock = _undefended(group.any, key[2], groups)
    rows = []
    for threat, detail in (("none", ""), ("noise", "control"), ("natural", "no attacker")):
        if threat in group.single:
            run = group.single[threat]
            absent = Cell(NOT_RUN if threat == "none" else f"n/a ({threat})")
            transfer = absent if threat == "none" else _score(run, "adversarial", detail)
            rows.append(_row(run, [run], transfer, absent, Cell("n/a"), None, _same_clean(run, groups), {}))
    adaptive = group.single.get("adaptive")
    surrogates: list[str | None] = sorted(group.transfer, key=lambda name: (name is not None, name or ""))
    if not surrogates and adaptive is not None:
        surrogates = [None]
    for surrogate in surrogates:
        transfer_run = group.transfer.get(surrogate)
        present = [run for run in (adaptive, transfer_run) if run is not None]
        has_base = judged(group.any)
        if transfer_run is not None:
            known = surrogate or ("" if has_base else "surrogate not named")
            transfer = _score(transfer_run, "adversarial", f"crafted on {known}" if surrogate else known)
        else:
            transfer = Cell(NOT_RUN if has_base else UNDEFENDED)
        # The same images on the undefended model: its own adaptive run, or one from the same surrogate.
        same_images = stock.single.get("adaptive") if surrogate is None else stock.transfer.get(surrogate)
        gain, transfer_gain = Cell(UNDEFENDED), None
        if has_base:
            gain = _gain(adaptive, stock.single.get("adaptive"))
            if transfer_run is not None and same_images is not None:
                transfer_gain = _difference(transfer_run, same_images, "adversarial")
        hidden = {"surrogate": surrogate or "undefended model"} if transfer_run is not None else {}
        rows.append(
            _row(
                present[0],
                present,
                transfer,
                Cell(NOT_RUN) if adaptive is None else _score(adaptive, "adversarial"),
                gain,
                transfer_gain,
                _same_clean(present[0], groups),
                hidden,
            )
        )
    return rows


def _row(
    run: Run,
    present: Sequence[Run],
    transfer: Cell,
    adaptive: Cell,
    gain: Cell,
    transfer_gain: Cell | None,
    stock: Run | None,
    hidden: Mapping[str, str],
) -> Row:
    attack = setting(run, "attack") or {}
    threat = threat_of(run)
    bounded = threat not in ("none", "natural")
    clean = _score(run, "clean")
    base = (None if stock is None else _score(stock, "clean")) if judged(run) else clean
    no_base = base is not None and base.value is not None and base.value < ABOUT_ZERO
    # a gain under transfer that is clear, over samples of which the adaptive one is not
    only_transfer = not no_base and bool(
        transfer_gain is not None
        and transfer_gain.sign > 0
        and gain.interval is not None
        and gain.sign <= 0
        and not gain.too_few
    )
    return Row(
        model=model_label(run),
        defended=judged(run),
        task=setting(run, "task"),
        metric=metric_of(run),
        attack=str(attack.get("name", "none")),
        norm=attack.get("norm") if bounded else None,
        eps=float(setting(run, "attack", "eps")) if bounded else None,
        steps=attack.get("steps") if bounded else None,
        target=attack.get("target"),
        variant=strength_of(run) if threat == "natural" else "",
        n=len(run.samples),
        clean=clean,
        transfer=transfer,
        adaptive=adaptive,
        gain=gain,
        transfer_gain=transfer_gain,
        clean_change=None if stock is None else _difference(run, stock, "clean"),
        adaptive_loss=next((_loss(one) for one in present if threat_of(one) == "adaptive"), None),
        only_transfer=only_transfer,
        no_base=no_base,
        notes=(*([NO_BASE] if no_base else []), *_notes(present, only_transfer)),
        hidden={**_hidden(run), **hidden},
        folders=tuple(one.path for one in present),
    )


def _notes(present: Sequence[Run], only_transfer: bool) -> list[str]:
    notes = [ONLY_TRANSFER] if only_transfer else []
    if len(present) == 2:
        adaptive, transfer = present
        excess = _difference(adaptive, transfer, "adversarial")
        if excess is not None and excess.sign > 0:
            notes.append(TOO_HIGH)
        clean = [_score(run, "clean").number for run in present]
        if clean[0] != clean[1]:
            notes.append(f"the clean score was {clean[1]} in the transfer run")
    for run in present:
        notes += disagreements(run)
        attacked = [sample.adversarial for sample in run.samples if sample.adversarial is not None]
        zero = sum(one.zero_grad for one in attacked)
        if zero:
            notes.append(f"zero gradient on {zero} of {len(run.samples)} samples ({threat_of(run)})")
        failed = sum(one.failed is not None for one in attacked)
        if failed:
            notes.append(f"the attack failed on {failed} of {len(run.samples)} samples ({threat_of(run)})")
    return notes


def _same_clean(run: Run, groups: Mapping[_Key, _Group]) -> Run | None:
    """A run of the undefended model on the same samples: its clean answers do not depend on the attack."""
    wanted = _context(run)
    for base in _bases(run):
        for (_, defence, _), group in groups.items():
            if defence == _UNDEFENDED and is_named(group.any, base):
                for other in (*group.single.values(), *group.transfer.values()):
                    if _context(other) == wanted:
                        return other
    return None


def _undefended(run: Run, rest: str, groups: Mapping[_Key, _Group]) -> _Group:
    """The runs of the undefended model that are like this one in all else, empty where there are none."""
    for base in _bases(run):
        for (_, defence, other), group in groups.items():
            if defence == _UNDEFENDED and other == rest and is_named(group.any, base):
                return group
    return _Group()


def _bases(run: Run) -> list[str]:
    """What its undefended model may be called: the base of fine-tuned weights, else these weights without a defence."""
    base = base_of(run)
    own = [str(setting(run, "model", "name"))] if defended(run) else []
    return ([] if base is None else [base]) + own


def _gain(adaptive: Run | None, stock: Run | None) -> Cell:
    if adaptive is None:
        return Cell(NOT_RUN)
    if stock is None:
        return Cell("not run (undefended model)")
    return _difference(adaptive, stock, "adversarial") or Cell(NO_SCORE)


def _difference(first: Run, second: Run, part: Part) -> Cell | None:
    """Paired difference over the shared ids; None when there is nothing to subtract."""
    mine, theirs = first.scores(part), second.scores(part)
    shared = [sample for sample in first.samples if sample.id in mine and sample.id in theirs]
    if not shared:
        return None
    others = {sample.id: sample for sample in second.samples}
    images = images_of(shared) or images_of(others[sample.id] for sample in shared)
    return difference_cell([mine[sample.id] for sample in shared], [theirs[sample.id] for sample in shared], images)


def _loss(run: Run) -> Cell | None:
    """Mean of the attack's loss over the samples that have one; None where there is none."""
    known = [
        (s.adversarial.loss, s) for s in run.samples if s.adversarial is not None and s.adversarial.loss is not None
    ]
    if not known:
        return None
    losses = [loss for loss, _ in known]
    interval = bootstrap_ci(losses, images=images_of(sample for _, sample in known))
    return Cell(value=sum(losses) / len(losses), interval=interval)


def _score(run: Run, part: Part, detail: str = "") -> Cell:
    """From the records: what metrics.json says of them is compared, not believed."""
    told = run.metrics.get(part)
    if not isinstance(told, Mapping) or metric_of(run) not in told:
        raise UserError(f"{run.path / 'metrics.json'} lacks the field {part}.{metric_of(run)}: run it again")
    found = mean_score(_answers(run, part), metric_of(run), images_of(run.samples))
    if found is None:
        return Cell(NO_SCORE, detail=detail)
    value, interval, _ = found
    if part == "clean" or not _has_target(run):
        return Cell(value=value, interval=interval, detail=detail)
    hits, (low, high) = target_hits(run.samples)
    rate = 100 * hits / len(run.samples)
    said = f"target in {rate:.1f} % [{low:.1f}, {high:.1f}]"
    return Cell(value=value, interval=interval, detail=detail, success=said, success_rate=rate)


def _has_target(run: Run) -> bool:
    return any(sample.adversarial is not None and sample.adversarial.success is not None for sample in run.samples)


def _answers(run: Run, part: Part) -> list[Scored | None]:
    return [getattr(sample, part) for sample in run.samples]


def _surrogate(run: Run) -> str | None:
    """None when the attack was crafted on the defended model's own undefended model."""
    named = setting(run, "attack").get("surrogate")
    twin = judged(run) and named in (setting(run, "model", "name"), base_of(run))
    return None if named is None or twin else str(named)


def shared_settings(run: Run) -> str:
    """What runs of different models must have in common to be ranked, as canonical JSON: the task and its rules, the
    samples, and every setting of the attack. How a model opens a conversation is its own."""
    asked = run.settings.get("asked")
    if isinstance(asked, Mapping):
        asked = {key: value for key, value in asked.items() if key != "conversation"}
    shared = {key: value for key, value in _context(run).items() if key not in MODEL_SETTINGS}
    return _canonical([shared, asked, metric_of(run), vqa_style_of(run), _attack_settings(run)])


def _attack_settings(run: Run) -> dict[str, Any]:
    attack = setting(run, "attack") or {}
    named = {key: value for key, value in attack.items() if key not in ("threat", "surrogate", "eps_8bit")}
    return {"seed": run.settings.get("seed"), "attack": _filled(named)}


def _key(run: Run) -> _Key:
    rest = _context(run) | _attack_settings(run)
    model = setting(run, "model")
    defence = [model["radapt"], model.get("defence")] if defended(run) else None
    return setting(run, "model", "name"), _canonical(defence), _canonical(rest)


def _context(run: Run) -> dict[str, Any]:
    """What a clean score depends on, besides the model itself."""
    return {
        "task": setting(run, "task"),
        "preset": setting(run, "preset"),
        "samples": setting(run, "ids", "sha256"),
        "dtype": setting(run, "model").get("dtype"),
        "quantize": setting(run, "model").get("quantize"),
        "geometry": setting(run, "model").get("geometry"),
        "tokenizer": run.settings.get("tokenizer"),
        **_asked(run),
    }


def _asked(run: Run) -> dict[str, Any]:
    """How a language model is asked; what an image encoder chooses among, with which texts, and whose they are."""
    said: dict[str, Any] = {}
    if asked := run.settings.get("asked"):  # two presets of the user's own may have one name
        said["asked"] = hashlib.sha256(_canonical(asked).encode()).hexdigest()
    if classes := run.settings.get("classes"):
        said |= {"classes": classes["sha256"], "templates": " | ".join(classes["templates"])}
    if gallery := run.settings.get("gallery"):
        said["gallery"] = gallery["sha256"]
    if texts := run.settings.get("texts"):
        said["texts"] = texts
    return said


def _hidden(run: Run) -> dict[str, str]:
    """Settings that no column shows, in words."""
    shown = ("name", "norm", "eps", "eps_8bit", "steps", "target", "threat", "surrogate")
    attack = setting(run, "attack") or {}
    context = {key: value for key, value in _context(run).items() if key not in ("task", "preset")}
    context |= {key: context[key][:8] for key in ("samples", "asked", "classes", "gallery") if key in context}
    rest = {"seed": run.settings.get("seed"), **{k: v for k, v in attack.items() if k not in shown}}
    if defence := setting(run, "model").get("defence"):
        code = (defence.get("plugin") or {}).get("sha256")
        rest |= {"gradient": defence["gradient"], "EOT draws": defence.get("draws"), "plug-in": code and code[:8]}
    return {key.replace("_", " "): plain_value(value) for key, value in (context | rest).items()}


def _told_apart(rows: Sequence[Row]) -> list[Row]:
    """Rows that would read the same get the settings in which they differ."""
    alike: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        alike[_reads(row)].append(row)
    result = []
    for row in rows:
        group = alike[_reads(row)]
        keys = [key for key in row.hidden if len({other.hidden.get(key) for other in group}) > 1]
        told = ", ".join([row.variant] * bool(row.variant) + [f"{key} {row.hidden[key]}" for key in keys])
        result.append(replace(row, variant=told))
    return result


def _reads(row: Row) -> tuple[object, ...]:
    return (row.model, row.task, row.metric, row.attack, row.norm, row.eps, row.steps, row.target, row.variant)


def _remarks(runs: Sequence[Run]) -> tuple[str, ...]:
    samples: dict[str, set[str]] = defaultdict(set)
    rules: dict[str, str] = {}
    for run in runs:
        samples[setting(run, "task")].add(setting(run, "ids", "sha256"))
        if (style := vqa_style_of(run)) is not None:
            rule = setting(run, "answers", "rule") if style != EARLIER else "which was none of the official ones"
            rules[setting(run, "task")] = f"{style} ({rule})"
    said = [f"Answers of {task} are scored by {rule}." for task, rule in sorted(rules.items())]
    unnamed = sorted({setting(run, "task") for run in runs if images_of(run.samples) is None})
    if unnamed:
        said.append(
            f"Some runs of {', '.join(unnamed)} do not name their images, as earlier versions wrote them: their "
            "intervals are over samples."
        )
    if any("retrieval" in run.metrics for run in runs):
        said.append(FROM_METRICS)
    mixed = sorted(task for task, digests in samples.items() if len(digests) > 1)
    if mixed:
        said.append(f"Rows of {', '.join(mixed)} are over different samples: do not compare them with each other.")
    return tuple(said)


def _rules_that_differ(runs: Sequence[Run]) -> list[tuple[str, str, list[str]]]:
    """(preset, task, rules) where runs normalise the answers of one task in several ways."""
    found: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for run in runs:
        if (style := vqa_style_of(run)) is not None:
            found[setting(run, "preset"), setting(run, "task")][style] = None
    return [(preset, task, [*rules]) for (preset, task), rules in found.items() if len(rules) > 1]


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """Each folder once, however often it was named."""
    found = list({run.path.resolve(): run for run in runs}.values())
    if not found:
        raise UserError("there are no runs to compare: give at least one finished run folder")
    for run in found:  # before anything reads deeper
        setting(run, "model", "name")
        threat_of(run)
    return found


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None and value is not False}


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)
