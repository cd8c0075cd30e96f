"""The evaluation loop: clean answers, attack, 8-bit PNG on disk, answers to it, scores, run folder.

The unit of work is a chunk of sample ids, a pure function of the selected ids and the chunk size, and so is what is
made of it, whichever process does it. A run that was killed redoes at most the chunks that were in flight.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.source_model import view_of
from eval_tasks.data import Sample, chunks, open_image
from eval_tasks.data.rows import RowImage
from eval_tasks.run.answers import AnswerFile, usage_notes
from eval_tasks.run.audit_of_run import audit_of_run
from eval_tasks.run.options import EvalOptions, Selection, run_document, select_samples
from eval_tasks.run.processes import Group, Work
from eval_tasks.run.progress import Advance, Log, Running, tally
from eval_tasks.run.records import NO_CHECKSUMS, Run, RunFolder, SampleRecord, Scored, read_run
from eval_tasks.run.reuse import image_source
from eval_tasks.run.run_metrics import metrics
from eval_tasks.run.score_batch import OUT_OF_MEMORY, canvas_groups, check_kept, score_batch
from eval_tasks.run.threads import on_recorded_threads
from eval_tasks.tasks.base import Task
from lvlm_radapt.defences.base import defence_remarks
from lvlm_radapt.loading.image_processor import filters_images
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.utils.errors import Unfinished, UserError
from lvlm_radapt.utils.locking import Lock

CLEAN_IMAGES_KEPT = 24  # samples whose clean canvas is kept too, for the report


@on_recorded_threads
def evaluate(
    model: PixelModel,
    task: Task,
    attack: Attack | None,
    out: str | os.PathLike[str],
    options: EvalOptions,
    *,
    selection: Selection | None = None,
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
    """Score `model` on a task, clean and under an attack (None: clean alone), and leave a run folder at `out`.

    selection: the samples, where `select_samples` has read them already.
    group: the processes that do it together, each calling this with the same arguments; the first merges what all
        have made, and audits it. Its run is what every one of them returns.
    texts: an encoder that supplies text embeddings, for vision towers that have none.
    images_from: a finished run whose attacked images are scored instead of crafting new ones; refused unless
        attack, budget, samples and canvas are this run's. Only for threat model transfer.

    clean: clean answers of this model by sample id, from runs of the same task, samples and chunks; those that are
        missing are asked for and put in.
    remarks: what else a reader of the scores has to know; they come first among the run's notes.

    A run that is resumed goes on with the CPU threads that it was begun with. Every process must have as many as the
    first.

    Raises UserError before anything is written when data, attack and models do not fit together, and Unfinished when
    a process of the group died and left samples undone.
    """
    group = group or Group()
    out = Path(out)
    selection = selection or select_samples(task, options)
    samples = selection.samples
    if group.size > 1 and model.answers_only:
        raise UserError(f"{model.name} runs elsewhere: start one process, --parallel says how many requests it makes")
    for image in dict.fromkeys(s.image for s in samples):
        _check_image(model, image)
    run = task.bind(
        model, selection.everything, samples, batch_size=options.batch_size, surrogate=surrogate, texts=texts
    )
    more = [*model.remarks(), *run.remarks(), *defence_remarks(model)]
    if filters_images(Path(model.name)):
        more.append("the folder's image processor filters images, and is not asked here: the weights are scored alone")
    run.check(attack, samples)
    if attack is not None:
        more += _remarks(model, surrogate, attack, samples[0])
    document = run_document(run, attack, options, command) | {"processes": group.size, "left_out": selection.left_out}
    source, document = image_source(images_from, attack, document, samples)
    if source is not None and source.remark is not None:
        more.append(f"of {images_from}: {source.remark}")
    remarks = [*remarks, *(said for said in (selection.note, document["left_out"]) if said), *more]
    folder = RunFolder(out, group.rank)
    answers = AnswerFile(folder)
    model.keep_answers(answers)
    pieces = chunks(samples, options.chunk_size)
    running = Running(len(samples), len(pieces), advance, log)
    work = group.work(str(out))
    with Lock.of_folder(out) as lock:

        def begin() -> dict[str, Any]:
            lock.claim()
            return _begin(folder.create(document, [s.id for s in samples], resume=resume), pieces, model)

        before = work.lead("begin", begin)
        if not group.first:
            if model.device.type == "cpu":
                _check_threads(before["threads"], group)
            lock.share()
        answers.open()
        done = {int(number): one for number, one in before["done"].items()}
        running.begin(done)
        if before["finished"]:
            return read_run(out)
        remarks += before["remarks"]
        shown = {s.id for s in (samples if model.answers_only else samples[:CLEAN_IMAGES_KEPT])}
        clean = {} if clean is None else clean
        started = time.monotonic()

        def chunk_records(number: int) -> list[SampleRecord]:
            kept: list[SampleRecord] = []
            # as long as the first chunk has nothing but failures, nothing of it is kept
            held: list[SampleRecord] = []
            for asked_of, batch in canvas_groups(model, pieces[number]):
                held += score_batch(
                    run, attack, options.seed, asked_of, folder, batch, source, shown, clean, running.stage
                )
                if number == 0 and not kept and all(r.adversarial is not None and r.adversarial.failed for r in held):
                    continue
                for record in held:
                    folder.append(record)
                kept, held = kept + held, []
            if held:
                raise _all_failed(surrogate or model, attack, held)
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
            answers.close()

        def end() -> None:
            _wait(work, todo, running, folder)
            records = folder.records()
            sums = {record.id: record.kept.get("images") for record in records}

            def attacked(one: str) -> torch.Tensor:
                return folder.load_image(one, sums[one])

            more, said = run.closing(attacked if attack is not None else None, options.seed)
            usage = model.usage()
            if usage:
                folder.tell(usage=usage)
                said += usage_notes(usage)
            found = metrics(records, task, attack, [*remarks, *said], time.monotonic() - started) | more
            if attack is not None and attack.threat == "adaptive" and not model.answers_only:
                running.stage("audit")
                found["audit"] = audit_of_run(folder, run, samples, records, attack, seed=options.seed).to_dict()
            folder.finish(found, records)

        work.lead("end", end)
        return read_run(out)


def _begin(folder: RunFolder, pieces: Sequence[Sequence[Sample]], model: PixelModel) -> dict[str, Any]:
    """What was done before, as JSON for all processes: whether everything, and the tallies of whole chunks by number.

    A sample whose attacked image was damaged since is not done, and so neither is its chunk. UserError naming a sample
    whose image or record was changed.
    """
    records = {record.id: record for record in folder.records()}
    unsound = set() if folder.finished else set(folder.unsound_images())
    sound = records.keys() - unsound
    done = {
        number: tally([records[s.id] for s in chunk])
        for number, chunk in enumerate(pieces)
        if all(s.id in sound for s in chunk)
    }
    if not folder.finished:
        for number in done:
            check_kept(model, pieces[number], folder, records)
    remarks = [NO_CHECKSUMS] if folder.has_no_checksums else []
    if unsound:
        first = min(unsound, key=[*records].index)
        remarks.append(f"{len(unsound)} saved images were damaged or missing, and made again (first: sample {first})")
    return {"finished": folder.finished, "done": done, "remarks": remarks, "threads": torch.get_num_threads()}


def _check_threads(first: int, group: Group) -> None:
    """UserError where this process would sum up in another order than the first one."""
    own = torch.get_num_threads()
    if own != first:
        error = UserError(
            f"process {group.rank} has {own} CPU threads and the first process {first}, so their results would differ "
            "in the last bits: set OMP_NUM_THREADS to one number for all"
        )
        group.fail(error)
        raise error


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


def _remarks(model: PixelModel, surrogate: PixelModel | None, attack: Attack, sample: Sample) -> list[str]:
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
    return said + attack.remarks((surrogate or model).dtype)


def _all_failed(source: PixelModel, attack: Attack | None, records: Sequence[SampleRecord]) -> Exception:
    """Every attack of the first chunk failed: the same would happen for hours. A UserError, and torch's own where
    memory is what is missing, which may be free at another time."""
    dtype = str(source.dtype).removeprefix("torch.")
    reason = records[0].adversarial.failed if records[0].adversarial else None
    if reason is not None and reason.startswith(OUT_OF_MEMORY):
        error = torch.OutOfMemoryError(OUT_OF_MEMORY)
        error.add_note(reason.removeprefix(f"{OUT_OF_MEMORY} with "))
        return error
    advice = "look at its answers to clean images" if attack is None else attack.advice(source.dtype)
    return UserError(
        f"{source.name} in {dtype}: the attack failed on all {len(records)} samples of the first chunk "
        f"({records[0].id}: {reason}): {advice}"
    )
