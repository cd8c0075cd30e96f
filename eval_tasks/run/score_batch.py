"""Some samples of a run: clean answers, attack, 8-bit PNG on disk, answers to it, scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from attacks.auto_batch import free_memory, out_of_memory
from attacks.eight_bit import distances, from_8bit
from attacks.eps import eps_text, within
from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.crafted import Crafted, sample_seed
from eval_tasks.crafting.targeted import contains_target
from eval_tasks.data import Sample, image_key, open_image
from eval_tasks.run.records import Attacked, Run, RunFolder, SampleRecord, Scored, image_path
from eval_tasks.tasks.base import TaskRun
from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.utils.errors import UserError


def canvas_groups(model: PixelModel, chunk: Sequence[Sample]) -> Iterator[tuple[list[Sample], PixelBatch]]:
    """The chunk's samples in groups of one canvas shape."""
    images = [open_image(s.image) for s in chunk]
    groups: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(model.canvas(image), []).append(i)
    for rows in groups.values():
        yield [chunk[i] for i in rows], model.pixels([images[i] for i in rows])


OUT_OF_MEMORY = "out of memory"
"""How the reason of a sample begins that does not fit into memory."""


def score_batch(
    run: TaskRun,
    attack: Attack | None,
    seed: int,
    samples: Sequence[Sample],
    folder: RunFolder,
    batch: PixelBatch,
    source: Run | None,
    gallery: set[str],
    known: dict[str, Scored],
    tell: Callable[[str], None],
) -> list[SampleRecord]:
    """The records of `samples`, whose pixels are `batch`; their attacked images are saved to `folder`.

    source: a run whose attacked images are taken; None crafts them. gallery: ids whose clean canvas is saved too.
    known: clean answers by id, those that are missing are put in. tell: gets what is being done.
    """
    started = time.monotonic()
    model = run.model
    batch = batch.with_seeds([sample_seed(seed, s.id) for s in samples])

    def answer(of: PixelBatch) -> list[Scored]:
        with model.naming_size(of):
            said = run.answers(of, samples)
        return [Scored(output=o, score=v) for o, v in zip(said, run.grade(said, samples), strict=True)]

    canvas = (batch.x * 255).round().to("cpu").byte()
    shown = {
        s.id: folder.save_image(s.id, pixels, under="clean")
        for s, pixels in zip(samples, canvas, strict=True)
        if s.id in gallery
    }
    if any(s.id not in known for s in samples):
        tell("clean answers")
        files = [image_path(folder.path, "clean", s.id) if s.id in shown else None for s in samples]
        known.update(zip((s.id for s in samples), answer(batch.with_files(files)), strict=True))
    clean = [known[s.id] for s in samples]
    attacked: list[Attacked | None] = [None] * len(samples)
    if attack is not None:
        if source is None:
            tell(attack.name)
            crafted = _craft(run, attack, seed, samples, batch, clean, tell)
        else:
            crafted = _reuse(source, samples, batch, attack)
        sums = [folder.save_image(s.id, pixels) for s, pixels in zip(samples, crafted.pixels, strict=True)]
        # what is scored is what lies on the disk
        on_disk = torch.stack([folder.load_image(s.id, one) for s, one in zip(samples, sums, strict=True)])
        files = [image_path(folder.path, "images", s.id) for s in samples]
        scored_batch = batch.replace(from_8bit(on_disk).to(batch.x.device)).with_files(files)
        tell("answers to attacked images")
        far = distances(on_disk, batch.x)
        attacked = [
            Attacked(
                output=a.output,
                score=a.score,
                loss=crafted.loss[i],
                steps=crafted.steps[i],
                linf=far[i][0],
                l2=far[i][1],
                zero_grad=crafted.zero_grad[i],
                failed=crafted.failed[i],
                success=None if attack.target is None else contains_target(a.output, attack.target),
                stage=crafted.stage[i],
                broken=crafted.broken[i],
                rounded_back=crafted.rounded_back[i],
                remarks=tuple(crafted.remarks),
                image_sha256=sums[i],
            )
            for i, a in enumerate(answer(scored_batch))
        ]
    seconds = (time.monotonic() - started) / len(samples)
    return [
        SampleRecord(
            id=s.id,
            image=image_key(s.image),
            question=s.question,
            references=s.references,
            clean=clean[i],
            adversarial=attacked[i],
            seconds=seconds,
            clean_sha256=shown.get(s.id),
        )
        for i, s in enumerate(samples)
    ]


def _craft(
    run: TaskRun,
    attack: Attack,
    seed: int,
    samples: Sequence[Sample],
    batch: PixelBatch,
    clean: Sequence[Scored],
    tell: Callable[[str], None],
) -> Crafted:
    """The attacked images of the batch. Where memory does not suffice the samples are attacked one by one, then with
    gradient checkpointing. One that is too large even so keeps its clean image and is marked as failed, so that the run
    goes on."""
    try:
        return run.craft(
            batch,
            samples,
            attack,
            seeds=[sample_seed(seed, s.id) for s in samples],
            clean=[c.score for c in clean if c.score is not None],
            tell=lambda stage, count: tell(f"{stage}, {count} images"),
        )
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    free_memory()
    if len(samples) == 1 and not run.model.recompute_activations():
        reason = f"{OUT_OF_MEMORY} with {run.model.size_words(batch)}"
        return Crafted.plain((batch.x * 255).round().to("cpu", torch.uint8), failed=[reason])
    return Crafted.joined(
        [_craft(run, attack, seed, [sample], batch[i], [clean[i]], tell) for i, sample in enumerate(samples)]
    )


def check_kept(model: PixelModel, chunk: Sequence[Sample], folder: RunFolder, records: dict[str, SampleRecord]) -> None:
    """UserError naming the first sample of the chunk whose attacked image in `folder` is not the one of its record, by
    its checksum and by its distances from the clean image."""
    for samples, batch in canvas_groups(model, chunk):
        made = {s.id: a for s in samples if (a := records[s.id].adversarial) is not None}
        if not made:
            continue
        pixels = _on_canvas(folder, [s.id for s in samples], {i: a.image_sha256 for i, a in made.items()}, batch)
        for sample, (linf, l2) in zip(samples, distances(pixels, batch.x), strict=True):
            told = made[sample.id]
            # those of earlier versions were computed in float32
            if abs(linf - told.linf) > 1e-6 or abs(l2 - told.l2) > 1e-5 * max(1.0, l2):
                raise UserError(
                    f"the image of sample {sample.id} in {folder.path} is {linf:.4g} (Linf), {l2:.4g} (L2) from its "
                    f"clean image, its record says {told.linf:.4g}, {told.l2:.4g}: one of the two was changed; run it "
                    "again"
                )


def _reuse(source: Run, samples: Sequence[Sample], batch: PixelBatch, attack: Attack) -> Crafted:
    sums = {r.id: r.adversarial.image_sha256 for r in source.samples if r.adversarial is not None}
    pixels = _on_canvas(RunFolder(source.path), [s.id for s in samples], sums, batch)
    for sample, far in zip(samples, distances(pixels, batch.x), strict=True):
        size = far[attack.norm == "L2"]
        if not within(size, attack.eps):
            raise UserError(
                f"the image of sample {sample.id} in {source.path} is {size:.4g} ({attack.norm}) from this model's "
                f"clean image, more than eps {eps_text(attack.eps, attack.norm)}: it was made on another canvas, or "
                "changed since"
            )
    return Crafted.plain(pixels)


def _on_canvas(folder: RunFolder, ids: Sequence[str], sums: dict[str, str | None], batch: PixelBatch) -> Tensor:
    """The attacked images of these samples, uint8 [B, 3, H, W]; UserError for one of another canvas than `batch`."""
    pixels = [folder.load_image(one, sums[one]) for one in ids]
    for one, image in zip(ids, pixels, strict=True):
        if image.shape != batch.x.shape[1:]:
            got, wanted = "x".join(map(str, image.shape[1:])), "x".join(map(str, batch.x.shape[2:]))
            raise UserError(f"the image of sample {one} in {folder.path} has canvas {got}, this model's is {wanted}")
    return torch.stack(pixels)
