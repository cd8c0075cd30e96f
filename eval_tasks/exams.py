"""A model under test: how a task asks it, judges its answers, attacks it and audits the attack.

The evaluation and the audit know nothing more of a task than `Exam`; a language model's is `SpokenExam`, an image
encoder's `ClassExam`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from typing import Protocol as Interface

from torch import Tensor

from attacks.autoattack import LibraryMissingError, require_library
from attacks.lines import LIBRARY
from eval_tasks.asked import Asked, TextScores
from eval_tasks.audit.build import lvlm_subject
from eval_tasks.audit.classifier import classifier_subject
from eval_tasks.audit.subject import Subject
from eval_tasks.captioning import CaptionScores
from eval_tasks.classification import ClassScores, attack_classifier, check_classes
from eval_tasks.crafting import AttackPlan, Crafted, check_plan, check_source, craft, craft_unasked
from eval_tasks.data import Sample, chunks
from eval_tasks.data.imagefolder import class_names
from eval_tasks.metrics.tokenizers import TokenizerName
from eval_tasks.presets import Protocol, TaskConfig
from eval_tasks.records import ids_digest
from eval_tasks.stages import stage_plans
from eval_tasks.vqa import VqaScores
from lvlm_radapt.errors import UserError
from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.zero_shot import ZeroShot

Tell = Callable[[str, int], None]


class Exam(Interface):
    """The samples given to its methods are the rows of the batch given with them, among the selected ones."""

    def check(self, plan: AttackPlan, sample: Sample) -> None:
        """UserError for an attack that cannot mean what it says here; `sample`: one of those to be asked."""
        ...

    def settings(self) -> dict[str, Any]:
        """What run.json says of the exam beyond task and preset."""
        ...

    def attack_settings(self, plan: AttackPlan) -> dict[str, Any]:
        """What run.json says of the attack beyond `plan.settings()`."""
        ...

    def remarks(self) -> list[str]:
        """What a reader of the scores has to know."""
        ...

    def answers(self, batch: PixelBatch, samples: Sequence[Sample]) -> list[str]:
        """What the model says to the images of `batch`."""
        ...

    def grade(self, answers: Sequence[str], samples: Sequence[Sample]) -> list[float]:
        """The score of each answer in the task's metric."""
        ...

    def craft(
        self,
        batch: PixelBatch,
        samples: Sequence[Sample],
        plan: AttackPlan,
        *,
        seeds: Sequence[int],
        clean: Sequence[float] | None = None,
        tell: Tell = lambda stage, count: None,
    ) -> Crafted:
        """Attack every image of `batch`; `clean`, `tell` as for `eval_tasks.crafting.craft`."""
        ...

    def subject(
        self, batch: PixelBatch, samples: Sequence[Sample], plan: AttackPlan, *, seed: int, made: Tensor | None = None
    ) -> Subject:
        """What an audit of the white-box attack looks at; `made`: images that `plan` has made already."""
        ...


@dataclass(frozen=True)
class SpokenExam:
    """Captions and answers of a vision-language model."""

    model: LVLM
    surrogate: PixelModel | None
    task: TaskConfig
    protocol: Protocol
    scores: TextScores
    batch_size: int

    def check(self, plan: AttackPlan, sample: Sample) -> None:
        prompt, tokens = self.protocol.prompt(self.task, sample.question), self.protocol.tokens(self.task.name)
        check_plan(plan, self.model, self.surrogate, prompt=prompt, tokens=tokens)

    def settings(self) -> dict[str, Any]:
        return {}

    def attack_settings(self, plan: AttackPlan) -> dict[str, Any]:
        if plan.config.ensemble is None:
            return {}
        return {
            "stages": [stage.name for stage in stage_plans(plan.config.ensemble, self.task.kind)],
            "threshold": self.protocol.threshold(self.task.name).model_dump(),
        }

    def remarks(self) -> list[str]:
        return []

    def answers(self, batch: PixelBatch, samples: Sequence[Sample]) -> list[str]:
        return self._asked(samples).answers(self.model, batch, range(len(samples)))

    def grade(self, answers: Sequence[str], samples: Sequence[Sample]) -> list[float]:
        return self._asked(samples).grade(answers, range(len(samples)))

    def craft(
        self,
        batch: PixelBatch,
        samples: Sequence[Sample],
        plan: AttackPlan,
        *,
        seeds: Sequence[int],
        clean: Sequence[float] | None = None,
        tell: Tell = lambda stage, count: None,
    ) -> Crafted:
        asked = self._asked(samples)
        return craft(self.model, batch, plan, asked, seeds=seeds, surrogate=self.surrogate, clean=clean, tell=tell)

    def subject(
        self, batch: PixelBatch, samples: Sequence[Sample], plan: AttackPlan, *, seed: int, made: Tensor | None = None
    ) -> Subject:
        return lvlm_subject(self.model, batch, self._asked(samples), plan, seed=seed, made=made)

    def _asked(self, samples: Sequence[Sample]) -> Asked:
        return Asked(samples, self.task, self.protocol, self.scores, self.batch_size)


@dataclass(frozen=True)
class ClassExam:
    """Classes that an image encoder chooses among by the texts of their names."""

    classifier: ZeroShot
    surrogate: PixelModel | None
    task: TaskConfig
    scores: ClassScores
    batch_size: int

    def check(self, plan: AttackPlan, sample: Sample) -> None:
        name, loss = plan.config.name, plan.config.loss
        if loss not in ("classifier", "noise", "embedding"):
            raise UserError(
                f"--attack {name} needs a model that answers in texts: on --task {self.task.name} use apgd-ce or "
                "another attack on classifiers, embedding or noise"
            )
        if loss == "embedding" and plan.config.at != "tower":
            raise UserError(f"--attack {name} reads a projector, which an image encoder has none of")
        check_source(plan, self.classifier.encoder, self.surrogate)
        if plan.config.line is None:
            return
        check_classes(plan.config, len(self.classifier.class_names))
        _ = self._other  # a UserError now, not when the run has begun
        if any(member in LIBRARY for member in plan.config.line):
            try:
                require_library()
            except LibraryMissingError as error:
                raise UserError(str(error)) from error

    def settings(self) -> dict[str, Any]:
        names = self.classifier.class_names
        return {"classes": {"n": len(names), "sha256": ids_digest(names), "templates": [*self.classifier.templates]}}

    def attack_settings(self, plan: AttackPlan) -> dict[str, Any]:
        return {}

    def remarks(self) -> list[str]:
        templates = ", ".join(f'"{template}"' for template in self.classifier.templates)
        return [f"each image is one of {len(self.classifier.class_names)} classes, asked for as {templates}"]

    def answers(self, batch: PixelBatch, samples: Sequence[Sample]) -> list[str]:
        rows = chunks(range(len(batch)), self.batch_size)
        return [name for some in rows for name in self.classifier.predict(batch[some])]

    def grade(self, answers: Sequence[str], samples: Sequence[Sample]) -> list[float]:
        ids = [s.id for s in samples]
        graded = self.scores.score(dict(zip(ids, answers, strict=True)))
        return [graded[one] for one in ids]

    def craft(
        self,
        batch: PixelBatch,
        samples: Sequence[Sample],
        plan: AttackPlan,
        *,
        seeds: Sequence[int],
        clean: Sequence[float] | None = None,
        tell: Tell = lambda stage, count: None,
    ) -> Crafted:
        if plan.config.line is None:
            size = self.batch_size
            return craft_unasked(
                self.classifier.encoder, batch, plan, seeds=seeds, surrogate=self.surrogate, batch_size=size
            )
        assert plan.threat is not None  # planning: noise alone has none
        return attack_classifier(
            self.classifier,
            batch,
            [s.references[0] for s in samples],
            plan.config,
            eps=plan.eps,
            steps=plan.steps,
            seeds=seeds,
            threat=plan.threat,
            surrogate=self._other,
            batch_size=self.batch_size,
        )

    def subject(
        self, batch: PixelBatch, samples: Sequence[Sample], plan: AttackPlan, *, seed: int, made: Tensor | None = None
    ) -> Subject:
        size = self.batch_size
        return classifier_subject(self.classifier, batch, samples, plan, seed=seed, batch_size=size, made=made)

    @cached_property
    def _other(self) -> ZeroShot | None:
        """The surrogate, asked for the same classes."""
        if self.surrogate is None:
            return None
        if not isinstance(self.surrogate, CLIPEncoder):
            raise UserError(
                f"--surrogate {self.surrogate.name} answers in texts: use an image encoder, or --attack embedding"
            )
        return ZeroShot(self.surrogate, self.classifier.class_names, self.classifier.templates)


def exam_of(
    model: PixelModel,
    task: TaskConfig,
    *,
    everything: list[Sample],
    samples: Sequence[Sample],
    protocol: Protocol,
    batch_size: int,
    tokenizer: TokenizerName,
    surrogate: PixelModel | None = None,
) -> Exam:
    """The exam of `model` on a task. everything: the whole data set, whose classes are the choices; samples: the
    selected ones, whose references are a caption's document frequency. UserError for a model of the other kind."""
    if task.kind == "classification":
        if not isinstance(model, CLIPEncoder):
            raise UserError(f"--task {task.name} is for image encoders: {model.name} answers in texts")
        classifier = ZeroShot(model, class_names(everything), protocol.templates)
        return ClassExam(classifier, surrogate, task, ClassScores(samples), batch_size)
    if not isinstance(model, LVLM):
        raise UserError(f"--task {task.name} needs answers in texts: {model.name} is an image encoder, for imagefolder")
    scores: TextScores
    if task.kind == "caption":
        scores = CaptionScores(samples, tokenizer=tokenizer)
    else:
        assert task.style is not None
        scores = VqaScores(samples, style=task.style)
    return SpokenExam(model, surrogate, task, protocol, scores, batch_size)
