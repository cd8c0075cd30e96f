"""The scores of a task whose answers are texts."""

from __future__ import annotations

from collections.abc import Sequence

from eval_tasks.captioning import CaptionScores
from eval_tasks.choice import ChoiceScores
from eval_tasks.data import Sample
from eval_tasks.metrics.tokenizers import TokenizerName
from eval_tasks.presets import TaskConfig
from eval_tasks.vqa import VqaScores
from lvlm_radapt.errors import UserError


def text_scores(
    task: TaskConfig, samples: Sequence[Sample], *, tokenizer: TokenizerName
) -> CaptionScores | VqaScores | ChoiceScores:
    """How answers about these samples are judged; the tokenizer is that of captions. UserError for a task that asks
    for no texts."""
    if task.kind == "caption":
        return CaptionScores(samples, tokenizer=tokenizer)
    if task.style is None:
        raise UserError(f"--task {task.name} is for image encoders: no answer in texts is judged there")
    if task.style == "yes_no" or task.style == "letter":
        return ChoiceScores(samples, style=task.style)
    return VqaScores(samples, style=task.style)
