"""VQA accuracy and its three normalisations."""

import random
import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_tasks.metrics import normalise_answer, vqa, vqa_accuracy
from lvlm_radapt.utils.errors import UserError
from tests.helpers.vqa_scripts import CONTRACTIONS, SCRIPTS, case


def leave_one_out(prediction: str, answers: list[str]) -> float:
    """The definition, subset by subset."""
    subsets = list(combinations(answers, len(answers) - 1))
    return sum(min(1.0, subset.count(prediction) / 3) for subset in subsets) / len(subsets)


STYLES = ["vqav2", "openflamingo", "textvqa"]


@pytest.mark.parametrize("style", STYLES)
def test_equals_the_official_script_on_many_cases(style: str) -> None:
    draw = random.Random(15)
    seen: dict[float, int] = {}
    for _ in range(1500):
        prediction, answers = case(draw)
        expected = SCRIPTS[style](prediction, answers)
        assert vqa_accuracy(prediction, answers, style) == pytest.approx(expected, abs=1e-12), (prediction, answers)
        seen[round(expected, 6)] = seen.get(round(expected, 6), 0) + 1
    # the cases are neither all right nor all wrong
    assert min(seen[score] for score in (0.0, 0.3, 0.6, 0.9, 1.0)) > 40, seen


@pytest.mark.slow
def test_the_cases_tell_the_scripts_apart() -> None:
    draw = random.Random(15)
    scores = [[SCRIPTS[style](*one) for style in STYLES] for one in (case(draw) for _ in range(4000))]
    for first, second in combinations(range(3), 2):
        assert sum(abs(row[first] - row[second]) > 1e-9 for row in scores) > 40


def test_the_contractions_are_the_scripts_own() -> None:
    # those with a capital are never found, as words are in lower case; two become what they are
    useful = {key: word for key, word in CONTRACTIONS.items() if key == key.lower() and key != word}
    assert useful == vqa.CONTRACTIONS


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_ten_answers_by_hand(style: str, matches: int, accuracy: float) -> None:
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert vqa_accuracy("red", answers, style) == pytest.approx(accuracy)
    assert leave_one_out("red", answers) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("total", "matches", "accuracy"),
    [(1, 0, 0.0), (1, 1, 1.0), (2, 2, 1.0), (2, 1, 0.5), (3, 3, 1.0), (3, 1, 1 / 3), (4, 4, 1.0), (5, 1, 4 / 15)],
)
def test_other_numbers_of_answers(total: int, matches: int, accuracy: float) -> None:
    answers = ["red"] * matches + ["blue"] * (total - matches)
    assert vqa_accuracy("red", answers) == pytest.approx(accuracy)


@given(
    st.lists(st.sampled_from(["red", "blue", "dark red"]), min_size=4, max_size=12),
    st.sampled_from(["red", "blue", "dark red", "green"]),
    st.sampled_from(STYLES),
    st.randoms(),
)
def test_equals_the_definition_in_any_order(answers: list[str], prediction: str, style: str, rng) -> None:
    expected = leave_one_out(prediction, answers)
    rng.shuffle(answers)
    assert vqa_accuracy(prediction, answers, style) == pytest.approx(expected, abs=1e-12)


@given(st.text(max_size=20), st.lists(st.text(max_size=20), min_size=1, max_size=12))
def test_accuracy_is_between_zero_and_one(prediction: str, answers: list[str]) -> None:
    for style in STYLES:
        assert 0 <= vqa_accuracy(prediction, answers, style) <= 1


@pytest.mark.parametrize(
    ("text", "vqav2", "textvqa"),
    [
        ("The Dog", "dog", "dog"),
        ("a an the", "", ""),
        ("none", "0", "0"),
        ("Zero ten eleven", "0 10 eleven", "0 10 eleven"),
        ("a-b", "b", "b"),  # the hyphen becomes a blank, then the article goes
        ("x-y", "x y", "x y"),
        ("x- y", "x y", "x y"),  # next to a blank: deleted
        ("x-y z- w", "xy z w", "xy z w"),  # a blank beside one hyphen deletes all of them
        ("1,000", "1000", "1000"),
        # Digit-comma-digit deletes every sign; TextVQA has lost its commas by then.
        ("1,000/day x-y", "1000day xy", "1000 day x y"),
        ("red,blue", "red blue", "redblue"),
        ("red, blue", "red blue", "red blue"),
        ("what?no", "what no", "whatno"),
        ("3.5", "3.5", "3.5"),
        (".5", ".5", ".5"),
        ("x.5", "x.5", "x.5"),
        ("5.", "5", "5"),
        ("5.x", "5x", "5x"),  # meant to stay after a digit, but the look-behind is misspelt
        ("u.s.", "us", "us"),
        ("...", "", ""),
        ("x" + "." * 40, "x" + "." * 8, "x" + "." * 8),  # at most 32
        ("dog's", "dog's", "dog 's"),
        ("it's", "it's", "it 's"),
        ("dont", "don't", "don't"),
        ("Im", "im", "im"),  # the entry has a capital and is looked up in lower case
        ("couldnt've couldn'tve", "couldn't've couldn't've", "couldn't've couldn't've"),
        ("yalld've", "yalld've", "yalld've"),
        ("y'alld've yall'd've y'all'dve", "y'all'd've y'all'd've y'all'd've", "y'all'd've y'all'd've y'all'd've"),
        ("ows'at", "ows'at", "ows'at"),
        ("twas oclock maam", "'twas o'clock ma'am", "'twas o'clock ma'am"),
        ("somebody'd", "somebodyd", "somebodyd"),
        ("somebodyd've", "somebody'd've", "somebody'd've"),
        ("shed well hell", "shed well hell", "shed well hell"),  # real words are left alone
        ("ONE\tTWO\n", "1 2", "1 2"),
        ('"quoted"', "quoted", "quoted"),
        ("[x]{y}(z)", "x y z", "x y z"),
        ("x:y x%y x$y x&y x*y", "x:y x%y x$y x&y x*y", "x:y x%y x$y x&y x*y"),  # not in the list of signs
        ("naïve Straße", "naïve straße", "naïve straße"),
        ("", "", ""),
    ],
)
def test_normalisation_quirks(text: str, vqav2: str, textvqa: str) -> None:
    assert normalise_answer(text) == vqav2
    assert normalise_answer(text, "vqav2") == vqav2
    assert normalise_answer(text, "openflamingo") == vqav2
    assert normalise_answer(text, "textvqa") == textvqa


@given(st.text(max_size=30))
def test_normalised_text_is_single_spaced_lower_case(text: str) -> None:
    for style in STYLES:
        words = normalise_answer(text, style)
        assert not re.search(r"\s\s|^\s|\s$", words)
        assert words == words.lower()
        assert not set(words.split()) & {"a", "an", "the"}


def test_user_errors() -> None:
    with pytest.raises(UserError, match="at least one reference answer"):
        vqa_accuracy("yes", [])
    with pytest.raises(UserError, match="at least one reference answer"):
        vqa_accuracy("yes", "yes")
    with pytest.raises(UserError, match=r"unknown VQA answer style 'okvqa'.*vqav2, openflamingo, textvqa"):
        vqa_accuracy("yes", ["yes"], "okvqa")
    with pytest.raises(UserError, match="unknown VQA answer style"):
        normalise_answer("yes", "VQAv2")
