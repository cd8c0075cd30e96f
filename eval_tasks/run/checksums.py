"""SHA-256 sums by which a run folder notices that a record or an image was changed after the run.

They find accidents and casual edits, and folders whose files come from two runs. Whoever rewrites a record and its sum
is not found: there is no secret in them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval_tasks.config.validation import read_bytes

_SEALED = re.compile(rb'(.*),"checksum":"([0-9a-f]{64})"\}', re.DOTALL)


def settings_key(settings: Mapping[str, Any]) -> bytes:
    """What makes the sums of one run those of these settings alone."""
    return hashlib.sha256(_canonical(settings)).digest()


def sealed(line: bytes, key: bytes) -> bytes:
    """A JSON object with its sum as its last entry, "checksum"."""
    return b'%s,"checksum":"%s"}' % (line[:-1], _sum(line, key).encode())


def unsealed(line: bytes, key: bytes) -> tuple[bytes, bool | None]:
    """The object without its sum, and whether that is right; None where there is none."""
    found = _SEALED.fullmatch(line)
    if found is None:
        return line, None
    body = found[1] + b"}"
    return body, found[2].decode() == _sum(body, key)


def document_sum(document: Mapping[str, Any], key: bytes) -> str:
    """The sum of a JSON object, however it is laid out in its file."""
    return _sum(_canonical(document), key)


def bytes_sum(content: bytes) -> str:
    """Of a file's bytes, as `sha256sum` has it."""
    return hashlib.sha256(content).hexdigest()


def file_sum(path: Path) -> str:
    """`bytes_sum` of a file; UserError where it cannot be read."""
    return bytes_sum(read_bytes(path))


def _sum(content: bytes, key: bytes) -> str:
    return hashlib.sha256(key + content).hexdigest()


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, allow_nan=False).encode()
