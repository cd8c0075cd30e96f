"""The captions of a set of images as a gallery, and the ranks by which retrieval is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eval_tasks.data import Sample
from eval_tasks.metrics.bootstrap import Images
from eval_tasks.metrics.intervals import score_ci
from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.zero_shot import check_pair, logit_scale, text_embeddings
from lvlm_radapt.utils.errors import UserError

CUTS = (1, 5, 10)
"""The k of recall@k."""
_ROWS = 256  # images whose similarities to all texts are looked at together


class RetrievalCorpus:
    """The captions of all evaluated samples: U distinct texts, which of them belong to which sample, and how often each
    stands there.

    A caption that two images share is right for both: nothing tells the two apart. UserError for a gallery in which
    some sample has no wrong caption, since nothing can be retrieved there.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        said = {s.id: [text for text in s.references if text] for s in samples}
        counted = Counter(text for texts in said.values() for text in texts)
        self.texts = list(counted)
        self.count = torch.tensor([counted[text] for text in self.texts])
        self.captions = counted.total()
        places = {text: place for place, text in enumerate(self.texts)}
        self._own = {i: sorted({places[text] for text in texts}) for i, texts in said.items()}
        self.ids = list(self._own)
        alone = next((i for i, own in self._own.items() if len(own) == len(self.texts)), None)
        if alone is not None:
            raise UserError(
                f"retrieval among {len(samples)} samples: no caption there is wrong for sample {alone}; "
                "take more --samples"
            )

    def own(self, ids: Sequence[str]) -> Tensor:
        """bool [len(ids), U]: which texts belong to each of these samples."""
        mask = torch.zeros(len(ids), len(self.texts), dtype=torch.bool)
        for row, one in enumerate(ids):
            mask[row, self._own[one]] = True
        return mask

    def belongs(self, text: str, sample_id: str) -> bool:
        """Whether the text is one of the sample's captions."""
        return any(self.texts[place] == text for place in self._own[sample_id])


class CaptionSpace:
    """An encoder and the embeddings of a gallery's texts, computed once over the whole gallery.

    texts: supplies text embeddings for a bare vision tower. UserError for one that does not fit, and for
    an encoder without texts.
    """

    def __init__(self, encoder: CLIPEncoder, corpus: RetrievalCorpus, texts: CLIPEncoder | None = None) -> None:
        self.encoder, self.corpus = encoder, corpus
        source = encoder if texts is None else texts
        self.texts = normalize(text_embeddings(source, corpus.texts), dim=-1).to(encoder.device)
        self._scale = logit_scale(source).to(encoder.device)
        if texts is not None:
            check_pair(encoder, texts, self.texts.shape[-1])

    def belongs(self, text: str, sample_id: str) -> bool:
        """Whether the text is one of the sample's captions."""
        return self.corpus.belongs(text, sample_id)

    def cosines(self, batch: PixelBatch) -> Tensor:
        """float32 [B, U], differentiable in `batch.x`."""
        return normalize(self.encoder.image_features(batch).float(), dim=-1) @ self.texts.T

    def logits(self, batch: PixelBatch) -> Tensor:
        """The cosines times the model's logit scale."""
        return self._scale * self.cosines(batch)

    @torch.no_grad()
    def nearest(self, batch: PixelBatch, ids: Sequence[str]) -> list[str]:
        """The text retrieved first for each image; of equally near ones a wrong one, and "" where there is no nearness
        (a model that gives all images one embedding retrieves nothing)."""
        cosines = self.cosines(batch).cpu()
        own = self.corpus.own(ids)
        said = []
        for row, rank in enumerate(caption_ranks(cosines, own, self.corpus.count)):
            if bool(cosines[row].isnan().any()):
                said.append("")
                continue
            among = own[row] if rank == 1 else ~own[row]
            said.append(self.corpus.texts[int(cosines[row].masked_fill(~among, -torch.inf).argmax())])
        return said


def caption_ranks(similarity: Tensor, own: Tensor, count: Tensor) -> list[int]:
    """Image to text: at which place, from 1, the first caption of its own comes, for each of B images.

    similarity: [B, U] to the texts of a gallery; own: bool [B, U]; count: [U], how often each text stands there. Wrong
    texts that are as near, or of no nearness (NaN), come first.
    """
    best = similarity.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
    ahead = ~(similarity < best) & ~own
    return [int(rank) for rank in 1 + (ahead * count).sum(dim=1)]


def image_ranks(similarity: Tensor, own: Tensor) -> Tensor:
    """Text to image: int64 [U], at which place, from 1, the first image that a text belongs to comes among all N.

    similarity: [N, U], own: bool [N, U]. Wrong images that are as near, or of no nearness, come first.
    """
    best = similarity.masked_fill(~own, -torch.inf).amax(dim=0, keepdim=True)
    return 1 + (~(similarity < best) & ~own).sum(dim=0)


def recalls(similarity: Tensor, own: Tensor, count: Tensor, images: Images | None = None) -> dict[str, dict[str, Any]]:
    """recall@1, @5 and @10 in percent with 95 % intervals over images, in both directions.

    similarity: [N, U] of all samples' images to all texts of the gallery, own: bool [N, U], count: [U]; images: the
    image of each sample, as in `bootstrap_ci`.
    "image_to_text": the share of images with a caption of their own among the first k. "text_to_image": the share of
    captions with their image among the first k; a caption that stands there twice counts twice.
    """
    first = torch.tensor(
        [
            rank
            for at in range(0, len(own), _ROWS)
            for rank in caption_ranks(similarity[at : at + _ROWS], own[at : at + _ROWS], count)
        ]
    )
    found = image_ranks(similarity, own)
    # every image's part of the captions, so that the mean over images is the share of all captions
    share = own / own.sum(dim=0) * count
    part = {
        "image_to_text": {k: 100.0 * (first <= k) for k in CUTS},
        "text_to_image": {k: 100.0 * len(own) / int(count.sum()) * (share * (found <= k)).sum(dim=1) for k in CUTS},
    }
    return {direction: _summary(by_cut, images) for direction, by_cut in part.items()}


def _summary(by_cut: dict[int, Tensor], images: Images | None) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for k, values in by_cut.items():
        interval = score_ci(values.tolist(), "recall@1", images)
        summary[f"recall@{k}"] = float(values.double().mean())
        summary[f"ci95@{k}"] = [interval.low, interval.high]
    return summary
