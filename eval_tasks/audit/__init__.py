"""The audit: checks that an evaluation is not broken, each with its numbers and a verdict.

`Subject` is what is looked at, `full_audit` and `short_audit` look at it, `Audit` is what they say.
"""

from eval_tasks.audit.findings import Audit, Finding, Verdict
from eval_tasks.audit.short import short_audit, short_budget
from eval_tasks.audit.subject import Subject
from eval_tasks.audit.suite import CHECKS, full_audit

__all__ = ["CHECKS", "Audit", "Finding", "Subject", "Verdict", "full_audit", "short_audit", "short_budget"]
