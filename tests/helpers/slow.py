"""One value of a test's table that is slow, where the others are not."""

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """These arguments of the test, left out by `make test`."""
    return pytest.param(*values, marks=pytest.mark.slow)
