"""The scanner tables of Stanford's PTB tokenizer, read from the jar that pycocoevalcap installs.

The original tokenizer is a finite automaton that JFlex compiled into string constants of one Java class. A
class file is a plain binary format (Java Virtual Machine Specification, chapter 4), so the constants can be
read without Java, and the automaton then runs in Python exactly as it runs there. Nothing of the jar is
copied into this project.
"""

from __future__ import annotations

import hashlib
import importlib.util
import struct
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lvlm_radapt.utils.errors import UserError

JAR_NAME = "stanford-corenlp-3.4.1.jar"
_SCANNER = "edu/stanford/nlp/process/PTBLexer.class"
# The meaning of an action number belongs to one build of the scanner: any other build must be refused.
_SCANNER_SHA256 = "715fdfb3652cc6796f90f28442378a0c71c92b5909f1fc934f698497987b6dd0"
_UTF8, _STRING, _LONG, _DOUBLE = 1, 8, 5, 6
_CONSTANT_BYTES = {3: 4, 4: 4, _LONG: 8, _DOUBLE: 8, 7: 2, _STRING: 2, 9: 4, 10: 4, 11: 4, 12: 4}


@dataclass(frozen=True)
class Automaton:
    """A JFlex scanner over UTF-16 code units.

    char_class[unit] is the column of a code unit (65,536 entries); step[row[state] + column] the next
    state, -1 for none; a state in `accepts` ends a possible token whose action is action[state]; no token
    continues past one in `final`.
    """

    char_class: list[int]
    row: list[int]
    step: list[int]
    action: list[int]
    accepts: list[bool]
    final: list[bool]


def jar_path() -> Path:
    """Where pycocoevalcap keeps the Stanford jar. Raises UserError when it is not there."""
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "tokenizer" / JAR_NAME
        if path.is_file():
            return path
    raise UserError(f"pycocoevalcap has no tokenizer/{JAR_NAME}: run `pip install --force-reinstall pycocoevalcap`")


@lru_cache(maxsize=1)
def automaton() -> Automaton:
    """The tables of the installed jar, read once. Raises UserError for a missing or different jar."""
    path = jar_path()
    try:
        with zipfile.ZipFile(path) as jar:
            scanner = jar.read(_SCANNER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}; run `pip install --force-reinstall pycocoevalcap`") from None
    if hashlib.sha256(scanner).hexdigest() != _SCANNER_SHA256:
        raise UserError(f"{path} is not CoreNLP 3.4.1 as pycocoevalcap 1.2 ships it: reinstall pycocoevalcap==1.2")
    packed = _string_constants(scanner)
    attributes = _run_lengths(packed["ZZ_ATTRIBUTE_PACKED_0"])
    halves = _units(packed["ZZ_ROWMAP_PACKED_0"])
    parts = sorted(name for name in packed if name.startswith("ZZ_TRANS_PACKED_"))
    return Automaton(
        char_class=_run_lengths(packed["ZZ_CMAP_PACKED"]).tolist(),
        row=((halves[0::2] << 16) | halves[1::2]).tolist(),
        step=(np.concatenate([_run_lengths(packed[name]) for name in parts]) - 1).tolist(),
        action=_run_lengths(packed["ZZ_ACTION_PACKED_0"]).tolist(),
        accepts=((attributes & 1) == 1).tolist(),
        final=((attributes & 8) == 8).tolist(),
    )


def _units(text: str) -> NDArray[np.int64]:
    return np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2").astype(np.int64)


def _run_lengths(text: str) -> NDArray[np.int64]:
    """Undo JFlex's run-length packing: (count, value) pairs of code units."""
    units = _units(text)
    return np.repeat(units[1::2], units[0::2])


def _string_constants(data: bytes) -> dict[str, str]:
    """Field name -> value of the string constants of a class file."""
    utf8: dict[int, str] = {}
    strings: dict[int, int] = {}
    (count,) = struct.unpack_from(">H", data, 8)
    position, index = 10, 1
    while index < count:
        tag = data[position]
        position += 1
        if tag == _UTF8:
            (length,) = struct.unpack_from(">H", data, position)
            position += 2
            raw = data[position : position + length].replace(b"\xc0\x80", b"\0")  # Java's way to write NUL
            utf8[index] = raw.decode("utf-8", "surrogatepass")
            position += length
        else:
            if tag == _STRING:
                (strings[index],) = struct.unpack_from(">H", data, position)
            position += _CONSTANT_BYTES[tag]
        index += 2 if tag in (_LONG, _DOUBLE) else 1

    position += 6  # access flags, this class, super class
    (interfaces,) = struct.unpack_from(">H", data, position)
    position += 2 + 2 * interfaces
    (fields,) = struct.unpack_from(">H", data, position)
    position += 2
    values: dict[str, str] = {}
    for _ in range(fields):
        _, name, _, attributes = struct.unpack_from(">4H", data, position)
        position += 8
        for _ in range(attributes):
            kind, length = struct.unpack_from(">HI", data, position)
            (constant,) = struct.unpack_from(">H", data, position + 6) if length == 2 else (0,)
            if utf8[kind] == "ConstantValue" and constant in strings:
                values[utf8[name]] = utf8[strings[constant]]
            position += 6 + length
    return values
