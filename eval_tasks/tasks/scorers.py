"""The scores of a task whose answers are texts."""

from __future__ import annotations

from collections.abc import Sequence

from eval_tasks.config.presets import TaskConfig
from eval_tasks.data import Sample
from eval_tasks.metrics.tokenizers import TokenizerName
from eval_tasks.metrics.vqa import Style
from eval_tasks.tasks.captioning import CaptionScores
from eval_tasks.tasks.choice import ChoiceScores
from eval_tasks.tasks.vqa import VqaScores
from lvlm_radapt.utils.errors import UserError


def text_scores(
    task: TaskConfig, samples: Sequence[Sample], *, tokenizer: TokenizerName, style: Style | None = None
) -> CaptionScores | VqaScores | ChoiceScores:
    """How answers about these samples are judged; the tokenizer is that of captions, the style that of VQA answers.
    UserError for a task that asks for no texts."""
    if task.kind == "caption":
        return CaptionScores(samples, tokenizer=tokenizer)
    if task.kind == "vqa":
        if style is None:
            raise ValueError(f"task {task.name} needs a style of VQA scores")
        return VqaScores(samples, style=style)
    if task.style is None:
        raise UserError(f"--task {task.name} is for image encoders: no answer in texts is judged there")
    return ChoiceScores(samples, style=task.style)
