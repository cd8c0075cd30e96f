"""All families that can be opened here: those of this package, and those that other packages bring."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Iterator
from importlib import import_module, metadata

from lvlm_radapt import models
from lvlm_radapt.models.family import Family
from lvlm_radapt.utils.errors import UserError, first_sentence

GROUP = "lvlm_radapt.models"
"""The entry points of other packages."""


@functools.cache
def lvlm_families() -> dict[str, Family]:
    """model_type of a config.json -> the family that opens it as a vision-language model."""
    return {kind: family for kind, family in _families().items() if family.lvlm is not None}


@functools.cache
def encoder_families() -> dict[str, Family]:
    """model_type of a config.json -> the family that opens it as an image encoder."""
    return {kind: family for kind, family in _families().items() if family.encoder is not None}


@functools.cache
def image_processors() -> dict[str, bool]:
    """Every image_processor_type that is read, sorted -> whether its sizes are numbers of pixels."""
    found: dict[str, bool] = {}
    for family in _families().values():
        for name in family.image_processors:
            found[name] = found.get(name, False) or (family.lvlm is not None and family.lvlm.grows)
    return dict(sorted(found.items()))


def _families() -> dict[str, Family]:
    """UserError where two claim one model_type, or another package's is none."""
    found: dict[str, tuple[str, Family]] = {}
    for where, family in (*_own(), *_others()):
        for kind in family.available:
            if kind in found:
                first = found[kind][0]
                raise UserError(
                    f"model_type {kind!r} is claimed by two families, in {first} and in {where}: uninstall one of them"
                )
            found[kind] = where, family
    return {kind: family for kind, (_, family) in found.items()}


def _own() -> Iterator[tuple[str, Family]]:
    for module in pkgutil.iter_modules(models.__path__, f"{models.__name__}."):
        try:
            family = getattr(import_module(module.name), "FAMILY", None)
        except ImportError as error:
            if not _lacks_transformers(error):
                raise
            continue
        if family is not None:
            yield module.name, family


def _others() -> Iterator[tuple[str, Family]]:
    for entry in metadata.entry_points(group=GROUP):
        try:
            family = entry.load()
        except (Exception, SystemExit) as error:  # code of others
            if _lacks_transformers(error):
                continue
            reason = first_sentence(error) or type(error).__name__
            raise UserError(f"entry point {GROUP} {entry.name!r}: cannot import {entry.value}: {reason}") from error
        if not isinstance(family, Family):
            raise UserError(f"entry point {GROUP} {entry.name!r}: {entry.value} is no Family")
        yield entry.value, family


def _lacks_transformers(error: BaseException) -> bool:
    """Whether a file asks for what the installed transformers does not have: its family is absent then."""
    return isinstance(error, ImportError) and str(error.name).partition(".")[0] == "transformers"
