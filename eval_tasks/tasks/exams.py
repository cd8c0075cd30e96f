"""A model under test: how a task asks it, judges its answers, attacks it and audits the attack.

The evaluation and the audit know nothing more of a task than `Exam`; a language model's is `SpokenExam`, an image
encoder's `ClassExam` or `RetrievalExam`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from typing import Protocol as Interface

from torch import Tensor

from attacks.autoattack import LibraryMissingError, require_library
from attacks.suite import LIBRARY
from eval_tasks.audit.build import lvlm_subject
from eval_tasks.audit.classifier import classifier_subject
from eval_tasks.audit.subject import Subject
from eval_tasks.config.presets import Protocol, TaskConfig
from eval_tasks.crafting.classifier import ClassScores, attack_classifier, check_classes
from eval_tasks.crafting.craft import AttackPlan, Crafted, check_plan, check_source, craft, craft_unasked
from eval_tasks.crafting.prompt_batch import Asked, TextScores
from eval_tasks.crafting.stages import stage_plans
from eval_tasks.data import Sample, chunks
from eval_tasks.data.imagefolder import class_names
from eval_tasks.data.set_config import SetConfig, set_config, zero_shot_sets
from eval_tasks.metrics.tokenizers import TokenizerName
from eval_tasks.metrics.vqa import RULES
from eval_tasks.run.planning import check_early_exit
from eval_tasks.run.records import ids_digest
from eval_tasks.tasks.encoders import check_reads_tower, reading_surrogate, text_side
from eval_tasks.tasks.retrieval import RetrievalExam
from eval_tasks.tasks.retrieval_corpus import Gallery
from eval_tasks.tasks.scorers import text_scores
from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.zero_shot import TEMPLATE, ZeroShot
from lvlm_radapt.utils.errors import UserError

_SHOWN = 3  # templates that a remark names

Tell = Callable[[str, int], None]


class Exam(Interface):
    """The samples given to its methods are the rows of the batch given with them, among the selected ones."""

    def check(self, plan: AttackPlan | None, samples: Sequence[Sample]) -> None:
        """UserError, before a run is begun, for an attack that cannot mean what it says here, and for a text of one of
        the `samples`, all of those to be asked, that a model cannot be given. None: no attack."""
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
        """Attack every image of `batch`; `clean`, `tell` as for `eval_tasks.crafting.craft.craft`."""
        ...

    def subject(
        self, batch: PixelBatch, samples: Sequence[Sample], plan: AttackPlan, *, seed: int, made: Tensor | None = None
    ) -> Subject:
        """What an audit of the white-box attack looks at; `made`: images that `plan` has made already."""
        ...

    def closing(self, attacked: Callable[[str], Tensor] | None) -> tuple[dict[str, Any], list[str]]:
        """What metrics.json and its notes say beyond the samples' scores, once all is done. attacked: the attacked
        image of a sample, uint8 [3, H, W]; None in a clean run."""
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

    def check(self, plan: AttackPlan | None, samples: Sequence[Sample]) -> None:
        if plan is not None:
            prompt, tokens = self.protocol.prompt(self.task, samples[0].question), self.protocol.tokens(self.task.name)
            check_plan(plan, self.model, self.surrogate, prompt=prompt, tokens=tokens)
            check_early_exit(plan, self.task)
        self._check_texts(self.model, samples, 0 if self.surrogate is not None else _pushed_away(plan))
        if isinstance(self.surrogate, LVLM):
            self._check_texts(self.surrogate, samples, _pushed_away(plan))

    def settings(self) -> dict[str, Any]:
        # a preset of the user's own is known by more than its name
        prompt, tokens = self.protocol.template(self.task), self.protocol.tokens(self.task.name)
        conversation = self.model.text.conversation
        how = None if conversation is None else conversation.settings()  # None: the checkpoint's own chat template
        asked = {"asked": {"prompt": prompt, "max_new_tokens": tokens, "conversation": how}}
        style = self.protocol.vqa_style(self.task)
        return asked if style is None else asked | {"answers": {"style": style, "rule": RULES[style]}}

    def attack_settings(self, plan: AttackPlan) -> dict[str, Any]:
        if plan.config.ensemble is None:
            return {}
        return {
            "stages": [stage.name for stage in stage_plans(plan.config.ensemble, self.task.kind)],
            "threshold": self.protocol.threshold(self.task.name).model_dump(),
        }

    def remarks(self) -> list[str]:
        style = self.protocol.vqa_style(self.task)
        return [] if style is None else [f"answers are scored by the rule {style}: {RULES[style]}"]

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

    def closing(self, attacked: Callable[[str], Tensor] | None) -> tuple[dict[str, Any], list[str]]:
        return {}, []

    def _asked(self, samples: Sequence[Sample]) -> Asked:
        return Asked(samples, self.task, self.protocol, self.scores, self.batch_size)

    def _check_texts(self, model: LVLM, samples: Sequence[Sample], references: int) -> None:
        """UserError naming the sample whose prompt, or one of its first references, `model` cannot be given."""
        for sample, prompt in zip(samples, self._asked(samples).prompts, strict=True):
            try:
                model.text.prompt(prompt, 1)
                for text in self.scores.references(sample, references) if references else ():
                    model.text.target(prompt, text)
            except UserError as error:
                raise UserError(f"sample {sample.id}: {error}") from error


@dataclass(frozen=True)
class ClassExam:
    """Classes that an image encoder chooses among by the texts of their names."""

    classifier: ZeroShot
    surrogate: PixelModel | None
    task: TaskConfig
    scores: ClassScores
    batch_size: int
    texts: CLIPEncoder | None = None
    """The encoder with the text side, for a bare tower."""
    published: int | None = None
    """How many classes the field counts in this set."""

    def check(self, plan: AttackPlan | None, samples: Sequence[Sample]) -> None:
        if plan is None:
            return
        name, loss = plan.config.name, plan.config.loss
        if loss == "contrastive":
            raise UserError(f"--attack {name} is for retrieval: on --task {self.task.name} use apgd-ce or another")
        if loss not in ("classifier", "noise", "embedding"):
            raise UserError(
                f"--attack {name} needs a model that answers in texts: on --task {self.task.name} use apgd-ce or "
                "another attack on classifiers, embedding or noise"
            )
        check_reads_tower(plan)
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
        names = self.classifier.spelled
        return {
            "classes": {"n": len(names), "sha256": ids_digest(names), "templates": [*self.classifier.templates]},
            "texts": None if self.texts is None else self.texts.name,
        }

    def attack_settings(self, plan: AttackPlan) -> dict[str, Any]:
        return {}

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

    def closing(self, attacked: Callable[[str], Tensor] | None) -> tuple[dict[str, Any], list[str]]:
        return {}, []

    @cached_property
    def _other(self) -> ZeroShot | None:
        """The surrogate, asked for the same classes."""
        if self.surrogate is None:
            return None
        mine, other = self.classifier, reading_surrogate(self.surrogate)
        return ZeroShot(
            other, mine.class_names, mine.templates, texts=text_side(other, self.texts), spelled=mine.spelled
        )


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
    texts: PixelModel | None = None,
) -> Exam:
    """The exam of `model` on a task. everything: the whole data set, whose classes are the choices; samples: the
    selected ones, whose references are a caption's document frequency, or the gallery of retrieval; texts: whose text
    side is asked in the model's place. UserError for a model of the other kind."""
    if task.kind in ("classification", "retrieval"):
        if not isinstance(model, CLIPEncoder):
            raise UserError(f"--task {task.name} is for image encoders: {model.name} answers in texts")
        asked = _with_texts(model, texts)
        if task.kind == "retrieval":
            exam = RetrievalExam(model, surrogate, task, Gallery(samples), samples, batch_size, asked)
            _ = exam.space  # texts that do not fit are told now
            return exam
        names = class_names(everything)
        known = set_config(task.name) if task.name in zero_shot_sets() else None
        classifier = ZeroShot(model, names, _templates(protocol, known), texts=asked, spelled=_spelled(protocol, names))
        published = known.classes if known else None
        return ClassExam(classifier, surrogate, task, ClassScores(samples), batch_size, asked, published)
    if not isinstance(model, LVLM):
        raise UserError(f"--task {task.name} needs answers in texts: {model.name} is an image encoder, for imagefolder")
    if texts is not None:
        raise UserError(f"--texts is for image encoders: {model.name} reads its texts itself")
    protocol.prompt(task, samples[0].question), protocol.tokens(task.name)  # what is missing there is told now
    scores = text_scores(task, samples, tokenizer=tokenizer, style=protocol.vqa_style(task))
    return SpokenExam(model, surrogate, task, protocol, scores, batch_size)


def _pushed_away(plan: AttackPlan | None) -> int:
    """How many of a sample's references an attack makes unlikely at most."""
    if plan is None:
        return 0
    return plan.config.ensemble.references if plan.config.ensemble else int(plan.config.loss == "nll")


def _with_texts(model: CLIPEncoder, texts: PixelModel | None) -> CLIPEncoder | None:
    """Whose texts are asked in the place of the model's own; None for these."""
    if texts is None:
        return text_side(model, None)
    if not isinstance(texts, CLIPEncoder):
        raise UserError(f"--texts {texts.name} is no image-text encoder: name a whole CLIP or SigLIP checkpoint")
    if texts.tokenizer is None:
        raise UserError(f"--texts {texts.name} is a bare vision tower itself: name a whole CLIP or SigLIP checkpoint")
    return texts


def _templates(protocol: Protocol, known: SetConfig | None) -> Sequence[str]:
    if protocol.templates != "task":
        return protocol.templates
    return known.templates if known and known.templates else (TEMPLATE,)


def _spelled(protocol: Protocol, names: Sequence[str]) -> Sequence[str]:
    if protocol.class_names == "as told":
        return names
    return [name.lower().translate(str.maketrans("_-/", "   ")) for name in names]
