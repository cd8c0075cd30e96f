"""Settings every test shares."""

import gc
import math
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

# Every run draws the same examples; HYPOTHESIS_PROFILE=random draws new ones. A busy machine is no failure, so that
# nothing has to be done in a given time.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

_survived: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_words_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command says depends on no clock: slow work writes no line in between."""
    monkeypatch.setattr("lvlm_radapt.utils.progress.SILENT", math.inf)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.helpers.cases import make_shared

    return make_shared(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Any:
    """`cli(*words)` is `lvlm-radapt WORDS` in this process; see `Cli` for its `done` and `refused`."""
    from tests.helpers.cli import Cli

    return Cli(capsys)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drawn scenes under `data` and a tiny random LLaVA under `llava`, which no test changes."""
    from lvlm_radapt.embedded.dataset import write_scenes
    from tests.helpers.tiny_checkpoints import save_llava

    root = tmp_path_factory.mktemp("place")
    write_scenes(root / "data", count=4)
    save_llava(root / "llava")
    return root


@pytest.fixture
def score(cli: Any, place: Path, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """score(*more): what `eval` on the questions of `place` ends with and says. out: where in `tmp_path`."""

    def run(*more: object, model: object = None, out: str | None = "run") -> tuple[int, str, str]:
        words = ["eval", model or place / "llava", "--task", "vqav2", "--data", place / "data", "--preset", "scenes"]
        return cli(*words, *(("--out", tmp_path / out) if out else ()), *more)  # type: ignore[no-any-return]

    return run


@pytest.fixture
def survived() -> Callable[[str, int], None]:
    """survived(what, how many): counted up over all tests and printed at the end."""

    def count(what: str, number: int = 1) -> None:
        _survived[what] += number

    return count


@pytest.fixture
def refused(shared: Path, tmp_path: Path, cli: Any, survived: Callable[[str, int], None]) -> Callable[[Any], str]:
    """refused(case): a command of a table of bad inputs ends in its one line, and nothing is lost. What it said."""
    from tests.helpers.cases import Place, assert_refused

    def check(case: Any) -> str:
        said = assert_refused(case, Place.of(shared, tmp_path), cli)
        survived("bad inputs refused", 1)
        return said

    return check


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """An empty mount point of two megabytes; a test that needs more remounts it."""
    point = tmp_path / "mounted"
    point.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(point)]
    if (
        os.name != "posix"
        or os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(words, capture_output=True).returncode
    ):
        pytest.skip("nothing can be mounted here")
    try:
        yield point
    finally:
        # lazily: a file that a failed torch.save leaves open is closed when its exception is collected
        subprocess.run(["umount", "--lazy", str(point)], check=True)


def pytest_collection_finish() -> None:
    """What is imported by now stays to the end: the garbage collector, which the program calls itself where memory does
    not suffice, need not walk over it again and again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _survived:
        terminalreporter.section("faults")
        for what, number in sorted(_survived.items()):
            terminalreporter.write_line(f"{what:<44} {number:>6}")
