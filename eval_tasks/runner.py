"""The evaluation loop: clean answers, attack, 8-bit PNG on disk, answers to it, scores, run folder.

The unit of work is a chunk of sample ids, a pure function of the selected ids and the chunk size. A run that
was killed redoes at most the chunks that were in flight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval_tasks.captioning import CaptionScores
from eval_tasks.crafting import AttackPlan, Crafted, NotFiniteError, check_plan, craft, sample_seed
from eval_tasks.data import Sample, check_images, chunks, load_task, open_image, select, tasks
from eval_tasks.metrics import bootstrap_ci
from eval_tasks.metrics.tokenizers import TokenizerName
from eval_tasks.presets import Protocol, TaskConfig
from eval_tasks.quantise import from_8bit
from eval_tasks.records import Attacked, Run, RunFolder, SampleRecord, Scored, ids_digest, read_run
from eval_tasks.vqa import VqaScores
from lvlm_radapt.errors import UserError
from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel
from lvlm_radapt.models.quantised import quantisation_of

GALLERY = 24  # samples whose clean canvas is kept too, for the report


@dataclass(frozen=True)
class EvalSettings:
    """One evaluation, apart from the model. `attack` None scores clean images only; `samples` None takes the
    whole set. Chunk and batch size are part of a run's identity: they decide the order of float sums."""

    task: str
    data: Path
    protocol: Protocol
    attack: AttackPlan | None
    samples: int | None
    seed: int
    chunk_size: int = 64
    batch_size: int = 32
    tokenizer: TokenizerName = "ptb"

    def describe(self) -> str:
        """The attack in a few words, for progress bars."""
        if self.attack is None:
            return "clean"
        return " ".join(filter(None, (self.attack.config.name, self.attack.threat)))


Advance = Callable[[int, str], None]
"""Called with (samples done since the last call, a remark or "")."""


def evaluate(
    model: LVLM,
    settings: EvalSettings,
    out: Path,
    *,
    surrogate: PixelModel | None = None,
    images_from: Path | None = None,
    resume: bool = False,
    command: str = "",
    advance: Advance = lambda done, text: None,
) -> Run:
    """Score `model` and leave a complete run folder at `out`.

    images_from: a finished run whose attacked images are scored instead of crafting new ones; refused unless
        attack, budget, samples and canvas are this run's. Only for threat model transfer.

    Raises UserError before anything is written when data, attack and models do not fit together.
    """
    samples = load_task(settings.task, settings.data)
    task = tasks()[settings.task]
    samples, note = select(samples, settings.samples, settings.seed)
    check_images(samples)
    for path in dict.fromkeys(s.image for s in samples):
        open_image(path)  # a damaged file is named now, not hours into the run
    plan = settings.attack
    if plan is not None:
        check_plan(plan, model, surrogate)
    scores = _scores(task, samples, settings)
    document = _document(model, settings, surrogate, command)
    source = _image_source(images_from, document, samples)
    folder = RunFolder(out).create(document, [s.id for s in samples], resume=resume)
    if folder.finished:
        advance(len(samples), "finished already")
        return read_run(out)
    done = folder.done_ids()
    gallery = {s.id for s in samples[:GALLERY]}
    started = time.monotonic()
    for chunk in chunks(samples, settings.chunk_size):
        if all(s.id in done for s in chunk):
            advance(len(chunk), "done before")
            continue
        for piece, batch in _batches(model, chunk, settings.batch_size):
            records = _evaluate_batch(model, settings, task, scores, folder, piece, batch, surrogate, source, gallery)
            for record in records:
                folder.append(record)
            advance(len(piece), "")
    remarks = [note] if note else []
    if plan is not None and model.views_apart:
        remarks.append("the model cuts images into views, each attacked on its own: more than a real image can do")
    folder.finish(_metrics(folder.records(), task, plan, remarks, time.monotonic() - started))
    return read_run(out)


def _scores(task: TaskConfig, samples: Sequence[Sample], settings: EvalSettings) -> CaptionScores | VqaScores:
    if task.kind == "caption":
        return CaptionScores(samples, tokenizer=settings.tokenizer)
    assert task.style is not None
    return VqaScores(samples, style=task.style)


def _document(model: LVLM, settings: EvalSettings, surrogate: PixelModel | None, command: str) -> dict[str, Any]:
    """The settings as run.json keeps them; what is in here must be equal for a run to be resumed."""
    plan = settings.attack
    return {
        "command": command,
        "model": {
            "name": model.label,
            "tower": model.tower_name,
            "radapt": model.radapt.to_dict() if model.radapt else None,
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantize": quantisation_of(model.hf),
            "device": model.device.type,
            "attn": model.hf.config._attn_implementation,
            "geometry": model.geometry,
            "views_apart": model.views_apart,
            "image_backend": model.image_backend,
        },
        "task": settings.task,
        "data": str(settings.data),
        "preset": settings.protocol.name,
        "attack": None if plan is None else {**plan.settings(), "surrogate": surrogate.name if surrogate else None},
        "seed": settings.seed,
        "chunk_size": settings.chunk_size,
        "batch_size": settings.batch_size,
        "tokenizer": settings.tokenizer,
    }


def _batches(model: LVLM, chunk: Sequence[Sample], batch_size: int) -> Iterator[tuple[list[Sample], PixelBatch]]:
    """The chunk's samples in groups of one canvas shape, at most `batch_size` at a time."""
    images = [open_image(s.image) for s in chunk]
    groups: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(model.canvas(image), []).append(i)
    for rows in groups.values():
        for piece in chunks(rows, batch_size):
            yield [chunk[i] for i in piece], model.pixels([images[i] for i in piece])


def _evaluate_batch(
    model: LVLM,
    settings: EvalSettings,
    task: TaskConfig,
    scores: CaptionScores | VqaScores,
    folder: RunFolder,
    samples: list[Sample],
    batch: PixelBatch,
    surrogate: PixelModel | None,
    source: RunFolder | None,
    gallery: set[str],
) -> list[SampleRecord]:
    started = time.monotonic()
    prompts = [settings.protocol.prompt(task, s.question) for s in samples]
    tokens = settings.protocol.tokens(settings.task)

    def answer(of: PixelBatch) -> list[Scored]:
        outputs = dict(zip((s.id for s in samples), model.generate(of, prompts, max_new_tokens=tokens), strict=True))
        graded = scores.score(outputs)
        return [Scored(output=outputs[s.id], score=graded[s.id]) for s in samples]

    clean = answer(batch)
    attacked: list[Attacked | None] = [None] * len(samples)
    plan = settings.attack
    if plan is not None:
        seeds = [sample_seed(settings.seed, s.id) for s in samples]
        if source is None:
            targets = [scores.target(s) for s in samples]
            try:
                crafted = craft(model, batch, plan, prompts=prompts, targets=targets, seeds=seeds, surrogate=surrogate)
            except NotFiniteError as error:
                ids = ", ".join(samples[i].id for i in error.samples)
                raise UserError(
                    f"{(surrogate or model).name} in {str(model.dtype).removeprefix('torch.')}: the attack's "
                    f"{error} on sample {ids}: use --dtype float32"
                ) from error
        else:
            crafted = _reuse(source, samples, batch)
        for sample, pixels in zip(samples, crafted.pixels, strict=True):
            folder.save_image(sample.id, pixels)
        # what is scored is what lies on the disk
        read = [from_8bit(folder.load_image(s.id)).to(batch.x.device) for s in samples]
        scored_batch = batch.replace(torch.stack(read))
        distance = (scored_batch.x - batch.x).flatten(1)
        answers = answer(scored_batch)
        attacked = [
            Attacked(
                output=a.output,
                score=a.score,
                loss=crafted.loss[i],
                linf=float(distance[i].abs().max()),
                l2=float(distance[i].norm()),
                zero_grad=crafted.zero_grad[i],
            )
            for i, a in enumerate(answers)
        ]
    for i, sample in enumerate(samples):
        if sample.id in gallery:
            folder.save_image(sample.id, (batch.x[i] * 255).round().to("cpu").byte(), under="clean")
    seconds = (time.monotonic() - started) / len(samples)
    return [
        SampleRecord(
            id=s.id,
            question=s.question,
            references=s.references,
            clean=clean[i],
            adversarial=attacked[i],
            seconds=seconds,
        )
        for i, s in enumerate(samples)
    ]


def _image_source(images_from: Path | None, document: dict[str, Any], samples: list[Sample]) -> RunFolder | None:
    """The run whose images are scored again, checked to be the same attack on the same samples."""
    if images_from is None:
        return None
    attack = document["attack"]
    if attack is None or attack["threat"] != "transfer":
        raise UserError("saved images are scored under --threat transfer only: they were not made for this model")
    run = read_run(images_from)
    made = run.settings["attack"]
    if made is None:
        raise UserError(f"run {images_from} has no attacked images: it was clean")
    if ids_digest(s.id for s in samples) != run.settings["ids"]["sha256"]:
        raise UserError(f"run {images_from} attacked other samples: use the same data, --samples and --seed")
    differs = [
        key
        for key in (
            "name",
            "eps",
            "norm",
            "steps",
            "restarts",
            "random_start",
            "step_scale",
            "at",
            "distance",
        )
        if made[key] != attack[key]
    ]
    if differs:
        raise UserError(
            f"run {images_from} was made with another {differs[0]}: {made[differs[0]]}, not {attack[differs[0]]}"
        )
    victim = run.settings["model"]
    twin = victim["name"] == document["model"]["name"] and victim["radapt"] is None
    # None is the undefended twin, as when the images are crafted anew
    attack["surrogate"] = made["surrogate"] or (None if twin else victim["name"])
    return RunFolder(images_from)


def _reuse(source: RunFolder, samples: list[Sample], batch: PixelBatch) -> Crafted:
    pixels = [source.load_image(s.id) for s in samples]
    for sample, image in zip(samples, pixels, strict=True):
        if image.shape != batch.x.shape[1:]:
            got, wanted = "x".join(map(str, image.shape[1:])), "x".join(map(str, batch.x.shape[2:]))
            raise UserError(
                f"the image of sample {sample.id} in {source.path} has canvas {got}, this model's is {wanted}"
            )
    return Crafted(torch.stack(pixels), [None] * len(samples), [False] * len(samples))


def _metrics(
    records: Sequence[SampleRecord],
    task: TaskConfig,
    plan: AttackPlan | None,
    remarks: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    def summary(values: list[float | None]) -> dict[str, Any]:
        known = [v for v in values if v is not None]
        interval = bootstrap_ci(known)
        return {task.metric: sum(known) / len(known), "ci95": [interval.low, interval.high]}

    notes = list(remarks)
    if task.metric == "cider":
        notes.append(f"CIDEr-D x100, document frequency from the references of these {len(records)} images")
    stuck = sum(r.adversarial.zero_grad for r in records if r.adversarial)
    if stuck:
        notes.append(f"{stuck} samples had an all-zero gradient: their attack did nothing")
    attacked = [r.adversarial.score for r in records if r.adversarial]
    return {
        "n": len(records),
        "metric": task.metric,
        "threat": plan.threat if plan else None,
        "attack": plan.config.name if plan else None,
        "eps": plan.eps if plan else None,
        "steps": plan.steps if plan else None,
        "clean": summary([r.clean.score for r in records]),
        "adversarial": summary(attacked) if attacked else None,
        "zero_grad": stuck,
        "seconds": seconds,
        "notes": notes,
    }
