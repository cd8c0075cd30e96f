"""The defences that ship, by the names that commands take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lvlm_radapt.defences.base import Defence
from lvlm_radapt.defences.csr import CSR
from lvlm_radapt.defences.jpeg import Jpeg
from lvlm_radapt.defences.radapt.defence import RAdapt
from lvlm_radapt.defences.random_resize import RandomResize
from lvlm_radapt.defences.ttc import TTC
from lvlm_radapt.utils.plugins import resolve

DEFENCES: Mapping[str, type[Defence]] = {cls.name: cls for cls in (RAdapt, Jpeg, RandomResize, TTC, CSR)}


def find_defence(given: str | type[Defence] | Defence, settings: Mapping[str, Any] | None = None) -> Defence:
    """The defence of that name, class or path `pkg.module:Name`, with these settings; a ready one as it is.

    UserError as for `resolve`.
    """
    return resolve("defence", given, DEFENCES, Defence, settings)
