"""What every task is: its samples, and, once a model is there, questions, answers and scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from eval_tasks.crafting.attack import Attack, attacked_view
from eval_tasks.crafting.batches import SampleBatch, ScoredBatch, Tell
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from eval_tasks.data import Sample, load_task, sort_samples
from eval_tasks.data.loader import find_loader
from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.plugins import Origin, origin


@dataclass(frozen=True)
class TaskInputs:
    """everything: the whole data set, whose classes are the choices; samples: the selected ones. batch_size: images at
    a time. surrogate: what transfer images are crafted on. texts: supplies text embeddings in the model's place."""

    model: PixelModel
    everything: Sequence[Sample]
    samples: Sequence[Sample]
    batch_size: int
    surrogate: PixelModel | None = None
    texts: PixelModel | None = None


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is asked about images, and how the answers are scored. It holds no model and no data.

    preset: the name of the protocol that its settings come from. loader: `package.module:function` that reads the data
    folder of a task that does not ship; None for those that do.
    """

    name: str
    preset: str = ""
    loader: str | None = None
    metric: ClassVar[str]
    """The score's name and unit, higher is better for the defender: cider, or a percentage."""
    kind: ClassVar[str]
    """What presets call its prompts and limits: caption, vqa, choice, classification or retrieval."""

    def load(self, data: Path) -> list[Sample]:
        """All samples in the data folder, in a fixed order. UserError where the folder is not this task's."""
        if self.loader is None:
            return load_task(self.name, data)
        return sort_samples(find_loader(self.loader)(data))

    def plugin(self) -> Origin | None:
        """Which outside code it is, or reads its data; None for ours."""
        return origin(self) or (None if self.loader is None else origin(find_loader(self.loader).read))

    def check_samples(self, samples: Sequence[Sample]) -> None:  # noqa: B027 - most tasks score any number
        """UserError where so few samples have no score."""

    def bind(
        self,
        model: PixelModel,
        everything: Sequence[Sample],
        samples: Sequence[Sample],
        *,
        batch_size: int,
        surrogate: PixelModel | None = None,
        texts: PixelModel | None = None,
    ) -> TaskRun:
        """The task on a model: `run_on` with these as `TaskInputs`. UserError for a model of the other kind."""
        return self.run_on(TaskInputs(model, everything, samples, batch_size, surrogate, texts))

    @abstractmethod
    def run_on(self, given: TaskInputs) -> TaskRun:
        """The task on a model and its samples. UserError for a model of the other kind."""

    def f1(self, answers: Mapping[str, tuple[str, str]]) -> float | None:
        """F1 of yes in percent, from (answer, label) by sample id; None for tasks that ask for no yes or no."""
        return None

    def notes(self, samples: int) -> list[str]:
        """What a reader has to know of the score of so many samples."""
        return []


@dataclass(frozen=True, kw_only=True)
class TaskRun(ABC):
    """A task on a model and on the selected samples."""

    task: Task
    model: PixelModel
    surrogate: PixelModel | None
    batch_size: int
    batches: ClassVar[type[SampleBatch]]
    """What its batches tell an attack."""
    suited: ClassVar[str]
    """The attacks that fit, for messages."""

    def check(self, attack: Attack | None, samples: Sequence[Sample]) -> None:
        """UserError where the attack cannot be made on this task with these models and samples."""
        if attack is None:
            return
        if not issubclass(self.batches, attack.needs):
            raise UserError(
                f"--attack {attack.name} is for {attack.meant_for}: on --task {self.task.name} with {self.model.name} "
                f"use {self.suited}"
            )
        attack.check(self.model, self.surrogate)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What run.json says of the questions."""

    def attack_settings(self, attack: Attack) -> dict[str, Any]:
        """What run.json says of the attack."""
        return attack.to_dict()

    def remarks(self) -> list[str]:
        """What a reader of the scores has to know."""
        return []

    @abstractmethod
    def batch(self, samples: Sequence[Sample], *, source: PixelModel | None = None) -> ScoredBatch:
        """The samples as an attack on `source` sees them; None: on the model itself."""

    def answers(self, pixels: PixelBatch, samples: Sequence[Sample]) -> list[str]:
        """What the model says to the images of `pixels`."""
        return self.batch(samples).answers(SourceModel(self.model, pixels, "scored"), pixels.x, range(len(samples)))

    def grade(self, answers: Sequence[str], samples: Sequence[Sample]) -> list[float]:
        """The score of each answer in the task's metric."""
        return self.batch(samples).grade(answers, range(len(samples)))

    def craft(
        self,
        pixels: PixelBatch,
        samples: Sequence[Sample],
        attack: Attack,
        *,
        seeds: Sequence[int],
        clean: Sequence[float] | None = None,
        tell: Tell = lambda stage, count: None,
    ) -> Crafted:
        """Attack every image of `pixels`, the model's canvas; samples and seeds belong to its rows. UserError for an
        attack that gives images of another type or shape."""
        with attacked_view(self.model, attack, self.surrogate):
            view = SourceModel(self.surrogate or self.model, pixels)
            source = None if attack.needs is SampleBatch else self.surrogate  # pixels alone ask no surrogate's texts
            known = replace(self.batch(samples, source=source), clean=clean, tell=tell)
            crafted = attack.craft(view, pixels, known, seeds)
        if crafted.pixels.dtype != torch.uint8 or crafted.pixels.shape != pixels.x.shape:
            raise UserError(
                f"--attack {attack.name} gave {crafted.pixels.dtype} {tuple(crafted.pixels.shape)}: its images must be "
                f"uint8 {tuple(pixels.x.shape)}, as Attack.round_to_8bit gives them"
            )
        return crafted

    def closing(self, attacked: Callable[[str], Tensor] | None, seed: int) -> tuple[dict[str, Any], list[str]]:
        """What metrics.json and its notes say beyond the samples' scores, once all is done. attacked: the attacked
        image of a sample, uint8 [3, H, W]; None in a clean run. seed: the run's."""
        return {}, []
