"""Retrieval with an image-text encoder: the captions of an image and the image of a caption, clean and under attack.

The gallery is the selected samples with all their captions, the same for every chunk; recall depends on its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attacks import contrastive_loss
from attacks.eight_bit import from_8bit
from attacks.losses import LossFn
from eval_tasks.audit.build import subject_of
from eval_tasks.audit.subject import Subject
from eval_tasks.config.presets import TaskConfig
from eval_tasks.crafting.craft import (
    AttackPlan,
    Crafted,
    attackers_view,
    check_source,
    craft_unasked,
    embedding_distance,
    run_apgd,
    sample_seed,
)
from eval_tasks.crafting.source_model import Attacker
from eval_tasks.data import Sample, chunks, image_key, open_image
from eval_tasks.run.records import ids_digest
from eval_tasks.tasks.encoders import check_reads_tower, reading_surrogate, text_side
from eval_tasks.tasks.retrieval_corpus import CUTS, CaptionSpace, Gallery, recalls
from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.utils.errors import UserError

DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


@dataclass(frozen=True)
class RetrievalExam:
    """Captions that an image encoder has to find for an image, and images for a caption; see `exams.Exam`.

    A sample's own score is 100 where the caption nearest to its image is one of its own: image to text, recall@1. The
    other recalls need all images and come at the end. texts: the encoder with the text side, for a bare tower.
    """

    encoder: CLIPEncoder
    surrogate: PixelModel | None
    task: TaskConfig
    gallery: Gallery
    samples: Sequence[Sample]
    batch_size: int
    texts: CLIPEncoder | None = None

    def check(self, plan: AttackPlan | None, samples: Sequence[Sample]) -> None:
        if plan is None:
            return
        name, loss = plan.config.name, plan.config.loss
        if loss not in ("contrastive", "noise", "embedding"):
            raise UserError(f"--attack {name} is not for --task {self.task.name}: use contrastive, embedding or noise")
        check_reads_tower(plan)
        check_source(plan, self.encoder, self.surrogate)
        if loss == "contrastive":
            _ = self._other  # a UserError now, not when the run has begun

    def settings(self) -> dict[str, Any]:
        return {
            "gallery": {
                "images": len(self.samples),
                "captions": self.gallery.captions,
                "sha256": ids_digest(self.gallery.texts),
            },
            "texts": None if self.texts is None else self.texts.name,
        }

    def attack_settings(self, plan: AttackPlan) -> dict[str, Any]:
        return {}

    def remarks(self) -> list[str]:
        said = [
            f"the gallery is the {len(self.samples)} evaluated images with their {self.gallery.captions} captions: "
            "recall over another number of images is not comparable"
        ]
        if self.texts is not None:
            said.append(f"the texts are read by {self.texts.name}")
        return said

    def answers(self, batch: PixelBatch, samples: Sequence[Sample]) -> list[str]:
        ids = [s.id for s in samples]
        pieces = chunks(range(len(batch)), self.batch_size)
        return [text for some in pieces for text in self.space.nearest(batch[some], [ids[i] for i in some])]

    def grade(self, answers: Sequence[str], samples: Sequence[Sample]) -> list[float]:
        return [100.0 * self.gallery.belongs(said, s.id) for said, s in zip(answers, samples, strict=True)]

    def craft(
        self,
        batch: PixelBatch,
        samples: Sequence[Sample],
        plan: AttackPlan,
        *,
        seeds: Sequence[int],
        clean: Sequence[float] | None = None,
        tell: Callable[[str, int], None] = lambda stage, count: None,
    ) -> Crafted:
        if plan.config.loss != "contrastive":
            return craft_unasked(
                self.encoder, batch, plan, seeds=seeds, surrogate=self.surrogate, batch_size=self.batch_size
            )
        with attackers_view(self.encoder, plan, self.surrogate):
            # to its last step: recall@5, recall@10 and the other direction are to fall too
            return run_apgd(batch, plan, self._loss(batch, samples), seeds=seeds, batch_size=self.batch_size)

    def subject(
        self, batch: PixelBatch, samples: Sequence[Sample], plan: AttackPlan, *, seed: int, made: Tensor | None = None
    ) -> Subject:
        ids = [s.id for s in samples]
        seeds = [sample_seed(seed, own) for own in ids]
        attacker = Attacker(self.encoder, batch)

        def attack_loss() -> LossFn:
            if plan.config.loss == "contrastive":
                return self._loss(batch, samples)
            return embedding_distance(attacker, plan, self.batch_size)

        def answers(x: Tensor, index: list[int]) -> list[str]:
            return self.space.nearest(attacker.seen(x, index), [ids[i] for i in index])

        def score(said: Sequence[str], index: list[int]) -> list[float]:
            return self.grade(said, [samples[i] for i in index])

        def crafted(eps: float, steps: int) -> Tensor:
            own = AttackPlan(plan.config, plan.threat, eps, steps)
            return self.craft(batch, samples, own, seeds=seeds).pixels

        return subject_of(
            self.encoder,
            batch.x,
            plan,
            attack_loss,
            answers=answers,
            score=score,
            craft=crafted,
            made=made,
            images=[image_key(s.image) for s in samples],
            seeds=seeds,
            batch_size=self.batch_size,
        )

    def closing(self, attacked: Callable[[str], Tensor] | None) -> tuple[dict[str, Any], list[str]]:
        """Recall of all samples in both directions; text to image, every image of the gallery is an attacked one."""
        found = {"clean": self._recalls(None)}
        if attacked is not None:
            found["adversarial"] = self._recalls(attacked)
        notes = []
        for direction, words in DIRECTIONS.items():
            said = [
                part + " " + " / ".join(f"{by[direction][f'recall@{k}']:.1f}" for k in CUTS)
                for part, by in found.items()
            ]
            notes.append(f"{words}, recall@{' / @'.join(map(str, CUTS))}: {', '.join(said)}")
        return {"retrieval": found}, notes

    @torch.no_grad()
    def _recalls(self, attacked: Callable[[str], Tensor] | None) -> dict[str, Any]:
        cosines = []
        for some in chunks(self.samples, self.batch_size):
            by_shape: dict[tuple[int, int], list[int]] = {}
            images = [open_image(s.image) for s in some]
            for row, image in enumerate(images):
                by_shape.setdefault(self.encoder.canvas(image), []).append(row)
            rows = torch.empty(len(some), len(self.gallery.texts))
            for alike in by_shape.values():
                batch = self.encoder.pixels([images[row] for row in alike])
                if attacked is not None:
                    made = torch.stack([from_8bit(attacked(some[row].id)) for row in alike])
                    batch = batch.replace(made.to(batch.x.device))
                rows[alike] = self.space.cosines(batch).cpu()
            cosines.append(rows)
        own = self.gallery.own([s.id for s in self.samples])
        return recalls(torch.cat(cosines), own, self.gallery.count, [image_key(s.image) for s in self.samples])

    def _loss(self, batch: PixelBatch, samples: Sequence[Sample]) -> LossFn:
        space = self.space if self._other is None else self._other
        attacker = Attacker(space.encoder, batch)
        own = self.gallery.own([s.id for s in samples])
        return contrastive_loss(lambda x, index: space.logits(attacker.seen(x, index)), own, self.gallery.count)

    @cached_property
    def space(self) -> CaptionSpace:
        """The encoder's view of the gallery, computed once."""
        return CaptionSpace(self.encoder, self.gallery, self.texts)

    @cached_property
    def _other(self) -> CaptionSpace | None:
        """The surrogate's own view of the same gallery."""
        if self.surrogate is None:
            return None
        other = reading_surrogate(self.surrogate)
        return CaptionSpace(other, self.gallery, text_side(other, self.texts))
