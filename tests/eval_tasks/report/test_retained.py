"""The retained share against values worked out by hand."""

import math
from pathlib import Path

import pytest

from eval_tasks.report.answer_retention import retained_of, retained_scores
from eval_tasks.run.records import Attacked, Run, SampleRecord, Scored
from tests.helpers.failures import one_line

COCO, VQA, CLASSES, POPE = "caption", "vqa", "zero_shot", "yes_no"


def test_an_answer_is_retained_where_it_is_the_same_after_normalisation():
    clean = {"1": "two", "2": "a red circle", "3": "yes", "4": "dont"}
    said = {"1": "2", "2": "Red circle.", "3": "no", "4": "don't"}
    assert retained_scores(said, clean, VQA) == {"1": 100, "2": 100, "3": 0, "4": 100}


def test_a_wrong_answer_that_stays_is_retained_and_a_right_one_that_changes_is_not():
    # the references of the task do not enter at all
    assert retained_scores({"1": "green"}, {"1": "green"}, VQA) == {"1": 100}


def test_classes_are_compared_as_they_are_and_choices_as_they_are_read():
    assert retained_scores({"1": "Red star", "2": "red star"}, {"1": "red star", "2": "red star"}, CLASSES) == {
        "1": 0,
        "2": 100,
    }
    assert retained_scores({"1": "Yes, there is"}, {"1": "yes"}, POPE) == {"1": 100}


def test_captions_by_hand():
    # Two undefended captions of two words, all n-grams in one caption alone: every idf is ln 2, which cancels.
    # Against itself: cosine 1 for n = 1 and 2, nothing for 3 and 4, so 2/4 of full marks.
    clean = {"a": "red circle", "b": "blue square"}
    assert retained_scores(clean, clean, COCO) == {"a": pytest.approx(100), "b": pytest.approx(100)}
    # one word of two is kept: cosine 1/2 for n = 1, 0 for n = 2 -> (1/8) / (2/4)
    half = retained_scores({"a": "red square", "b": "blue square"}, clean, COCO)
    assert half["a"] == pytest.approx(25)
    assert half["b"] == pytest.approx(100)
    # one word left out: cosine 1/sqrt(2) for n = 1, lengths (counted in bigrams) apart by 1, sigma 6
    short = retained_scores({"a": "red", "b": "green star"}, clean, COCO)
    assert short["a"] == pytest.approx(100 * math.exp(-1 / 72) / math.sqrt(2) / 4 / (2 / 4))
    assert short["b"] == 0


def test_a_caption_that_scores_nothing_against_itself_is_compared_word_for_word():
    # in every caption: idf 0, so CIDEr says 0 of anything
    clean = {"a": "a circle", "b": "a circle"}
    assert retained_scores({"a": "A circle.", "b": "a square"}, clean, COCO) == {"a": 100, "b": 0}


def test_other_samples_are_refused():
    with one_line("same samples"):
        retained_scores({"1": "red"}, {"2": "red"}, VQA)


def record(sample_id: str, clean: str, attacked: str | None) -> SampleRecord:
    return SampleRecord(
        id=sample_id,
        question="what color?",
        references=("red",),
        clean=Scored(output=clean, score=100.0),
        adversarial=None if attacked is None else Attacked(output=attacked, score=0.0, loss=1.0, linf=0.01, l2=0.1),
        seconds=0.1,
    )


def run(*records: SampleRecord) -> Run:
    return Run(Path("absent"), {"task": "vqav2"}, {}, [*records])


def test_a_run_is_measured_from_the_undefended_clean_answers_in_its_own_order():
    stock = run(record("1", "red", "blue"), record("2", "green", "green"))
    mine = run(record("2", "green", "black"), record("1", "Blue", "red"))
    assert retained_of(mine, stock, attacked=False) == [100, 0]
    assert retained_of(mine, stock, attacked=True) == [0, 100]
    with one_line("the run was clean"):
        retained_of(run(record("1", "red", None), record("2", "red", None)), stock, attacked=True)
