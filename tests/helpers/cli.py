"""The command line called in this process."""

import sys
from functools import cache

import pytest
import typer.main

import lvlm_radapt.cli

commands_of = cache(typer.main.get_command)
"""The commands of a Typer app, built once: Typer builds all of them anew at every call."""


def exit_code(*words: object) -> int:
    """What `lvlm-radapt WORDS` ends with, at a terminal of 200 columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lvlm-radapt", *map(str, words)])
        patch.setenv("COLUMNS", "200")
        patch.setattr(typer.main, "get_command", commands_of)
        try:
            lvlm_radapt.cli.main()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return 0


class Cli:
    """The same with what it says; as the fixture `cli`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        self._capsys.readouterr()
        code = exit_code(*words)
        return code, *self._capsys.readouterr()

    def done(self, *words: object) -> str:
        """What a command that ends well says on stdout."""
        code, out, err = self(*words)
        assert code == 0, err
        return out

    def refused(self, *words: object) -> str:
        """The one line on stderr of a command that is refused."""
        code, out, err = self(*words)
        assert (code, out, len(err.strip().splitlines())) == (2, "", 1), out + err
        return err
