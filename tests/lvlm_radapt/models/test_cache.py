"""The key-value cache reaches the language model under either name that transformers has had for it."""

import ast
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lvlm_radapt.models.language import greedy, key_value_cache
from tests.helpers import tiny_random
from tests.helpers.paths import ROOT

NAMES = {"cache", "past_key_values"}


class Wrapped(nn.Module):
    """A language model that counts the tokens of each pass; `run` hands a cache on under the installed name."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config, self.lengths = inner, inner.config, []
        (self.installed,) = key_value_cache(inner)

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def run(self, cache: Any, inputs_embeds: Tensor, rest: dict[str, Any]) -> Any:
        self.lengths.append(inputs_embeds.shape[1])
        return self.inner(inputs_embeds=inputs_embeds, **{self.installed: cache}, **rest)


class New(Wrapped):
    """As transformers 5.24 calls it."""

    def forward(self, inputs_embeds: Tensor, cache: Any = None, **kwargs: Any) -> Any:
        return self.run(cache, inputs_embeds, kwargs)


class Old(Wrapped):
    """As before: another keyword goes into `kwargs`, where nothing reads it."""

    def forward(self, inputs_embeds: Tensor, past_key_values: Any = None, **kwargs: Any) -> Any:
        kwargs.pop("cache", None)
        return self.run(past_key_values, inputs_embeds, kwargs)


@torch.no_grad()
def without_cache(hf: Any, ids: Tensor, count: int) -> list[list[int]]:
    """The most likely token again and again, each from a pass over everything before it."""
    for _ in range(count):
        states = hf.model.language_model(input_ids=ids, use_cache=False).last_hidden_state
        ids = torch.cat([ids, hf.get_output_embeddings()(states[:, -1:]).argmax(-1)], 1)
    return ids[:, -count:].tolist()


@pytest.mark.parametrize("signature", [New, Old])
def test_answers_with_a_cache_are_those_of_whole_passes(signature: type[Wrapped]) -> None:
    hf = tiny_random.llava().eval()
    ids = torch.randint(4, 60, (3, 7))
    expected = without_cache(hf, ids, 6)
    wrapped = hf.model.language_model = signature(hf.model.language_model)
    with torch.no_grad():
        answers = greedy(
            hf,
            wrapped,
            ids=ids,
            mask=torch.ones_like(ids),
            embeds=hf.get_input_embeddings()(ids),
            positions=torch.arange(7).expand(3, 7),
            max_new_tokens=6,
            end_ids=[],
            first={},
            each=lambda _: {},
        )
    assert answers == expected
    assert len({token for answer in answers for token in answer}) > 3
    assert wrapped.lengths == [7, 1, 1, 1, 1, 1], "one token a pass after the first"


def mentions(tree: ast.AST) -> list[str]:
    """Where a keyword argument, an attribute or a string has one of the cache's names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in NAMES:
            found.append(f"{node.value.lineno}: {node.arg}=")
        elif isinstance(node, ast.Attribute) and node.attr == "past_key_values":
            found.append(f"{node.lineno}: .{node.attr}")
        elif isinstance(node, ast.Constant) and node.value in NAMES:
            found.append(f"{node.lineno}: {node.value!r}")
    return found


def test_no_other_file_names_either_keyword() -> None:
    places = ("lvlm_radapt", "eval_tasks", "attacks", "benchmarks", "docs")
    files = [file for place in places for file in (ROOT / place).rglob("*.py")]
    found = {file.relative_to(ROOT).as_posix(): mentions(ast.parse(file.read_text())) for file in files}
    assert {name for name, hits in found.items() if hits} == {"lvlm_radapt/models/language.py"}
