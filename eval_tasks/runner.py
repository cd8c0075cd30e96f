"""The evaluation loop: clean answers, attack, 8-bit PNG on disk, answers to it, scores, run folder.

The unit of work is a chunk of sample ids, a pure function of the selected ids and the chunk size, and so is what is
made of it, whichever process does it. A run that was killed redoes at most the chunks that were in flight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval_tasks.attacker import view_of
from eval_tasks.audit.of_run import audit_of_run
from eval_tasks.crafting import AttackPlan, Crafted, sample_seed, says
from eval_tasks.data import Sample, check_images, chunks, load_task, open_image, select, skip_missing, tasks
from eval_tasks.data.rows import RowImage
from eval_tasks.exams import Exam, exam_of
from eval_tasks.metrics.tokenizers import TokenizerName
from eval_tasks.presets import Protocol
from eval_tasks.processes import Group, Work
from eval_tasks.quantise import from_8bit
from eval_tasks.records import Attacked, Run, RunFolder, SampleRecord, Scored, ids_digest, read_run
from eval_tasks.running import Advance, Log, Running, tally
from eval_tasks.summary import metrics
from lvlm_radapt.errors import Unfinished, UserError
from lvlm_radapt.locking import Lock
from lvlm_radapt.models.base import PixelBatch, PixelModel
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
    skip_missing: bool = False
    """Leave samples without an image out, in place of stopping."""

    def describe(self) -> str:
        """The attack in a few words, for progress bars."""
        if self.attack is None:
            return "clean"
        return " ".join(filter(None, (self.attack.config.name, self.attack.threat)))


def evaluate(
    model: PixelModel,
    settings: EvalSettings,
    out: Path,
    *,
    surrogate: PixelModel | None = None,
    texts: PixelModel | None = None,
    images_from: Path | None = None,
    resume: bool = False,
    command: str = "",
    advance: Advance = lambda done, text: None,
    log: Log = lambda event: None,
    group: Group | None = None,
    clean: dict[str, Scored] | None = None,
    remarks: Sequence[str] = (),
) -> Run:
    """Score `model` and leave a complete run folder at `out`.

    group: the processes that do it together, each calling this with the same arguments; the first merges what all
        have made, and audits it. Its run is what every one of them returns.
    texts: an encoder whose text side is asked in the model's place, for vision towers that come without one.
    images_from: a finished run whose attacked images are scored instead of crafting new ones; refused unless
        attack, budget, samples and canvas are this run's. Only for threat model transfer.

    clean: clean answers of this model by sample id, from runs of the same task, samples and chunks; those that are
        missing are asked for and put in.
    remarks: what else a reader of the scores has to know; they come first among the run's notes.

    Raises UserError before anything is written when data, attack and models do not fit together, and Unfinished when
    a process of the group died and left samples undone.
    """
    group = group or Group()
    everything = load_task(settings.task, settings.data)
    task = tasks()[settings.task]
    samples, note = select(everything, settings.samples, settings.seed)
    left_out = None
    if settings.skip_missing:
        samples, left_out = skip_missing(samples)
    check_images(samples)
    for image in dict.fromkeys(s.image for s in samples):
        _check_image(model, image)
    plan = settings.attack
    exam = exam_of(
        model, task, everything=everything, samples=samples, protocol=settings.protocol,
        batch_size=settings.batch_size, tokenizer=settings.tokenizer, surrogate=surrogate,
        texts=texts,
    )  # fmt: skip
    remarks = [*remarks, *(said for said in (note, left_out) if said), *exam.remarks()]
    if plan is not None:
        exam.check(plan, samples[0])
        remarks += _remarks(model, surrogate, plan, samples[0])
    document = _document(model, settings, exam, surrogate, command) | {"processes": group.size, "left_out": left_out}
    source = _image_source(images_from, document, samples)
    folder = RunFolder(out, group.rank)
    pieces = chunks(samples, settings.chunk_size)
    running = Running(len(samples), len(pieces), advance, log)
    work = group.work(str(out))
    with Lock.of_folder(out) as lock:

        def begin() -> dict[str, Any]:
            lock.claim()
            return _begin(folder.create(document, [s.id for s in samples], resume=resume), pieces)

        before = work.lead("begin", begin)
        if not group.first:
            lock.share()
        done = {int(number): one for number, one in before["done"].items()}
        running.begin(done)
        if before["finished"]:
            return read_run(out)
        remarks += before["remarks"]
        gallery = {s.id for s in samples[:GALLERY]}
        clean = {} if clean is None else clean
        started = time.monotonic()

        def chunk_records(number: int) -> list[SampleRecord]:
            kept: list[SampleRecord] = []
            # as long as the first chunk has nothing but failures, nothing of it is kept
            held: list[SampleRecord] = []
            for asked_of, batch in _groups(model, pieces[number]):
                held += _evaluate_batch(exam, settings, asked_of, folder, batch, source, gallery, clean, running.stage)
                if number == 0 and not kept and all(r.adversarial is not None and r.adversarial.failed for r in held):
                    continue
                for record in held:
                    folder.append(record)
                kept, held = kept + held, []
            if held:
                raise _all_failed(surrogate or model, plan, held)
            return kept

        todo = [number for number in range(len(pieces)) if number not in done]
        try:
            for number in todo:
                if work.claim(number):
                    work.done(number, tally(chunk_records(number)))
                    running.take(work.results(running.chunks if group.first else 0))
        except UserError as error:
            group.fail(error)  # the others would meet it too; any other error leaves this chunk alone to be resumed
            raise
        finally:
            folder.close()

        def end() -> None:
            _wait(work, todo, running, folder)
            more, said = exam.closing(folder.load_image if plan is not None else None)
            found = metrics(folder.records(), task, plan, [*remarks, *said], time.monotonic() - started) | more
            if plan is not None and plan.threat == "adaptive":
                running.stage("audit")
                found["audit"] = audit_of_run(model, folder, exam, samples, plan, seed=settings.seed).to_dict()
            folder.finish(found)

        work.lead("end", end)
        return read_run(out)


def _begin(folder: RunFolder, pieces: Sequence[Sequence[Sample]]) -> dict[str, Any]:
    """What was done before, as JSON for all processes: whether everything, and the tallies of whole chunks by number.

    A sample whose attacked image was damaged since is not done, and so neither is its chunk.
    """
    records = {record.id: record for record in folder.records()}
    unsound = set() if folder.finished else set(folder.unsound_images())
    sound = records.keys() - unsound
    done = {
        number: tally([records[s.id] for s in chunk])
        for number, chunk in enumerate(pieces)
        if all(s.id in sound for s in chunk)
    }
    remarks = []
    if unsound:
        first = min(unsound, key=[*records].index)
        remarks.append(f"{len(unsound)} saved images were damaged or missing, and made again (first: sample {first})")
    return {"finished": folder.finished, "done": done, "remarks": remarks}


def _wait(work: Work, todo: list[int], running: Running, folder: RunFolder) -> None:
    """Wait until all processes have done their chunks; Unfinished when one died over its own."""
    missing = work.wait(todo, lambda: running.take(work.results(running.chunks)))
    if missing:
        numbers = ", ".join(map(str, sorted(missing)[:5])) + (", ..." if len(missing) > 5 else "")
        ranks = ", ".join(map(str, sorted(set(missing.values()))))
        raise Unfinished(
            f"process {ranks} is gone and left chunk {numbers} undone; {running.done} of {running.total} samples are "
            f"in {folder.path}: continue it with --resume"
        )


def _check_image(model: PixelModel, source: Path | RowImage) -> None:
    """A damaged image, or one that has no place on the model's canvas, is named now, not hours into the run."""
    image = open_image(source)
    try:
        model.canvas(image)
    except UserError as error:
        raise UserError(f"image {source}: {error}") from error


def _remarks(model: PixelModel, surrogate: PixelModel | None, plan: AttackPlan, sample: Sample) -> list[str]:
    """What a reader of the attack's numbers has to know of the models."""
    said = []
    if model.views_apart:
        said.append("the model cuts images into views, each attacked on its own: more than a real image can do")
    if surrogate is not None:
        batch = model.pixels([open_image(sample.image)])
        sizes = ["x".join(map(str, seen.x.shape[-2:])) for seen in (batch, view_of(surrogate, batch))]
        if sizes[0] != sizes[1]:
            said.append(
                f"the surrogate {surrogate.name} sees the images resized, the first from {sizes[0]} to {sizes[1]}, "
                "differentiably: what is attacked is the victim's canvas"
            )
    ensemble = plan.config.ensemble
    if ensemble is not None:
        own = str((surrogate or model).dtype).removeprefix("torch.")
        if plan.half is not None:
            said.append(
                f"the stages reference 1 to {ensemble.references} ran in {plan.half} (autocast), the others in {own}"
            )
        elif own == "float32":
            said.append("all stages ran in float32")
        else:
            said.append(
                f"all stages ran in {own}: what half precision did not break was not attacked again in float32 "
                "(--dtype float32 does)"
            )
    return said


def _all_failed(source: PixelModel, plan: AttackPlan | None, records: Sequence[SampleRecord]) -> UserError:
    """Every attack of the first chunk failed: the same would happen for hours."""
    dtype = str(source.dtype).removeprefix("torch.")
    reason = records[0].adversarial.failed if records[0].adversarial else None
    if dtype != "float32":
        advice = "use --dtype float32"
    elif plan is not None and plan.half is not None:
        advice = "use --half bfloat16 or --half none"
    else:
        advice = "the model cannot be attacked on these images"
    return UserError(
        f"{source.name} in {dtype}: the attack failed on all {len(records)} samples of the first chunk "
        f"({records[0].id}: {reason}): {advice}"
    )


def _document(
    model: PixelModel, settings: EvalSettings, exam: Exam, surrogate: PixelModel | None, command: str
) -> dict[str, Any]:
    """The settings as run.json keeps them; what is in here must be equal for a run to be resumed."""
    plan = settings.attack
    attack: dict[str, Any] | None = None
    if plan is not None:
        attack = {
            **plan.settings(),
            "surrogate": surrogate.name if surrogate else None,
            **exam.attack_settings(plan),
        }
    return {
        "command": command,
        "determinism": _determinism(model),
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
        **exam.settings(),
        "attack": attack,
        "seed": settings.seed,
        "chunk_size": settings.chunk_size,
        "batch_size": settings.batch_size,
        "tokenizer": settings.tokenizer,
    }


def _determinism(model: PixelModel) -> str:
    """What another run with these settings gives, and what nobody promises."""
    if model.device.type == "cpu" and model.dtype == torch.float32:
        return (
            "equal settings, versions and threads on one machine give the same samples, images, texts and scores, "
            "bit for bit, whatever the number of processes or interruptions"
        )
    return (
        f"samples, seeds and starting noise are the same for equal settings; images, texts and scores are not "
        f"guaranteed on {model.device.type} in {str(model.dtype).removeprefix('torch.')}: kernels chosen at run time "
        "and sums in no fixed order may differ in the last bits, which an attack amplifies"
    )


def _groups(model: PixelModel, chunk: Sequence[Sample]) -> Iterator[tuple[list[Sample], PixelBatch]]:
    """The chunk's samples in groups of one canvas shape."""
    images = [open_image(s.image) for s in chunk]
    groups: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(model.canvas(image), []).append(i)
    for rows in groups.values():
        yield [chunk[i] for i in rows], model.pixels([images[i] for i in rows])


def _evaluate_batch(
    exam: Exam,
    settings: EvalSettings,
    samples: Sequence[Sample],
    folder: RunFolder,
    batch: PixelBatch,
    source: RunFolder | None,
    gallery: set[str],
    known: dict[str, Scored],
    tell: Callable[[str], None],
) -> list[SampleRecord]:
    started = time.monotonic()

    def answer(of: PixelBatch) -> list[Scored]:
        said = exam.answers(of, samples)
        return [Scored(output=o, score=v) for o, v in zip(said, exam.grade(said, samples), strict=True)]

    if any(s.id not in known for s in samples):
        tell("clean answers")
        known.update(zip((s.id for s in samples), answer(batch), strict=True))
    clean = [known[s.id] for s in samples]
    attacked: list[Attacked | None] = [None] * len(samples)
    plan = settings.attack
    if plan is not None:
        if source is None:
            tell(plan.config.name)
            seeds = [sample_seed(settings.seed, s.id) for s in samples]
            own = [c.score for c in clean if c.score is not None]
            crafted = exam.craft(
                batch, samples, plan, seeds=seeds, clean=own,
                tell=lambda stage, count: tell(f"{stage}, {count} images"),
            )  # fmt: skip
        else:
            crafted = _reuse(source, samples, batch)
        for sample, pixels in zip(samples, crafted.pixels, strict=True):
            folder.save_image(sample.id, pixels)
        # what is scored is what lies on the disk
        read = [from_8bit(folder.load_image(s.id)).to(batch.x.device) for s in samples]
        scored_batch = batch.replace(torch.stack(read))
        tell("answers to attacked images")
        distance = (scored_batch.x - batch.x).flatten(1)
        attacked = [
            Attacked(
                output=a.output,
                score=a.score,
                loss=crafted.loss[i],
                steps=crafted.steps[i],
                linf=float(distance[i].abs().max()),
                l2=float(distance[i].norm()),
                zero_grad=crafted.zero_grad[i],
                failed=crafted.failed[i],
                success=None if plan.target is None else says(a.output, plan.target),
                stage=crafted.stage[i],
                broken=crafted.broken[i],
                rounded_back=crafted.rounded_back[i],
                remarks=tuple(crafted.remarks),
            )
            for i, a in enumerate(answer(scored_batch))
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
            "target",
            "half",
            "stages",
            "threshold",
            "line",
            "queries",
        )
        if made.get(key) != attack.get(key)
    ]
    if differs:
        was, wanted = made.get(differs[0]), attack.get(differs[0])
        raise UserError(f"run {images_from} was made with another {differs[0]}: {was}, not {wanted}")
    if any(run.settings.get(key) != document.get(key) for key in ("classes", "gallery")):
        raise UserError(f"run {images_from} was made among other classes or captions, or asked for by other templates")
    victim = run.settings["model"]
    twin = victim["name"] == document["model"]["name"] and victim["radapt"] is None
    # None is the undefended twin, as when the images are crafted anew
    attack["surrogate"] = made["surrogate"] or (None if twin else victim["name"])
    return RunFolder(images_from)


def _reuse(source: RunFolder, samples: Sequence[Sample], batch: PixelBatch) -> Crafted:
    pixels = [source.load_image(s.id) for s in samples]
    for sample, image in zip(samples, pixels, strict=True):
        if image.shape != batch.x.shape[1:]:
            got, wanted = "x".join(map(str, image.shape[1:])), "x".join(map(str, batch.x.shape[2:]))
            raise UserError(
                f"the image of sample {sample.id} in {source.path} has canvas {got}, this model's is {wanted}"
            )
    return Crafted.plain(torch.stack(pixels))
