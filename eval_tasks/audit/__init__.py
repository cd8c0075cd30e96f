"""The audit: checks that an evaluation is not broken, each with its numbers and a verdict.

`AuditTarget` is what is looked at, `full_audit` and `short_audit` look at it, `Audit` is what they say.
"""

from eval_tasks.audit.findings import Audit, Finding, Verdict
from eval_tasks.audit.short import short_audit, short_budget
from eval_tasks.audit.suite import CHECKS, full_audit
from eval_tasks.audit.target import AuditTarget

__all__ = ["CHECKS", "Audit", "AuditTarget", "Finding", "Verdict", "full_audit", "short_audit", "short_budget"]
