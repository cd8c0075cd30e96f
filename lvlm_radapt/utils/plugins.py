"""Attacks, defences and tasks by name: ours, those of installed packages, and any class of the user's own.

A name is one of three: ours (`jpeg`); an entry point of an installed package in the group `lvlm_radapt.KINDs`; or a
path `pkg.module:Name`. A plug-in is code: it is imported when it is named, and never before.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.printing import one_line

T = TypeVar("T")
_OURS = ("attacks", "eval_tasks", "lvlm_radapt")


class Origin(TypedDict):
    """Which code a plug-in is. name: `pkg.module:Name`; version: of the package that it comes from, None where none is
    installed; sha256: of the file that defines it, None where it is in no file."""

    name: str
    version: str | None
    sha256: str | None


def resolve(
    kind: str,
    given: str | type[T] | T,
    registry: Mapping[str, type[T]],
    base_class: type[T],
    settings: Mapping[str, Any] | None = None,
) -> T:
    """The attack, defence or task that `given` names, made with `settings`.

    kind: "attack", "defence" or "task", as in the group of entry points and in messages. given: a name as above, a
    class, or an object that is ready. registry: ours, by name; no plug-in can take their place.

    UserError for a name that is unknown or ambiguous; for a path that does not import; for what is no `base_class`;
    for a setting it does not know, or lacks; where its constructor fails; for settings beside a ready object.
    """
    found, name = _found(kind, given, registry)
    settings = dict(settings or {})
    if isinstance(found, base_class):
        if settings:
            raise UserError(f"{kind} {name} is an object with its settings made: leave {', '.join(settings)} out")
        return found
    if not isinstance(found, type) or not issubclass(found, base_class):
        raise UserError(f"{kind} {name} is no {base_class.__name__}: name a class that inherits from it")
    _check_settings(kind, name, found, settings)
    try:
        made = found(**settings)
    except Exception as error:  # a plug-in may raise anything
        raise UserError(f"{kind} {name} cannot be made: {_reason(error)}") from error
    return made


def available(kind: str, registry: Mapping[str, Any]) -> dict[str, str]:
    """Every name that `resolve` takes, with the package that brings it; "" for ours. No plug-in is imported."""
    others = {point.name: _package(point) for point in metadata.entry_points(group=_group(kind))}
    return {name: "" if name in registry else others[name] for name in sorted({*registry, *others})}


def is_plugin(kind: str, name: str) -> bool:
    """Whether a name is the path of a plug-in or that of an installed package's. Nothing is imported."""
    return ":" in name or name in {point.name for point in metadata.entry_points(group=_group(kind))}


def summary(cls: type) -> str:
    """The first paragraph of a class's docstring on one line, "" without one."""
    return one_line((inspect.getdoc(cls) or "").partition("\n\n")[0])


def origin(made: object) -> Origin | None:
    """Which code an attack, defence or task is; None for ours. `made` may be an object, a class or a function."""
    cls: Any = made if isinstance(made, type) or inspect.isfunction(made) else type(made)
    top = cls.__module__.partition(".")[0]
    if top in _OURS:
        return None
    return {"name": f"{cls.__module__}:{cls.__qualname__}", "version": _version(top), "sha256": _digest(cls)}


def read_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words of a command line as settings. A value is read as JSON where it is some (60, 0.5, true,
    "60"), and is text elsewhere. UserError for a word without `=` or key, and for a key that comes twice."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"setting {pair!r} is not KEY=VALUE, such as quality=60")
        if key in settings:
            raise UserError(f"setting {key} is given twice: keep one")
        settings[key] = _value(value)
    return settings


def _found(kind: str, given: Any, registry: Mapping[str, Any]) -> tuple[Any, str]:
    """What is named, and how messages call it."""
    if not isinstance(given, str):
        cls = given if isinstance(given, type) else type(given)
        return given, cls.__qualname__
    if given in registry:
        return registry[given], given
    if ":" in given:
        return _imported(kind, given), given
    points = list(metadata.entry_points(group=_group(kind), name=given))
    if len({point.value for point in points}) > 1:
        raise UserError(f"{kind} {given} is in several packages, {', '.join(map(_package, points))}: uninstall one")
    if points:
        try:
            return points[0].load(), given
        except (Exception, SystemExit) as error:  # a plug-in may raise anything
            raise UserError(f"{kind} {given} of {_package(points[0])} does not import: {_reason(error)}") from error
    names = ", ".join(available(kind, registry))
    raise UserError(f"{kind} {given!r} is unknown: choose one of {names}, or name your own as pkg.module:Name")


def allow_working_folder() -> None:
    """Let modules of the folder one works in be imported, after all that is installed."""
    if "" not in sys.path:
        sys.path.append("")


def _imported(kind: str, path: str) -> Any:
    module, _, name = path.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{kind} {path!r} is no path: write pkg.module:Name, without .py and folders")
    allow_working_folder()
    try:
        loaded = import_module(module)
    except (Exception, SystemExit) as error:  # a plug-in may raise anything
        raise UserError(f"{kind} {path} does not import: {_reason(error)}") from error
    try:
        return getattr(loaded, name)
    except AttributeError:
        raise UserError(f"{kind} {path}: the module {module} has no {name}") from None


def _check_settings(kind: str, name: str, cls: type, settings: Mapping[str, Any]) -> None:
    taken = inspect.signature(cls).parameters.values()
    if any(one.VAR_KEYWORD is one.kind for one in taken):
        return
    known = {one.name: one for one in taken if "KEYWORD" in one.kind.name}
    unknown = [key for key in settings if key not in known]
    if unknown:
        choose = f"known are {', '.join(known)}" if known else "it has none"
        raise UserError(f"{kind} {name} has no setting {', '.join(unknown)}: {choose}")
    lacking = [key for key, one in known.items() if one.default is one.empty and key not in settings]
    if lacking:
        raise UserError(f"{kind} {name} needs the setting {', '.join(lacking)}")


def _value(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)  # NaN and Infinity are no JSON

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text


def _group(kind: str) -> str:
    return f"lvlm_radapt.{kind}s"


def _package(point: metadata.EntryPoint) -> str:
    return "an unknown package" if point.dist is None else point.dist.name


def _version(top: str) -> str | None:
    packages = set(metadata.packages_distributions().get(top, ()))
    if len(packages) == 1:
        return metadata.version(packages.pop())
    version = getattr(sys.modules.get(top), "__version__", None)
    return version if isinstance(version, str) else None


def _digest(cls: Any) -> str | None:
    try:
        return hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()
    except (OSError, TypeError):  # of a notebook or an interactive session
        return None


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    said = one_line(str(error))
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
