"""The earlier names of `attacks.suite`, for one release."""

from attacks.suite import SuiteResult as LineResult
from attacks.suite import SuiteSettings as LineSettings
from attacks.suite import check_members
from attacks.suite import run_suite as attack_line

__all__ = ["LineResult", "LineSettings", "attack_line", "check_members"]
