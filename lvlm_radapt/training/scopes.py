"""Which weights of a vision encoder are trained, from the whole tower down to where its robustness sits."""

from __future__ import annotations

from typing import Literal, get_args

from lvlm_radapt.errors import UserError
from lvlm_radapt.parts import ATTENTION, EMBEDDING, tower_parts
from lvlm_radapt.towers import Tower

Scope = Literal["tower", "shallow", "embedding+attention"]
_PARTS: dict[str, tuple[str, ...]] = {
    "shallow": (EMBEDDING, "block1"),
    "embedding+attention": (EMBEDDING, ATTENTION),
}


def scope_parameters(tower: Tower, scope: Scope) -> list[str]:
    """Names of the parameters of `tower.module` that are trained, in the module's order.

    tower: all of them. shallow: the embedding (patches, positions, class token, norm) and the first block.
    embedding+attention: the embedding, and of the first block the attention with its norm. After the finding that an
    adversarially fine-tuned encoder holds its robustness there (arXiv 2603.12799, progressive replacement).

    Raises:
        UserError: an unknown scope.
    """
    if scope not in get_args(Scope):
        raise UserError(f"scope {scope!r} is unknown, choose one of {', '.join(get_args(Scope))}")
    every = [name for name, _ in tower.module.named_parameters()]
    if scope == "tower":
        return every
    parts = tower_parts(tower)
    chosen = {name for part in _PARTS[scope] for name in parts[part]}
    return [name for name in every if name in chosen]
