"""What is evaluated and how, and what of it a run folder keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval_tasks.config.presets import Protocol, load_task_config
from eval_tasks.crafting.craft import AttackPlan
from eval_tasks.data import Sample, check_images, select, skip_missing
from eval_tasks.metrics.cider import check_enough
from eval_tasks.metrics.tokenizers import TokenizerName
from eval_tasks.tasks.exams import Exam
from lvlm_radapt.loading.quantised import quantisation_of
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True)
class EvalSettings:
    """One evaluation, apart from the model. `attack` None scores clean images only; `samples` None takes the
    whole set. Chunk and batch size are part of a run's identity: they decide the order of float sums."""

    task: str
    data: Path
    protocol: Protocol
    attack: AttackPlan | None
    samples: int | None
    seed: int
    chunk_size: int = 64
    batch_size: int = 32
    tokenizer: TokenizerName = "ptb"
    skip_missing: bool = False
    """Leave samples without an image out, in place of stopping."""
    ids: tuple[str, ...] | None = None
    """These samples, in place of a draw of `samples` with `seed`."""

    def select(self, everything: list[Sample]) -> tuple[list[Sample], str | None, str | None]:
        """The samples to be scored, in order; a note when there are fewer than asked for; one on those left out.

        UserError as for `eval_tasks.data.select`, for ids that are not in the data, for missing images,
        and for too few samples for the task's score.
        """
        note = left_out = None
        if self.ids is None:
            samples, note = select(everything, self.samples, self.seed)
        else:
            known = {sample.id: sample for sample in everything}
            absent = [one for one in self.ids if one not in known]
            if absent:
                raise UserError(f"{self.data} lacks {len(absent)} of the {len(self.ids)} samples: {absent[0]}, ...")
            samples = [known[one] for one in self.ids]
        if self.skip_missing:
            samples, left_out = skip_missing(samples)
        check_images(samples)
        if load_task_config(self.task).kind == "caption":
            check_enough(len(samples))
        return samples, note, left_out

    def describe(self) -> str:
        """The attack in a few words, for progress bars."""
        if self.attack is None:
            return "clean"
        return " ".join(filter(None, (self.attack.config.name, self.attack.threat)))


def run_document(
    model: PixelModel, settings: EvalSettings, exam: Exam, surrogate: PixelModel | None, command: str
) -> dict[str, Any]:
    """The settings as run.json keeps them; what is in here must be equal for a run to be resumed."""
    plan = settings.attack
    attack: dict[str, Any] | None = None
    if plan is not None:
        attack = {
            **plan.settings(),
            "surrogate": surrogate.name if surrogate else None,
            **exam.attack_settings(plan),
        }
    return {
        "command": command,
        "determinism": _determinism(model),
        "threads": torch.get_num_threads(),
        "model": {
            "name": model.label,
            "revision": model.revision,
            "tower": model.tower_name,
            "max_pixels": model.max_pixels,
            "radapt": model.radapt.to_dict() if model.radapt else None,
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantize": quantisation_of(model.hf),
            "device": model.device.type,
            "attn": model.hf.config._attn_implementation,
            "geometry": model.geometry,
            "views_apart": model.views_apart,
            "image_backend": model.image_backend,
        },
        "task": settings.task,
        "data": str(settings.data),
        "preset": settings.protocol.name,
        **exam.settings(),
        "attack": attack,
        "seed": settings.seed,
        "chunk_size": settings.chunk_size,
        "batch_size": settings.batch_size,
        "tokenizer": settings.tokenizer,
    }


def _determinism(model: PixelModel) -> str:
    """What another run with these settings gives, and what nobody promises."""
    if model.device.type == "cpu" and model.dtype == torch.float32:
        return (
            "equal settings, versions and CPU threads of each process (threads; set by OMP_NUM_THREADS) on one machine "
            "give the same samples, images, texts and scores, bit for bit, whatever the number of processes or "
            "interruptions"
        )
    return (
        f"samples, seeds and starting noise are the same for equal settings; images, texts and scores are not "
        f"guaranteed on {model.device.type} in {str(model.dtype).removeprefix('torch.')}: kernels chosen at run time "
        "and sums in no fixed order may differ in the last bits, which an attack amplifies"
    )
