"""Closed answers: what is read from them, against naive readings, and POPE's F1 against its definition."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_tasks.data.sample import Sample
from eval_tasks.metrics.choice import f1, f1_over_parts, read_letter, read_yes_no
from eval_tasks.run.records import Attacked, SampleRecord, Scored
from eval_tasks.run.run_metrics import metrics
from eval_tasks.tasks.choice import ChoiceScores
from eval_tasks.tasks.make_task import make_task


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("yes", "yes"),
        ("Yes, there is a dog.", "yes"),
        ("No", "no"),
        ("no.", "no"),
        ("No, there is none", "no"),
        ("There is not a dog in the image.", "no"),
        # the script's quirks: only the first sentence counts, case by case, words cut at blanks alone
        ("It is a cat. No dog is there.", "yes"),
        ("NO", "yes"),
        ("No!", "yes"),
        ("no\nyes", "yes"),
        ("There isn't", "yes"),
        ("", "yes"),
    ],
)
def test_yes_and_no_are_read_as_pope_does(text: str, read: str) -> None:
    assert read_yes_no(text) == read


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("B. the second", "B"),
        ("B) the second", "B"),
        ("(B)", "B"),
        ("B: it", "B"),
        ("The answer is B.", "B"),
        ("the answer is (c)", "C"),
        ("Because of that", None),
        ("A dog", None),
        ("b", None),
        ("the second", None),
        ("", None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert read_letter(text) == letter


@given(st.text())
def test_anything_is_read_without_a_complaint(text: str) -> None:
    assert read_yes_no(text) in ("yes", "no")
    found = read_letter(text)
    assert found is None or re.fullmatch("[A-Z]", found)


@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no"])), min_size=1))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(pairs: list[tuple[str, str]]) -> None:
    said, label = (np.array([pair[k] == "yes" for pair in pairs]) for k in (0, 1))
    hits = (said & label).sum()
    if hits == 0:
        assert f1(pairs) == 0
        return
    precision, recall = hits / said.sum(), hits / label.sum()
    assert f1(pairs) == pytest.approx(100 * 2 * precision * recall / (precision + recall), rel=1e-12)


def test_f1_is_averaged_over_the_parts_not_over_the_questions() -> None:
    answers = {
        "random/1": ("Yes", "yes"),  # F1 100
        "popular/1": ("No", "yes"),  # F1 0
        "popular/2": ("No", "no"),
        "popular/3": ("Yes.", "no"),
        "adversarial/1": ("yes", "yes"),  # precision 1/2, recall 1: 2/3
        "adversarial/2": ("yes", "no"),
    }
    assert f1_over_parts(answers) == pytest.approx(100 * (1 + 0 + 2 / 3) / 3)


def sample(own: str, right: str) -> Sample:
    return Sample(own, Path("x.png"), "why?", (right,))


def test_scores_of_closed_answers() -> None:
    pope = make_task("pope", "fare").scorer([sample("random/1", "no")])
    assert isinstance(pope, ChoiceScores)
    assert pope.score({"random/1": "No, it is not."}) == {"random/1": 100.0}
    assert pope.score({"random/1": "Yes"}) == {"random/1": 0.0}
    assert pope.references(sample("random/1", "no"), 5) == ["no", "No"]
    assert pope.references(sample("random/1", "no"), 1) == ["no"]
    science = make_task("scienceqa", "fare").scorer([sample("4", "C")])
    assert science.score({"4": "C. blue"}) == {"4": 100.0}
    assert science.score({"4": "I do not know"}) == {"4": 0.0}
    assert science.references(sample("4", "C"), 5) == ["C"]
    assert science.canonical(sample("4", "C")) == 100.0


def record(own: str, label: str, clean: str, attacked: str | None) -> SampleRecord:
    adversarial = None if attacked is None else Attacked(output=attacked, score=0.0, loss=1.0, linf=0.1, l2=1.0)
    return SampleRecord(
        id=own, question="?", references=(label,), clean=Scored(output=clean, score=0.0),
        adversarial=adversarial, seconds=0.1,
    )  # fmt: skip


def test_f1_stands_in_the_metrics() -> None:
    records = [record("random/1", "yes", "Yes", "No"), record("popular/1", "yes", "No", "No")]
    found = metrics(records, make_task("pope", "fare"), None, [], 1.0)
    assert found["f1"] == {"clean": 50.0, "adversarial": 0.0}
    assert "F1 of yes, averaged over the parts of the set: 50.0 clean, 0.0 adversarial" in found["notes"]
    clean = metrics([record("random/1", "yes", "Yes", None)] * 2, make_task("pope", "fare"), None, [], 1.0)
    assert clean["f1"] == {"clean": 100.0, "adversarial": None}
    assert metrics(records, make_task("scienceqa", "fare"), None, [], 1.0)["f1"] is None


def prompt(preset: str, task: str, question: str) -> str:
    return make_task(task, preset).prompt(Sample("1", Path("x.png"), question, ("a",)))


def test_what_the_new_tasks_are_asked() -> None:
    short = "\nAnswer the question using a single word or phrase."
    unanswerable = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
    letter = "\nAnswer with the option's letter from the given choices directly."
    for name in ("fare", "native", "scenes", "lmms-eval"):
        asked = {task: prompt(name, task, "Is it?") for task in ("pope", "vizwiz", "scienceqa")}
        assert asked == {
            "pope": "Is it?" + short,
            "vizwiz": "Is it?" + unanswerable + short,
            "scienceqa": "Is it?" + letter,
        }
    assert prompt("fare", "okvqa", "Why {me}?") == "Why {me}?" + short
    assert prompt("lmms-eval", "okvqa", "Why?") == "Why?" + unanswerable + short
    assert prompt("lmms-eval", "vizwiz", "why NASA?").startswith("Why nasa?\n")
