"""The command line: reads flags, calls the rest. A file a command; `main` is what the console script runs."""

import os

# isort: off -- in this order the commands stand in --help
from lvlm_radapt.cli import (  # noqa: F401  # noqa: F401
    analyze,
    audit,
    chat,
    check,
    compare,
    data,
    demo,
    evaluate,
    finetune,
    harden,
    leaderboard,
    list_command,
    pack,
    push,
    report,
    robustify,
    serve,
    tune,
)

# isort: on
from lvlm_radapt.cli.app import app
from lvlm_radapt.cli.entry import main
from lvlm_radapt.cli.placing import default_preset

__all__ = ["app", "default_preset", "main"]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
