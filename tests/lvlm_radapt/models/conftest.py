"""What the tests of the models share: every family's checkpoint, opened once both ways."""

import pytest

from tests.helpers.families import Case, open_case


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """By the family's name, opened at the first use. No test leaves one changed."""
    root = tmp_path_factory.mktemp("checkpoints")

    class Opened(dict[str, Case]):
        def __missing__(self, name: str) -> Case:
            self[name] = open_case(name, root / name)
            return self[name]

    return Opened()
