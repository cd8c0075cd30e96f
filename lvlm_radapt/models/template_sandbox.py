"""A checkpoint's chat template is a program of its author: it runs in a sandbox, for a limited time and in
limited memory, and no single operation of it may take for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jinja2.filters import do_round
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from transformers.utils import chat_template_utils

from lvlm_radapt.utils.memory_limit import memory_limit
from lvlm_radapt.utils.time_limit import within

NO_THOUGHTS = {"enable_thinking": False}
"""What Qwen's, GLM's and other templates know. Answers of a few tokens are scored: thoughts would fill them."""
_MOST_BITS = 4096
"""Of a whole number that a template computes."""
_MOST_ITEMS = 1_000_000
"""Of a text or a list that a template repeats."""
_MOST_PLACES = 100
_MOST_MEMORY = 500_000_000
"""Bytes that rendering may add; a known template needs less than a million."""
_SWAPPING = threading.Lock()


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with bounds on the operations that run in C, where no time limit reaches them."""

    intercepted_binops = frozenset({"**", "*"})

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.filters["round"] = _bounded_round

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            # the bits of the result, or more
            bits = left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MOST_BITS:
                raise SecurityError(f"{operator} gives a number of more than {_MOST_BITS} bits")
        for one, times in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(times, int) and len(one) * times > _MOST_ITEMS:
                raise SecurityError(f"{operator} repeats to more than {_MOST_ITEMS} parts")
        return super().call_binop(context, operator, left, right)


def _bounded_round(value: Any, precision: int = 0, method: Any = "common") -> Any:
    if abs(precision) > _MOST_PLACES:
        raise SecurityError(f"round to {precision} places: at most {_MOST_PLACES}")
    return do_round(value, precision, method)


def rendered(tokenizer: Any, chat_template: Any, messages: list[dict[str, Any]], seconds: float) -> str:
    """The messages in that template, up to where the answer begins; without thoughts, where the template can leave
    them out. Raises what the template makes Python raise, TookTooLong, and MemoryError with a sentence."""
    try:
        return _rendered(tokenizer, chat_template, messages, seconds)
    except MemoryError as error:
        raise MemoryError(f"it takes more than {_MOST_MEMORY // 1_000_000} MB of memory") from error


def _rendered(tokenizer: Any, chat_template: Any, messages: list[dict[str, Any]], seconds: float) -> str:
    with _bounded(), memory_limit(_MOST_MEMORY):
        return within(
            seconds,
            lambda: tokenizer.apply_chat_template(
                messages, chat_template=chat_template, tokenize=False, add_generation_prompt=True, **NO_THOUGHTS
            ),
        )


@contextmanager
def _bounded() -> Iterator[None]:
    """Inside, transformers compiles templates for the bounded sandbox: it offers no setting for that."""
    with _SWAPPING:
        theirs = chat_template_utils.ImmutableSandboxedEnvironment
        chat_template_utils.ImmutableSandboxedEnvironment = BoundedSandbox
        try:
            yield
        finally:
            chat_template_utils.ImmutableSandboxedEnvironment = theirs
