"""Closed answers: how a choice is read from what a model says, and F1 over yes/no questions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_SAID = re.compile(r"the answer is \(?([A-Z])\b", re.IGNORECASE)


def read_yes_no(text: str) -> str:
    """ "yes" or "no", by the rule of POPE's own evaluation script: of what stands before the first full stop, with the
    commas gone and cut at blanks, any of the words `No`, `no` and `not` makes it "no"; everything else is "yes", an
    empty answer too."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def read_letter(text: str) -> str | None:
    """The option that is chosen: a capital letter alone or with `.`, `)` or `:` behind it at the start, `(B)`, or
    "The answer is B"; None for anything else, which is a wrong answer."""
    text = text.strip()
    start = re.match(r"\(([A-Z])\)|([A-Z])(?:[.):]|$)", text)
    if start:
        return start[1] or start[2]
    said = _SAID.search(text)
    return said[1].upper() if said else None


def f1(pairs: Iterable[tuple[str, str]]) -> float:
    """F1 in percent of (read answer, label) pairs of "yes" and "no", "yes" being what is looked for; 0 where neither
    precision nor recall exists."""
    counted = list(pairs)
    hits = sum(said == label == "yes" for said, label in counted)
    wrong = sum(said != label for said, label in counted)
    return 100 * 2 * hits / (2 * hits + wrong) if hits else 0.0


def f1_over_parts(answers: Mapping[str, tuple[str, str]]) -> float:
    """The mean of the parts' F1, in percent. answers: by sample id PART/..., what was said and the label."""
    parts: dict[str, list[tuple[str, str]]] = {}
    for own, (said, label) in answers.items():
        parts.setdefault(own.partition("/")[0], []).append((read_yes_no(said), label))
    return sum(map(f1, parts.values())) / len(parts)
