"""Self-contained HTML pages in the reports' looks: templates rendered with escaping, files written whole or not."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lvlm_radapt.utils.writing import write_whole


def write_page(out: Path, template: str, **values: Any) -> Path:
    """Render `templates/TEMPLATE` to the file `out`. UserError when it cannot be written."""
    return write_text(out, templates().get_template(template).render(**values))


@cache
def templates(package: str = "eval_tasks.report", **filters: Callable[[Any], str]) -> Environment:
    """The templates in `package`'s folder `templates`, compiled once a process. filters: beside `minus`."""
    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"minus": _minus, **filters}
    return environment


def _minus(text: object) -> str:
    """Hyphens before numbers as minus signs."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\u2212", str(text))


def write_json(out: Path, document: Any) -> Path:
    """The document as a JSON file, whole or not at all. UserError when it cannot be written."""
    return write_text(out, json.dumps(document, indent=1, allow_nan=False) + "\n")


def data_uri(kind: str, content: bytes) -> str:
    """The content as part of a page. kind: its media type, such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write_text(out: Path, text: str) -> Path:
    """The file, whole or not at all. UserError when it cannot be written."""
    return write_whole(out, text.encode(errors="backslashreplace"))  # JSON may hold halves of characters
