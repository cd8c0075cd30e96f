"""What the commands make of --defence, --defence-set and --eot-draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from lvlm_radapt.defences.base import Defence


def defence_of(name: str | None, settings: Sequence[str] | None, draws: int | None = None) -> Defence | None:
    """The defence that these flags name, None for none. UserError for flags that do not fit together, and as for
    `find_defence`: all before a model is loaded."""
    from lvlm_radapt.defences.registry import find_defence
    from lvlm_radapt.utils.plugins import read_settings

    if name is None:
        if settings:
            raise UserError("--defence-set is for --defence: name the defence, or leave the settings out")
        if draws is not None:
            raise UserError("--eot-draws is for a random --defence: name one, or leave it out")
        return None
    defence = find_defence(name, read_settings(settings or ()))
    if draws is not None and not defence.random:
        raise UserError(f"--eot-draws is for a random defence: {defence.name} draws nothing, leave it out")
    return defence
