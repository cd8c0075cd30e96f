"""Settings every test shares."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

# `make test` draws the same examples every time; `make torture` (HYPOTHESIS_PROFILE=random) new ones. A busy machine is
# no failure, so that nothing has to be done in a given time.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_survived: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cases import make_shared

    return make_shared(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def survived() -> Callable[[str, int], None]:
    """survived(what, how many): counted up over all tests and printed at the end."""

    def count(what: str, number: int = 1) -> None:
        _survived[what] += number

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _survived:
        terminalreporter.section("faults")
        for what, number in sorted(_survived.items()):
            terminalreporter.write_line(f"{what:<44} {number:>6}")
