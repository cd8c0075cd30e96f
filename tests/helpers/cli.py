"""The command line called in this process."""

import sys

from lvlm_radapt import cli


def call(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `lvlm-radapt ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["lvlm-radapt", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    out, err = capsys.readouterr()
    return code, out, err
