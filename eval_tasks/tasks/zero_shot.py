"""Zero-shot classification: an image encoder chooses among the texts of the classes' names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.batches import ClassBatch, SampleBatch
from eval_tasks.crafting.classifier import Classifier
from eval_tasks.data import Sample
from eval_tasks.data.imagefolder import class_names
from eval_tasks.data.selection import ids_digest
from eval_tasks.data.set_config import set_config
from eval_tasks.data.zero_shot_sets import zero_shot_sets
from eval_tasks.tasks.base import Task, TaskInputs, TaskRun
from eval_tasks.tasks.text_side import encoder_of, surrogate_with_texts, text_side
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.zero_shot import TEMPLATE, ZeroShot

_SHOWN = 3  # templates in a remark


@dataclass(frozen=True, kw_only=True)
class ZeroShotTask(Task):
    """templates: what is asked for, {} in the class name's place; "task": those of the data set. class_names: how the
    names are written there."""

    templates: tuple[str, ...] | Literal["task"] = (TEMPLATE,)
    class_names: Literal["as told", "lower case"] = "as told"
    metric: ClassVar[str] = "accuracy"
    kind: ClassVar[str] = "classification"

    def run_on(self, given: TaskInputs) -> ZeroShotRun:
        encoder, source = encoder_of(given.model, self.name, given.texts)
        names = class_names([*given.everything])
        known = set_config(self.name) if self.name in zero_shot_sets() else None
        templates = self.templates
        if templates == "task":
            templates = tuple(known.templates) if known and known.templates else (TEMPLATE,)
        classifier = ZeroShot(encoder, names, templates, texts=source, spelled=[self._spelled(one) for one in names])
        return ZeroShotRun(
            task=self, model=encoder, surrogate=given.surrogate, batch_size=given.batch_size,
            classifier=classifier, texts=source, published=known.classes if known else None,
        )  # fmt: skip

    def _spelled(self, name: str) -> str:
        plain = {"as told": name, "lower case": name.lower().translate(str.maketrans("_-/", "   "))}
        return plain[self.class_names]


@dataclass(frozen=True, kw_only=True)
class ZeroShotRun(TaskRun):
    """texts: the encoder with the text side, for a bare tower. published: how many classes the field counts in this
    set."""

    classifier: ZeroShot
    texts: CLIPEncoder | None = None
    published: int | None = None
    batches: ClassVar[type[SampleBatch]] = ClassBatch
    suited: ClassVar[str] = "apgd-ce or another attack on classifiers, embedding or noise"

    def check(self, attack: Attack | None, samples: Sequence[Sample]) -> None:
        super().check(attack, samples)
        if isinstance(attack, Classifier):
            attack.check_classes(len(self.classifier.class_names))
            _ = self._other  # a UserError now, not when the run has begun

    def settings(self) -> dict[str, Any]:
        names = self.classifier.spelled
        return {
            "classes": {"n": len(names), "sha256": ids_digest(names), "templates": [*self.classifier.templates]},
            "texts": None if self.texts is None else self.texts.name,
        }

    def remarks(self) -> list[str]:
        count, templates = len(self.classifier.class_names), self.classifier.templates
        more = f" and {len(templates) - _SHOWN} more" if len(templates) > _SHOWN else ""
        shown = ", ".join(f'"{template}"' for template in templates[:_SHOWN]) + more
        said = [f"each image is one of {count} classes, asked for as {shown}"]
        if self.published not in (None, count):
            said.append(
                f"the data folder has {count} classes where {self.task.name} has {self.published}: its accuracy is not "
                "comparable with published ones"
            )
        if self.texts is not None:
            said.append(f"the texts are read by {self.texts.name}")
        return said

    def batch(self, samples: Sequence[Sample], *, source: PixelModel | None = None) -> ClassBatch:
        classifier = self.classifier if source is None or self._other is None else self._other
        return ClassBatch(samples=samples, batch_size=self.batch_size, classifier=classifier)

    @cached_property
    def _other(self) -> ZeroShot | None:
        """The surrogate, asked for the same classes."""
        if self.surrogate is None:
            return None
        mine, other = self.classifier, surrogate_with_texts(self.surrogate)
        return ZeroShot(
            other, mine.class_names, mine.templates, texts=text_side(other, self.texts), spelled=mine.spelled
        )
