"""Tasks that a vision-language model answers in texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from eval_tasks.config.presets import PLACES, Threshold
from eval_tasks.crafting.attack import Attack
from eval_tasks.crafting.batches import PromptBatch, SampleBatch, TextScores
from eval_tasks.data import Sample
from eval_tasks.tasks.base import Task, TaskInputs, TaskRun
from lvlm_radapt.models.base import LVLM, PixelModel
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """template: the user's text, {question} or {question_capitalised} in the question's place. max_new_tokens: the
    longest answer. threshold: the score under which an ensemble leaves an image alone."""

    template: str
    max_new_tokens: int
    threshold: Threshold | None = None

    @abstractmethod
    def scorer(self, samples: Sequence[Sample]) -> TextScores:
        """How answers about these samples are scored."""

    def prompt(self, sample: Sample) -> str:
        """The user's text for a sample. {question_capitalised} is the question after Python's `str.capitalize`. Braces
        in questions stay. UserError for a template without a place."""
        question = sample.question
        if question is None:
            raise ValueError(f"task {self.name} needs a question")
        for place, value in zip(PLACES, (question, question.capitalize()), strict=True):
            before, found, after = self.template.partition(place)
            if found:
                return before + value + after
        raise UserError(f"preset {self.preset}: the prompt for {self.name} must contain {PLACES[0]}")

    def run_on(self, given: TaskInputs) -> TextRun:
        model = given.model
        if not isinstance(model, LVLM):
            raise UserError(
                f"--task {self.name} needs answers in texts: {model.name} is an image encoder, for imagefolder"
            )
        if given.texts is not None:
            raise UserError(f"--texts is for image encoders: {model.name} reads its texts itself")
        self.prompt(given.samples[0])  # a template that does not fit is told now
        return TextRun(
            task=self,
            model=model,
            surrogate=given.surrogate,
            batch_size=given.batch_size,
            scores=self.scorer(given.samples),
        )

    def check_early_exit(self) -> None:
        """UserError where no score is the lowest there can be."""

    def asked(self) -> dict[str, Any]:
        """What run.json says of the questions, beside the conversation."""
        return {"prompt": self.template, "max_new_tokens": self.max_new_tokens}

    def rule(self) -> dict[str, Any]:
        """What run.json says of how answers are scored."""
        return {}


@dataclass(frozen=True, kw_only=True)
class TextRun(TaskRun):
    """Captions and answers of a vision-language model."""

    task: TextTask
    model: LVLM
    scores: TextScores
    batches: ClassVar[type[SampleBatch]] = PromptBatch
    suited: ClassVar[str] = "e2e, ensemble, targeted, embedding or noise"

    def check(self, attack: Attack | None, samples: Sequence[Sample]) -> None:
        super().check(attack, samples)
        if attack is not None:
            self._check_attack(attack, samples[0])
        references = 0 if attack is None else attack.references
        self._check_texts(self.model, samples, 0 if self.surrogate is not None else references)
        if isinstance(self.surrogate, LVLM):
            self._check_texts(self.surrogate, samples, references)

    def settings(self) -> dict[str, Any]:
        # a preset of the user's own is known by more than its name
        return {"asked": self.task.asked() | {"conversation": self.model.conversation_settings()}} | self.task.rule()

    def attack_settings(self, attack: Attack) -> dict[str, Any]:
        stages, threshold = attack.stage_names(self.task.kind), self.task.threshold
        if not stages or threshold is None:
            return attack.to_dict()
        return attack.to_dict() | {"stages": stages, "threshold": threshold.model_dump()}

    def batch(self, samples: Sequence[Sample], *, source: PixelModel | None = None) -> PromptBatch:
        return PromptBatch(
            samples=samples,
            batch_size=self.batch_size,
            prompts=[self.task.prompt(s) for s in samples],
            max_new_tokens=self.task.max_new_tokens,
            scores=self.scores,
            threshold=self.task.threshold,
            kind=self.task.kind,
        )

    def remarks(self) -> list[str]:
        return [f"answers are scored by the rule {rule['style']}: {rule['rule']}" for rule in self.task.rule().values()]

    def _check_attack(self, attack: Attack, sample: Sample) -> None:
        speaks = issubclass(attack.needs, PromptBatch)
        if speaks and self.surrogate is not None and not isinstance(self.surrogate, LVLM):
            raise UserError(
                f"{self.surrogate.name} is an image encoder without a language model: use --attack embedding with it"
            )
        if speaks and attack.spares and self.task.threshold is None:
            raise UserError(
                f"preset {self.task.preset} has no thresholds for task {self.task.name}: add it to the preset"
            )
        most = self.task.max_new_tokens
        if attack.target is not None:
            needed = self.model.count_tokens(self.task.prompt(sample), attack.target)
            if needed is not None and needed > most:
                raise UserError(
                    f"--target {attack.target!r} is {needed} tokens long, but answers end after {most}: choose a "
                    "shorter one, or a preset with longer answers"
                )
        if attack.ends_at_zero:
            self.task.check_early_exit()

    def _check_texts(self, model: LVLM, samples: Sequence[Sample], references: int) -> None:
        """UserError naming the sample whose prompt, or one of its first references, `model` cannot be given."""
        for sample in samples:
            try:
                texts = self.scores.references(sample, references) if references else ()
                model.check_texts(self.task.prompt(sample), texts)
            except UserError as error:
                raise UserError(f"sample {sample.id}: {error}") from error
