"""Scores of captions and answers, and how sure they are."""

from eval_tasks.metrics.bootstrap import Interval, bootstrap_ci, gain_share_ci, paired_difference_ci
from eval_tasks.metrics.cider import CiderScorer, cider
from eval_tasks.metrics.vqa import normalise_answer, vqa_accuracy

__all__ = [
    "CiderScorer",
    "Interval",
    "bootstrap_ci",
    "cider",
    "gain_share_ci",
    "normalise_answer",
    "paired_difference_ci",
    "vqa_accuracy",
]
