"""What is refused before any work begins."""

from __future__ import annotations

from pathlib import Path

from eval_tasks.config.presets import FinetuneRecipe
from eval_tasks.tasks.base import Task
from eval_tasks.tasks.text import TextTask
from lvlm_radapt.loading.load import is_encoder, is_robustified
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.selfcheck.run import opened_checks
from lvlm_radapt.selfcheck.stock import Kept
from lvlm_radapt.selfcheck.trial import photo_like
from lvlm_radapt.training.learned_anchor import LearnSettings
from lvlm_radapt.training.robust_twin import LOG
from lvlm_radapt.utils.errors import UserError

HARDENED = "hardened.json"
"""In a hardened folder: what it was made of, and the verdict."""
LEAST_CLEAN = 1.0
"""Points of clean score under which there is nothing to protect."""


def check_model(model: str, task: Task) -> None:
    """UserError for an image encoder, a model that is hardened already, and a task that is not answered in texts."""
    if is_robustified(model):
        raise UserError(f"{model} has a defence already: harden the model that it was made of")
    folder = Path(model).expanduser()
    for file, what in ((HARDENED, "hardened"), (LOG, "fine-tuned adversarially")):
        if (folder / file).is_file():
            raise UserError(f"{model} is {what} already ({file} is there): harden the model that it was made of")
    if is_encoder(model):
        raise UserError(
            f"{model} is an image encoder: harden takes vision-language models, finetune and audit serve for encoders"
        )
    if not isinstance(task, TextTask):
        raise UserError(f"--task {task.name} is not answered in texts: choose a caption or question task")


def check_opened(model: PixelModel, name: str) -> None:
    """UserError where a model that is open fails `lvlm-radapt check`, its part against transformers left out."""
    failed = [one.name for one in opened_checks(model, name, photo_like(), Kept()) if one.verdict == "fail"]
    if failed:
        raise UserError(f"{name} fails {len(failed)} checks ({', '.join(failed)}): lvlm-radapt check {name} says more")


def check_training(count: int, limit: int, dropped: int, photos: Path, recipe: FinetuneRecipe) -> None:
    """UserError where `count` images are too few for a batch of each method beside those that are held back.

    limit: how many --image-count allows.
    """
    least = recipe.batch_size + max(1, min(32, recipe.batch_size // 9))
    least = max(least, LearnSettings().batch + 2)
    if count < least:
        shared = f" ({dropped} more are in --data, too)" if dropped else ""
        if count == limit:
            raise UserError(f"--image-count {limit} is too few images to train on: give {least} or more")
        raise UserError(f"{photos} has {count} images to train on{shared}: give {least} or more")


def check_clean(score: float, count: int) -> None:
    """UserError where the model's mean clean score on `count` samples is near zero."""
    if score < LEAST_CLEAN:
        raise UserError(
            f"the clean score is {score:.1f} on {count} samples, so there is nothing to protect: check --task, --data "
            "and --preset"
        )
