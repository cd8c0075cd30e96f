"""CIDEr-D against a reimplementation from the paper and against pycocoevalcap's own driver."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider

from eval_tasks.metrics import CiderScorer, cider, ptb
from lvlm_radapt.utils.errors import UserError

REFERENCES = {
    "cat": ["A cat sits on the mat.", "The cat is on a red mat", "a cat on a mat"],
    "dog": ["A dog runs in the park.", "the dog's running"],
    "bus": ["A red bus on the street, at night.", "a bus drives down the street"],
    "man": ["A man (with a hat) rides a horse."],
}
CANDIDATES = {
    "cat": "a cat sits on a mat",
    "dog": "a cat sits on the mat in the park",
    "bus": "a red red red bus on the street",
    "man": "",
}


def naive(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """CIDEr-D x100, written from the formulas, with dense vectors over the vocabulary of n-grams."""
    images = len(references)

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = ptb.tokenize(text).split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = {}
    for image, candidate in candidates.items():
        total = 0.0
        for reference in references[image]:
            # The reference implementation measures length in bigrams.
            gap = sum(grams(candidate, 2).values()) - sum(grams(reference, 2).values())
            for n in range(1, 5):
                c, r = grams(candidate, n), grams(reference, n)
                idf = {}
                for gram in set(c) | set(r):
                    df = sum(any(gram in grams(text, n) for text in refs) for refs in references.values())
                    idf[gram] = math.log(images) - math.log(max(1, df))
                dot = sum(min(c[g] * idf[g], r[g] * idf[g]) * r[g] * idf[g] for g in idf)
                length = math.sqrt(sum((c[g] * idf[g]) ** 2 for g in idf))
                length *= math.sqrt(sum((r[g] * idf[g]) ** 2 for g in idf))
                total += (dot / length if length else 0.0) * math.exp(-(gap**2) / (2 * 6.0**2))
        scores[image] = 100 * 10 * total / 4 / len(references[image])
    return scores


def test_by_hand() -> None:
    # Every word is in one of two images (idf ln 2); the captions share one of two words: cosine 1/2 on single
    # words, 0 on pairs, no longer n-grams, equal length: 10 x (1/2) / 4 = 1.25, x100.
    corpus, per_image = cider({"1": "apple bread"}, {"1": ["apple cake"], "2": ["dog runs"]})
    assert per_image == {"1": pytest.approx(125.0)}
    assert corpus == pytest.approx(125.0)
    # A perfect two-word caption reaches 1 for n = 1 and 2.
    assert cider({"1": "Apple cake!"}, {"1": ["apple cake"], "2": ["dog runs"]})[0] == pytest.approx(500.0)
    # Three more bigrams than the reference: length penalty exp(-9/72); clipped count: one "apple" of four.
    _, repeated = cider({"1": "apple apple apple apple"}, {"1": ["apple"], "2": ["dog runs"]})
    assert repeated["1"] == pytest.approx(1000 / 4 * (1 / 4) * math.exp(-9 / 72))


def test_equals_the_naive_formulas() -> None:
    corpus, per_image = cider(CANDIDATES, REFERENCES)
    expected = naive(CANDIDATES, REFERENCES)
    assert per_image == pytest.approx(expected, abs=1e-9)
    assert corpus == pytest.approx(sum(expected.values()) / 4, abs=1e-9)
    assert per_image["man"] == 0
    assert per_image["cat"] > per_image["dog"]


@pytest.mark.parametrize("tokenizer", ["ptb", "java"])
def test_equals_pycocoevalcap_on_the_full_set(tokenizer: str) -> None:
    generator = random.Random(0)
    words = [*"abcdefghij", ",", ".", "it's", "(small)", "cannot"]
    ids = [f"{number:03d}" for number in range(60)]
    references = {i: [" ".join(generator.choices(words, k=generator.randint(3, 12))) for _ in range(5)] for i in ids}
    candidates = {i: " ".join(generator.choices(words, k=generator.randint(1, 12))) for i in ids}
    gold = Cider().compute_score(
        {i: [ptb.tokenize(text) for text in references[i]] for i in ids},
        {i: [ptb.tokenize(candidates[i])] for i in ids},
    )
    corpus, per_image = CiderScorer(references, tokenizer=tokenizer).score(candidates)
    assert corpus == pytest.approx(100 * gold[0], abs=1e-9)
    assert list(per_image.values()) == pytest.approx(100 * gold[1], abs=1e-9)


def test_part_of_the_images_keeps_the_full_document_frequency() -> None:
    scorer = CiderScorer(REFERENCES)
    corpus, full = scorer.score(CANDIDATES)
    for image, caption in CANDIDATES.items():
        assert scorer.score({image: caption}) == (full[image], {image: full[image]})
    part, _ = scorer.score({"cat": CANDIDATES["cat"], "bus": CANDIDATES["bus"]})
    assert part == pytest.approx((full["cat"] + full["bus"]) / 2)
    assert scorer.score(CANDIDATES) == (corpus, full)  # scoring leaves no trace
    fewer = {image: REFERENCES[image] for image in ("cat", "bus")}
    assert cider({"cat": CANDIDATES["cat"]}, fewer)[0] != pytest.approx(full["cat"])


@settings(deadline=None, max_examples=25)
@given(st.permutations(list(CANDIDATES)), st.permutations(list(REFERENCES)))
def test_order_changes_nothing(candidates: list[str], references: list[str]) -> None:
    corpus, per_image = CiderScorer(REFERENCES).score(CANDIDATES)
    shuffled = CiderScorer({image: REFERENCES[image] for image in references})
    other_corpus, other = shuffled.score({image: CANDIDATES[image] for image in candidates})
    assert (other_corpus, other) == (corpus, per_image)
    assert list(other) == candidates


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_scores_between_zero_and_a_thousand(candidate: str, reference: str) -> None:
    corpus, _ = cider({"1": candidate}, {"1": [reference], "2": ["a dog runs in the park"]})
    assert 0 <= corpus <= 1000 + 1e-6


def test_line_breaks_in_a_caption_stay_in_it() -> None:
    broken = {image: caption.replace(" ", "\u2028", 1) for image, caption in CANDIDATES.items()}
    assert cider(broken, REFERENCES) == cider(CANDIDATES, REFERENCES)
    assert cider(broken, REFERENCES, tokenizer="java") == cider(CANDIDATES, REFERENCES)


def test_user_errors() -> None:
    with pytest.raises(UserError, match="CIDEr needs at least two images, got 1"):
        CiderScorer({"1": ["a dog"]})
    with pytest.raises(UserError, match="CIDEr needs at least two images, got 0"):
        cider({}, {})
    with pytest.raises(UserError, match="image 'dog' has no reference captions"):
        CiderScorer({"cat": ["a cat"], "dog": []})
    with pytest.raises(UserError, match="image 'bird' is not among the references"):
        CiderScorer(REFERENCES).score({"cat": "a cat", "bird": "a bird"})
    with pytest.raises(UserError, match="no candidate captions"):
        CiderScorer(REFERENCES).score({})
    with pytest.raises(UserError, match="unknown tokenizer"):
        CiderScorer(REFERENCES, tokenizer="stanford")
