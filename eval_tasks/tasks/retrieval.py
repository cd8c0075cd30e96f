"""Retrieval with an image-text encoder: the captions of an image and the image of a caption, clean and under attack.

The gallery is the selected samples with all their captions, the same for every chunk; recall depends on its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from attacks.eight_bit import from_8bit
from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.batches import CaptionBatch, SampleBatch
from eval_tasks.crafting.crafted import sample_seed
from eval_tasks.data import Sample, chunks, image_key, open_image
from eval_tasks.data.selection import ids_digest
from eval_tasks.tasks.base import Task, TaskInputs, TaskRun
from eval_tasks.tasks.retrieval_corpus import CUTS, CaptionSpace, RetrievalCorpus, recalls
from eval_tasks.tasks.text_side import encoder_of, surrogate_with_texts, text_side
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.models.clip import CLIPEncoder

DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """A sample's own score is 100 where the caption nearest to its image is one of its own: image to text, recall@1.
    The other recalls need all images and come at the end."""

    metric: ClassVar[str] = "recall@1"
    kind: ClassVar[str] = "retrieval"

    def run_on(self, given: TaskInputs) -> RetrievalRun:
        encoder, source = encoder_of(given.model, self.name, given.texts)
        run = RetrievalRun(
            task=self, model=encoder, surrogate=given.surrogate, batch_size=given.batch_size,
            corpus=RetrievalCorpus(given.samples), samples=given.samples, texts=source,
        )  # fmt: skip
        _ = run.space  # texts that do not fit are told now
        return run


@dataclass(frozen=True, kw_only=True)
class RetrievalRun(TaskRun):
    """texts: the encoder with the text side, for a bare tower."""

    model: CLIPEncoder
    corpus: RetrievalCorpus
    samples: Sequence[Sample]
    texts: CLIPEncoder | None = None
    batches: ClassVar[type[SampleBatch]] = CaptionBatch
    suited: ClassVar[str] = "contrastive, embedding or noise"

    def check(self, attack: Attack | None, samples: Sequence[Sample]) -> None:
        super().check(attack, samples)
        if attack is not None and issubclass(attack.needs, CaptionBatch):
            _ = self._other  # a UserError now, not when the run has begun

    def settings(self) -> dict[str, Any]:
        return {
            "gallery": {
                "images": len(self.samples),
                "captions": self.corpus.captions,
                "sha256": ids_digest(self.corpus.texts),
            },
            "texts": None if self.texts is None else self.texts.name,
        }

    def remarks(self) -> list[str]:
        said = [
            f"the gallery is the {len(self.samples)} evaluated images with their {self.corpus.captions} captions: "
            "recall over another number of images is not comparable"
        ]
        if self.texts is not None:
            said.append(f"the texts are read by {self.texts.name}")
        return said

    def batch(self, samples: Sequence[Sample], *, source: PixelModel | None = None) -> CaptionBatch:
        return CaptionBatch(
            samples=samples,
            batch_size=self.batch_size,
            own=self.corpus.own([s.id for s in samples]),
            count=self.corpus.count,
            space=self.space if source is None or self._other is None else self._other,
        )

    def closing(self, attacked: Callable[[str], Tensor] | None, seed: int) -> tuple[dict[str, Any], list[str]]:
        """Recall of all samples in both directions; text to image, every image of the gallery is an attacked one."""
        found = {"clean": self._recalls(None, seed)}
        if attacked is not None:
            found["adversarial"] = self._recalls(attacked, seed)
        notes = []
        for direction, words in DIRECTIONS.items():
            said = [
                part + " " + " / ".join(f"{by[direction][f'recall@{k}']:.1f}" for k in CUTS)
                for part, by in found.items()
            ]
            notes.append(f"{words}, recall@{' / @'.join(map(str, CUTS))}: {', '.join(said)}")
        return {"retrieval": found}, notes

    @torch.no_grad()
    def _recalls(self, attacked: Callable[[str], Tensor] | None, seed: int) -> dict[str, Any]:
        cosines = []
        for some in chunks(self.samples, self.batch_size):
            by_shape: dict[tuple[int, int], list[int]] = {}
            images = [open_image(s.image) for s in some]
            for row, image in enumerate(images):
                by_shape.setdefault(self.model.canvas(image), []).append(row)
            rows = torch.empty(len(some), len(self.corpus.texts))
            for alike in by_shape.values():
                seeds = [sample_seed(seed, some[row].id) for row in alike]
                batch = self.model.pixels([images[row] for row in alike]).with_seeds(seeds)
                if attacked is not None:
                    made = torch.stack([from_8bit(attacked(some[row].id)) for row in alike])
                    batch = batch.replace(made.to(batch.x.device))
                rows[alike] = self.space.cosines(batch).cpu()
            cosines.append(rows)
        own = self.corpus.own([s.id for s in self.samples])
        return recalls(torch.cat(cosines), own, self.corpus.count, [image_key(s.image) for s in self.samples])

    @cached_property
    def space(self) -> CaptionSpace:
        """The encoder's view of the gallery, computed once."""
        return CaptionSpace(self.model, self.corpus, self.texts)

    @cached_property
    def _other(self) -> CaptionSpace | None:
        """The surrogate's own view of the same gallery."""
        if self.surrogate is None:
            return None
        other = surrogate_with_texts(self.surrogate)
        return CaptionSpace(other, self.corpus, text_side(other, self.texts))
