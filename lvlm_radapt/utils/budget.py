"""Attack budgets that a user gives: what `attacks.eps` refuses ends in one line."""

from __future__ import annotations

from attacks import eps
from attacks.norms import Norm
from lvlm_radapt.utils.errors import UserError


def parse_eps(text: str, norm: Norm = "Linf") -> float:
    """`attacks.eps.parse_eps`; UserError for what is no budget."""
    try:
        return eps.parse_eps(text, norm)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_8bit_budget(value: float, norm: str | None) -> None:
    """`attacks.eps.check_8bit_budget`; UserError for less than one 8-bit level."""
    try:
        eps.check_8bit_budget(value, norm)
    except ValueError as error:
        raise UserError(str(error)) from error
