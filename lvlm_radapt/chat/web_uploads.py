"""Images that visitors of the web chat sent. They stay in memory: no path a browser names is ever opened."""

from __future__ import annotations

import re
import secrets
import threading
from dataclasses import dataclass

from lvlm_radapt.utils.errors import UserError

LARGEST_UPLOAD = 20 * 2**20  # bytes, the form around it included
MOST_PIXELS = 25_000_000
_KEPT = 8  # uploads at a time; the page fetches each at once


@dataclass(frozen=True)
class Upload:
    """A file as it was sent; its name is only shown."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """The file's bytes."""
        return self.content


class Uploads:
    """Uploads that nobody has taken yet. Each has a secret name, which only its sender gets, and is taken once."""

    def __init__(self) -> None:
        self._kept: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def add(self, name: str, content: bytes) -> str:
        """Keep a file, for its secret name; the oldest ones give way."""
        secret = secrets.token_urlsafe(24)
        shown = re.split(r"[/\\]", name)[-1][:100] or "image"
        with self._lock:
            self._kept[secret] = Upload(shown, content)
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
        return secret

    def take(self, secret: str) -> Upload:
        """The file of that secret name, which is then forgotten; UserError where there is none."""
        with self._lock:
            found = self._kept.pop(secret, None)
        if found is None:
            raise UserError("no such upload: send the image again")
        return found
