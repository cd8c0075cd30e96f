"""The tokenizers of caption scores, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from eval_tasks.metrics import ptb, ptb_java
from lvlm_radapt.utils.errors import UserError


class Tokenizer(Protocol):
    """Captions -> their tokens joined by spaces, in order; a caption's tokens depend on it alone."""

    def __call__(self, captions: Sequence[str]) -> list[str]: ...


TokenizerName = Literal["ptb", "java"]

_TOKENIZERS: dict[str, Tokenizer] = {"ptb": ptb.tokenize_all, "java": ptb_java.tokenize_all}


def tokenizer(name: str) -> Tokenizer:
    """The tokenizer called "ptb" (no Java) or "java" (the original). Raises UserError for other names."""
    if name not in _TOKENIZERS:
        raise UserError(f"unknown tokenizer {name!r}: use one of {', '.join(_TOKENIZERS)}")
    return _TOKENIZERS[name]
