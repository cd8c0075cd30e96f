"""VQA accuracy under the three answer normalisations in use.

Accuracy (Antol et al., VQA, ICCV 2015): over the subsets that leave one human answer out, the mean of
min(1, matching answers / 3). Before that, both sides are normalised:

- `vqav2`, the official VQA evaluation script: newlines and tabs to blanks, outer blanks off. If all answers are then
  the same string, nothing more is done to either side (so "Yes" does not match ten times "yes"). Otherwise both sides
  get the punctuation step and the word step.
- `openflamingo`, OpenFlamingo's copy of that script, which FARE's published numbers are computed with: both sides
  always get both steps.
- `textvqa`, TextVQA's EvalAI answer processor (LLaVA's m4c evaluator, lmms-eval): before both steps, text is put in
  lower case, `,` and `?` go, and `'s` is split off.

Quirks of those scripts, kept because published numbers contain them:
- A sign next to a blank anywhere in the text, or a digit-comma-digit anywhere, deletes that sign
  everywhere; else it becomes a blank. The test looks at the text before any sign was replaced.
- The period rule means to keep decimal points, but its look-behind is misspelt: a period goes unless a
  digit FOLLOWS, whatever precedes it. At most 32 periods go (a regex flag was passed as the count).
- Contractions are looked up after lower-casing, so entries with a capital letter never apply.
- "none" counts as the number 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args

from eval_tasks.config.vqa_style import Style as Style
from lvlm_radapt.utils.errors import UserError

RULES: dict[Style, str] = {
    "vqav2": "official VQA script, answers that all agree are compared as written",
    "openflamingo": "OpenFlamingo's evaluator as in FARE's tables, both sides are always normalised",
    "textvqa": "TextVQA's EvalAI processor as in LLaVA and lmms-eval, both sides are always normalised",
}
"""Each style in words."""

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = 32
_ARTICLES = {"a", "an", "the"}
_COUNTED = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_COUNTED)}
# The scripts restore ONE missing apostrophe: a word is known by its spellings with one of them left out.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
you'll you're you've
"""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round in the scripts


def vqa_accuracy(prediction: str, answers: Sequence[str], style: str = "vqav2") -> float:
    """Accuracy in [0, 1] of a prediction against the human answers (ten in both data sets).

    Any other number n >= 1 works too: leave-one-out over the n answers, and with fewer than four answers
    the 3 becomes n - 1, so that agreeing with everyone still gives 1; a single answer means exact match.
    style: "vqav2", "openflamingo" or "textvqa". Raises UserError for no answers or another style.
    """
    _check(style)
    if isinstance(answers, str) or not answers:
        raise UserError("VQA accuracy needs a list of at least one reference answer: check the annotations")
    said, wanted = _one_line(prediction), [_one_line(answer) for answer in answers]
    if style != "vqav2" or len(set(wanted)) > 1:
        said, wanted = normalise_answer(prediction, style), [normalise_answer(answer, style) for answer in answers]
    total = len(wanted)
    matches = wanted.count(said)
    if total == 1:
        return float(matches)
    enough = min(3, total - 1)
    left_out_matches = matches * min(1.0, (matches - 1) / enough)
    left_out_differs = (total - matches) * min(1.0, matches / enough)
    return (left_out_matches + left_out_differs) / total


def normalise_answer(text: str, style: str = "vqav2") -> str:
    """The text after every step of `style` ("vqav2", "openflamingo" or "textvqa"). UserError for another style."""
    _check(style)
    if style == "textvqa":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_signs(_one_line(text)))


def _check(style: str) -> None:
    if style not in get_args(Style):
        raise UserError(f"unknown VQA answer style {style!r}: use one of {', '.join(get_args(Style))}")


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _signs(text: str) -> str:
    """The punctuation step."""
    has_number_comma = _DIGIT_COMMA.search(text) is not None
    result = text
    for sign in _SIGNS:
        dropped = has_number_comma or f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if dropped else " ")
    return _PERIOD.sub("", result, count=_PERIODS_REMOVED)


def _words(text: str) -> str:
    """The word step: lower case, number words, articles, contractions, single blanks."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
