"""Which weights of a vision encoder are trained, from the whole tower down to where its robustness sits."""

from __future__ import annotations

from lvlm_radapt.towers import Tower
from lvlm_radapt.towers.parts import ATTENTION, EMBEDDING, part_parameters
from lvlm_radapt.utils.errors import UserError

WHOLE = "tower"
_NAMED = {"shallow": (EMBEDDING, "block1"), "embedding+attention": (EMBEDDING, ATTENTION)}


def scope_parameters(tower: Tower, scope: str) -> list[str]:
    """Names of the parameters of `tower.module` that are trained, in the module's order.

    tower: all of them. shallow: the embedding (patches, positions, class token, norm) and the first block.
    embedding+attention: the embedding, and of the first block the attention with its norm. Or parts as `--replace`
    takes them, joined by a plus sign, as in embedding+attention1+attention2. After the finding that an adversarially
    fine-tuned encoder holds its robustness in the first of them (arXiv 2603.12799, progressive replacement).

    Raises:
        UserError: an unknown scope, or a part that the tower does not have.
    """
    if scope == WHOLE:
        return [name for name, _ in tower.module.named_parameters()]
    try:
        return part_parameters(tower, _parts(scope))
    except UserError as error:
        known = ", ".join((WHOLE, *_NAMED))
        raise UserError(f"scope {scope!r} is neither {known} nor parts joined by +: {error}") from error


def scope_words(scope: str, rank: int | None = None) -> str:
    """What is trained, for people."""
    place = "the whole vision tower" if scope == WHOLE else f"{' and '.join(_parts(scope))} of the vision tower"
    return place if rank is None else f"changes of rank {rank} of the matrices in {place}"


def _parts(scope: str) -> list[str]:
    return list(_NAMED.get(scope) or scope.split("+"))
