"""FARE's ensembles (arXiv 2402.12336): stages against several references and towards target texts, on one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from attacks import ensemble
from attacks.eight_bit import from_8bit
from attacks.losses import LossFn
from eval_tasks.config.presets import Half
from eval_tasks.crafting.apgd_attack import APGDAttack, Count, workers
from eval_tasks.crafting.batches import PromptBatch, SampleBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from eval_tasks.crafting.stages import stage_plans, stages
from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ensemble(APGDAttack):
    """references: texts made unlikely one by one at most; then the one that worked best again from the best image; then
    each of `targets` (by the task's kind) made likely. half: the precision of the stages against references; None: the
    model's own. early_exit: under the adaptive threat a sample stops once its answer scores 0.
    """

    references: Count = 5
    targets: dict[str, list[Annotated[str, Field(min_length=1)]]]
    half: Half | None = None
    early_exit: bool = False
    kind: ClassVar[str] = "ensemble"
    needs: ClassVar[type[SampleBatch]] = PromptBatch
    meant_for: ClassVar[str] = "models that answer in texts"
    reads_prompt: ClassVar[bool] = True
    spares: ClassVar[bool] = True

    @property
    def ends_at_zero(self) -> bool:
        return self.early_exit

    @property
    def stops_early(self) -> bool:
        return True

    def check(self, model: PixelModel, surrogate: PixelModel | None) -> None:
        super().check(model, surrogate)
        source = surrogate or model
        if self.half is not None and source.dtype != torch.float32:
            raise UserError(
                f"--half {self.half} is for models in float32, {source.name} is in "
                f"{str(source.dtype).removeprefix('torch.')}: use --dtype float32, or --half none"
            )

    def remarks(self, dtype: torch.dtype) -> list[str]:
        own = str(dtype).removeprefix("torch.")
        if self.half is not None:
            precision = (
                f"the stages reference 1 to {self.references} ran in {self.half} (autocast), the others in {own}"
            )
        elif dtype == torch.float32:
            precision = "all stages ran in float32"
        else:
            precision = (
                f"all stages ran in {own}: what half precision did not break was not attacked again in float32 "
                "(--dtype float32 does)"
            )
        return [*super().remarks(dtype), precision]

    def advice(self, dtype: torch.dtype) -> str:
        if dtype == torch.float32 and self.half is not None:
            return "use --half bfloat16 or --half none"
        return super().advice(dtype)

    def stage_names(self, kind: str) -> list[str]:
        return [stage.name for stage in stage_plans(self.references, self.targets.get(kind, []))]

    def loss(self, view: SourceModel, batch: PixelBatch, task: SampleBatch) -> LossFn:
        """The first stage's: what the others would do is not audited."""
        assert isinstance(task, PromptBatch)
        return view.nll(task.prompts, task.first_references())

    def craft(self, view: SourceModel, batch: PixelBatch, task: SampleBatch, seeds: Sequence[int]) -> Crafted:
        """Images are scored, and kept, as the 8-bit ones they will be on disk."""
        assert isinstance(task, PromptBatch)

        def score(x_adv: Tensor, index: list[int]) -> Tensor:
            return torch.tensor(task.grade(task.answers(view, x_adv, index), index), dtype=torch.float64)

        everyone = list(range(len(batch)))
        known = task.clean if self.threat == "adaptive" else None
        plans = stage_plans(self.references, self.targets.get(task.kind, []))
        references = [task.scores.references(s, self.references) for s in task.samples]
        early = self.early_exit and self.threat == "adaptive"
        found = ensemble(
            stages(plans, view, task.prompts, references, self.half),
            batch.x,
            score=score,
            broken=task.broken,
            clean_score=score(batch.x, everyone) if known is None else torch.tensor(known, dtype=torch.float64),
            finish=lambda x_adv, index: from_8bit(self.round_to_8bit(x_adv, batch.x[list(index)])),
            beaten=self.score_is_zero(view, batch, task) if early else None,
            **self.apgd_arguments(),
            seed=seeds,
            batch_size=task.batch_size,
            workers=workers(batch),
            tell=task.tell,
        )
        # the images are 8-bit levels already
        pixels = (found.x_adv * 255).round().to(torch.uint8)
        made = Crafted.plain(pixels, found.loss, found.steps.tolist(), found.zero_grad.tolist(), found.failed)
        return replace(made, stage=[*found.stage], broken=found.broken.tolist())
