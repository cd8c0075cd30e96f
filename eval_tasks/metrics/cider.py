"""CIDEr-D of captions (Vedantam, Zitnick and Parikh, CVPR 2015) as pycocoevalcap computes it, times 100.

n = 1..4, sigma 6, clipped counts, all references. The document frequency comes from the references that the
scorer is built with, once: a score of part of the images (an early exit, a resumed run) means the same as
in the full set. It also means that scores over different sets of images are not comparable.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from pycocoevalcap.cider.cider_scorer import CiderScorer as _Cider
from pycocoevalcap.cider.cider_scorer import cook_refs, cook_test

from eval_tasks.metrics.tokenizers import tokenizer as find_tokenizer
from lvlm_radapt.utils.errors import UserError


def check_enough(images: int) -> None:
    """UserError for fewer images than document frequencies can be taken of."""
    if images < 2:
        raise UserError(f"CIDEr needs at least two images, got {images}: evaluate more samples")


class CiderScorer:
    """Scores candidates against fixed references.

    references: image id -> its reference captions (one or more) for ALL images of the evaluation, two at
    least; tokenizer: "ptb" (no Java) or "java". Raises UserError for fewer than two images or an image
    without references.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], *, tokenizer: str = "ptb") -> None:
        check_enough(len(references))
        empty = next((image for image, captions in references.items() if not captions), None)
        if empty is not None:
            raise UserError(f"image {empty!r} has no reference captions: add one or leave the image out")
        self._tokenize = find_tokenizer(tokenizer)
        tokens = iter(self._tokenize([text for captions in references.values() for text in captions]))
        self._references = {
            image: cook_refs([next(tokens) for _ in captions]) for image, captions in references.items()
        }
        counter = _Cider()
        counter.crefs = list(self._references.values())
        counter.compute_doc_freq()
        self._document_frequency: dict[tuple[str, ...], float] = dict(counter.document_frequency)

    def score(self, candidates: Mapping[str, str]) -> tuple[float, dict[str, float]]:
        """(corpus, per image) CIDEr-D x100 of one caption an image; corpus is the mean over the given images.

        candidates: image id -> caption, any non-empty part of the reference ids. Raises UserError for other
        ids.
        """
        if not candidates:
            raise UserError("CIDEr got no candidate captions: give one caption an image")
        unknown = next((image for image in candidates if image not in self._references), None)
        if unknown is not None:
            raise UserError(f"image {unknown!r} is not among the references of this CIDEr scorer: check the ids")
        others = [refs for image, refs in self._references.items() if image not in candidates]
        cider = _Cider()
        cider.ctest = [cook_test(text) for text in self._tokenize(list(candidates.values()))]
        # Candidates pair with the first references; the rest only count as images in the idf's numerator.
        cider.crefs = [self._references[image] for image in candidates] + others
        cider.document_frequency = defaultdict(float, self._document_frequency)
        scores = [100.0 * float(value) for value in cider.compute_cider()]
        return math.fsum(scores) / len(scores), dict(zip(candidates, scores, strict=True))


def cider(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], *, tokenizer: str = "ptb"
) -> tuple[float, dict[str, float]]:
    """`CiderScorer(references).score(candidates)` for a single use."""
    return CiderScorer(references, tokenizer=tokenizer).score(candidates)
