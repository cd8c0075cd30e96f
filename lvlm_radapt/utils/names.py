"""Names that stand in files: a name is one part of a path, and a path stays below its folder, on every system."""

from __future__ import annotations

from pathlib import PureWindowsPath

_LONGEST = 200  # file systems take 255 bytes, suffix included


def leaves_folder(name: str) -> bool:
    """Whether the path could lead out of the folder that it is relative to."""
    parts = _parts(name)
    return not name or "\0" in name or parts[0] == "" or ".." in parts or bool(PureWindowsPath(name).drive)


def can_be_a_file(name: str) -> bool:
    """Whether no part of the path is too long for a file system or holds control characters."""
    return max(map(len, _parts(name))) <= _LONGEST and not any(
        ord(c) < 32 or 0xD7FF < ord(c) < 0xE000 or ord(c) == 127 for c in name
    )


def is_one_part(name: str) -> bool:
    """Whether the name is a file's or folder's own, with no path around it."""
    return not leaves_folder(name) and can_be_a_file(name) and len(_parts(name)) == 1 and name != "."


def is_utf8(name: str) -> bool:
    """Whether the name can be written as UTF-8: Python holds other bytes of a file's name as surrogates."""
    return not any(0xD7FF < ord(c) < 0xE000 for c in name)


def _parts(name: str) -> list[str]:
    return name.replace("\\", "/").split("/")
