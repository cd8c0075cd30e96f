"""The caption tokenizer of the COCO evaluation, without Java.

pycocoevalcap tokenizes captions with Stanford CoreNLP 3.4.1 (`PTBTokenizer -preserveLines -lowerCase`),
then drops a list of punctuation tokens. Here the same automaton runs in Python (see `ptb_tables`), followed
by our own code for what the scanner does with each match under its default options: brackets become -lrb-
and the like, quotes `` and '', vulgar fractions 1/2, currency signs $ # cents, runs of dots ..., spaces
inside a token U+00A0; soft hyphens and characters it does not know vanish. Spelling is not americanised
(off by default there). Because tokens are lower-cased before the punctuation list is applied, and the list
has "-LRB-" in capitals, -lrb- and its kin stay: a quirk of the original that changes scores, kept on
purpose.

Deliberate differences from pycocoevalcap's wrapper, shared by `ptb_java`:
- Every caption is read on its own. The original reads a file of all captions and can look across a line
  end, so that a few endings ("plan b. " with the space, a contraction at the very end of the file) depend
  on the next caption. Each caption is read here as if a line starting with a capital letter followed.
- Line separators inside a caption become spaces first; in the original they shift every later caption by
  one.

Known differences from Java are in lower-casing alone: a capital sigma inside a token with digits or signs may
become the other small sigma (the two languages define the end of a word differently), and a rare script's
letters change case only where the running Python or Java knows that script (Unicode versions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

from eval_tasks.metrics.ptb_tables import Automaton, automaton

NEXT_LINE = "A"  # what every caption is followed by, on a line of its own
_LINE_SEPARATORS = str.maketrans(dict.fromkeys("\n\v\f\r\x85\u2028\u2029", " "))
_PUNCTUATION = frozenset(PUNCTUATIONS)

_START = 2  # the state of the default, "traditional" treebank mode
_NEWLINE = 5
_SKIPPED = {1, 7, 23}  # unknown character, blanks, markup that is dropped
_FIXED = {
    2: "<",
    10: ">",
    11: "--",
    13: "...",
    16: "-RCB-",
    17: "-LRB-",
    18: "-RRB-",
    20: "-LCB-",
    21: "-RSB-",
    22: "-LSB-",
}
_FIRST_ONLY = 35  # one character of the match is the token
_GIVEN_BACK = {25: 1, 26: 1, 32: 1, 34: 1, 36: 1, 46: 1, 51: 1, 42: 2, 48: 2, 50: 3, 53: 4}
# Rules with a context of variable length: where the token (read forwards) and the context (backwards) begin.
_CONTEXT = {24: (13, 14), 30: (3, 4), 40: (5, 6), 41: (16, 17), 43: (15, 14), 44: (9, 10), 47: (7, 8), 49: (11, 12)}
_TRIMMED = {44, 47}  # trailing blanks of the match are given back
_SHARED_PERIOD = {33, 47, 49}  # an abbreviation that ends a sentence: its period is read again as a token
_BLANKS = " \t\n\v\f\r\x85"


def sanitise(caption: str) -> str:
    """The caption on one line: line separators become spaces, halves of surrogate pairs U+FFFD."""
    line = caption.translate(_LINE_SEPARATORS)
    return line.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def without_punctuation(line: str) -> str:
    """A line of space-separated tokens without those that the COCO evaluation drops."""
    return " ".join(token for token in line.rstrip().split(" ") if token not in _PUNCTUATION)


def tokenize(caption: str) -> str:
    """Lower-case tokens of one caption, joined by spaces, punctuation tokens removed."""
    return without_punctuation(" ".join(_tokens(sanitise(caption))))


def tokenize_all(captions: Sequence[str]) -> list[str]:
    """`tokenize` of every caption, in order."""
    return [tokenize(caption) for caption in captions]


def _tokens(line: str) -> Iterator[str]:
    """Lower-case tokens of one line, before punctuation is dropped."""
    raw = f"{line}\n{NEXT_LINE}\n".encode("utf-16-le")
    text = "".join(map(chr, np.frombuffer(raw, "<u2").tolist()))  # a character a code unit, as in Java
    tables = automaton()
    classes = [tables.char_class[ord(unit)] for unit in text]
    position = 0
    while True:
        start = position
        action, position = _longest(tables, classes, start)
        if action == _NEWLINE:
            return
        if action in _SKIPPED:
            continue
        token, position = _token(tables, text, classes, start, position, action)
        yield token.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").lower()


def _longest(tables: Automaton, classes: list[int], start: int) -> tuple[int, int]:
    """(action, end) of the longest match from `start`; the scanner has a rule for every single character."""
    row, step, accepts, final = tables.row, tables.step, tables.accepts, tables.final
    state, accepted, end = _START, _START, start
    for position in range(start, len(classes)):
        state = step[row[state] + classes[position]]
        if state < 0:
            break
        if accepts[state]:
            accepted, end = state, position + 1
            if final[state]:
                break
    return tables.action[accepted], end


def _token(tables: Automaton, text: str, classes: list[int], start: int, end: int, action: int) -> tuple[str, int]:
    """(token, where reading goes on) of a match."""
    if action == _FIRST_ONLY:
        end = start + 1
    end -= _GIVEN_BACK.get(action, 0)
    if action in _CONTEXT:
        end = start + _split(tables, classes[start:end], *_CONTEXT[action])
    if action in _TRIMMED:
        end = start + len(text[start:end].rstrip(_BLANKS))
    token = text[start:end]
    if action in _SHARED_PERIOD:
        end -= 1
        if len(token) == 2 and action == 47:  # a single letter gives its period away
            token = token[0]
    if action in _FIXED:
        return _FIXED[action], end
    return (_REWRITE[action](token) if action in _REWRITE else token), end


def _split(tables: Automaton, classes: list[int], forwards: int, backwards: int) -> int:
    """Length of the token in a match: the last place where a token may end and its context begin."""
    row, step, accepts = tables.row, tables.step, tables.accepts
    token_may_end = [False] * (len(classes) + 1)
    state = forwards
    for position, column in enumerate(classes):
        token_may_end[position] = accepts[state]
        state = step[row[state] + column]
        if state < 0:
            break
    else:
        token_may_end[-1] = accepts[state]
    state, position = backwards, len(classes)
    while not (token_may_end[position] and accepts[state]):
        position -= 1
        state = step[row[state] + classes[position]]
    return position


def _replacer(*pairs: tuple[str, str]) -> Callable[[str], str]:
    """A function that applies the replacements one after another."""

    def replace(token: str) -> str:
        for old, new in pairs:
            token = token.replace(old, new)
        return token

    return replace


def _each(characters: str, new: str) -> list[tuple[str, str]]:
    return [(character, new) for character in characters]


# U+0080 and U+0091 to U+0094 are the Windows code page's euro and quotes.
_DIRECTED = (
    *_each("\x91\u2018\u201b\u2039", "`"),
    *_each("\x92\u2019\u203a", "'"),
    *_each("\x93\u201c«", "``"),
    *_each("\x94\u201d»", "''"),
)
_opening_quote = _replacer(("&apos;", "'"), ("'", "`"), ('"', "``"), ("&quot;", "``"), *_DIRECTED)
_closing_quote = _replacer(("&apos;", "'"), ('"', "''"), ("&quot;", "''"), *_DIRECTED)
_fractions = _replacer(("¼", "1/4"), ("½", "1/2"), ("¾", "3/4"), ("⅓", "1/3"), ("⅔", "2/3"))
_currency = _replacer(("¢", "cents"), ("£", "#"), *_each("\x80¤₠€", "$"))
_parentheses = _replacer(("(", "-LRB-"), (")", "-RRB-"))
_spaces = _replacer((" ", "\xa0"))


def _soft_hyphens(token: str) -> str:
    return token.replace("\xad", "") or "-"


def _dashes(token: str) -> str:
    return "--" if len(token) in (3, 4) else token


def _ampersand(token: str) -> str:
    # Entities are matched in any case; no other capital letter can be lost, the output is lower-cased anyway.
    return token.lower().replace("&amp;", "&")


_REWRITE: dict[int, Callable[[str], str]] = {
    4: _dashes,
    **dict.fromkeys((6, 12, 29, 30, 32, 40, 46), _soft_hyphens),
    **dict.fromkeys((8, 36), _closing_quote),
    **dict.fromkeys((26, 35), _opening_quote),
    14: _fractions,
    15: _currency,
    **dict.fromkeys((27, 38, 39), _spaces),
    **dict.fromkeys((28, 34), _parentheses),
    54: lambda token: _parentheses(_spaces(token)),
    **dict.fromkeys((37, 51), _ampersand),
}
