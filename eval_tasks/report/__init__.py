"""What readers see of runs: the page, tables in four formats, figures."""

from eval_tasks.report.page import write_report

__all__ = ["write_report"]
