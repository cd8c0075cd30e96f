"""What every attack is: a budget, its own settings, and a way to make images of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import ConfigDict
from torch import Tensor

from attacks.eight_bit import to_8bit
from attacks.eps import eps_8bit
from attacks.losses import LossFn
from attacks.norms import Norm
from eval_tasks.crafting.batches import SampleBatch, ScoredBatch
from eval_tasks.crafting.crafted import Crafted
from eval_tasks.crafting.source_model import SourceModel
from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.utils.budget import check_8bit_budget
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.plugins import origin

Threat = Literal["adaptive", "transfer", "natural"]
_OF_THE_RUN = frozenset({"threat", "surrogate", "early_exit", "eps_8bit"})  # they do not change what the attack does


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack with its budget and threat model. A subclass adds its own settings as fields and writes `craft`.

    eps: in units of the [0, 1] pixel range, under L2 the length of the whole perturbation.
    threat: "adaptive" attacks the model with its defence; "transfer" the undefended model or a surrogate; "natural" is
        for what no attacker makes; None is for attacks that know no model.

    Raises UserError for a budget below one 8-bit level.
    """

    name: str
    eps: float
    norm: Norm = "Linf"
    threat: Threat | None = "adaptive"

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")

    kind: ClassVar[str] = "outside"
    """The family of attacks, as run.json and presets call it."""
    needs: ClassVar[type[SampleBatch]] = SampleBatch
    """What it must know of the samples: `SampleBatch` is nothing but their pixels."""
    meant_for: ClassVar[str] = "every task"
    knows_model: ClassVar[bool] = True
    spares: ClassVar[bool] = False
    """Whether it leaves an image alone once that is broken."""
    needs_gradients: ClassVar[bool] = True
    """Whether an adaptive one needs more of the model than its answers."""
    takes_several: ClassVar[bool] = False
    """Whether it can be crafted on several surrogates at once."""
    reads_prompt: ClassVar[bool] = False
    """Whether its loss depends on the prompt."""

    def __post_init__(self) -> None:
        check_8bit_budget(self.eps, self.norm)

    @abstractmethod
    def craft(self, view: SourceModel, batch: PixelBatch, task: SampleBatch, seeds: Sequence[int]) -> Crafted:
        """Attack every image of `batch`, the victim's canvas; `task` and the seeds belong to its rows.

        view: the attacked model, as a function of images on that canvas. The images must be uint8 [B,3,H,W] within
        the budget: `round_to_8bit` makes them so.
        """

    def loss(self, view: SourceModel, batch: PixelBatch, task: SampleBatch) -> LossFn:
        """What the attack raises, for an audit. UserError where it has no such loss."""
        raise UserError(f"--attack {self.name} has no loss that an audit could climb: use e2e, embedding or apgd-ce")

    @property
    def has_loss(self) -> bool:
        """Whether it tells an audit what it raises."""
        return type(self).loss is not Attack.loss

    def rival_losses(self, view: SourceModel, task: ScoredBatch) -> dict[str, LossFn]:
        """Other losses by name whose success would lower the score too, for an audit."""
        return {}

    def graded(self, task: ScoredBatch, answers: Sequence[str], index: Sequence[int]) -> list[float]:
        """The score of each answer as this attack sees it; lower is better for the attacker."""
        return task.grade(answers, index)

    def check(self, model: PixelModel, surrogate: PixelModel | None) -> None:
        """UserError where what the attack is crafted on does not fit its threat model."""
        if self.threat == "adaptive" and model.answers_only and self.needs_gradients:
            raise UserError(
                f"{model.name} gives answers alone, no gradients, so no adaptive attack can be made on it: use "
                "--threat transfer with --surrogate MODEL, or --attack query"
            )
        if self.threat == "transfer" and surrogate is None and model.defence is None:
            raise UserError(
                f"{model.name} has no defence, so it has no undefended model to craft transfer images on: "
                "name a --surrogate, or use --threat adaptive"
            )
        if surrogate is not None and len(surrogate.members) > 1 and not self.takes_several:
            raise UserError(f"--attack {self.name} takes one surrogate: for several use --attack transfer-ensemble")
        if self.threat != "transfer" and surrogate is not None:
            raise UserError("--surrogate is for --threat transfer: an adaptive attack is crafted on the model itself")

    @property
    def gradient_steps(self) -> int | None:
        """Gradient steps on a sample; None where the attack has none, or none that may be changed."""
        steps = getattr(self, "steps", None)
        return steps if isinstance(steps, int) else None

    @property
    def target(self) -> str | None:
        """The text that a targeted attack wants to read."""
        return None

    @property
    def ends_at_zero(self) -> bool:
        """Whether the user asked that a sample stops once its score is 0."""
        return False

    @property
    def stops_early(self) -> bool:
        """Whether some samples stop before their last step, so that losses at the images cannot be compared."""
        return self.ends_at_zero and self.threat == "adaptive"

    @property
    def for_one_model(self) -> bool:
        """Whether its adaptive images just fool the attacked model, so that transfer images are made apart."""
        return self.ends_at_zero

    @property
    def nearest(self) -> bool:
        """Whether some images use as little of the budget as they can."""
        return False

    @property
    def references(self) -> int:
        """How many of a sample's references it makes unlikely at most."""
        return 0

    def stage_names(self, kind: str) -> list[str]:
        """What made an image, in order, on a task of this kind; none where the attack has no stages."""
        return []

    def least_work(self, steps: int | None, broken_by: str | None) -> float:
        """Gradient evaluations that were surely spent on an image: `steps` were counted, a stage or nobody broke it."""
        return float(steps or 0)

    def remarks(self, dtype: torch.dtype) -> list[str]:
        """What a reader of the numbers has to know. dtype: of the model that is attacked."""
        if self.ends_at_zero and self.threat == "adaptive":
            return ["early exit: a sample left the attack when its answer scored 0, which was asked ever more rarely"]
        return []

    def advice(self, dtype: torch.dtype) -> str:
        """What to do where every sample of a model in that precision failed."""
        return "the model cannot be attacked on these images" if dtype == torch.float32 else "use --dtype float32"

    def with_budget(self, eps: float, steps: int) -> Self:
        """The same attack with another eps and, where it has steps, another number of them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {"eps": eps}
        return type(self)(**values | ({} if self.gradient_steps is None else {"steps": steps}))

    def to_dict(self) -> dict[str, Any]:
        """Its settings as run.json keeps them."""
        own = {field.name: _as_json(getattr(self, field.name)) for field in fields(self)}
        told = {"loss": self.kind, "eps_8bit": eps_8bit(self.eps, self.norm), "target": self.target}
        told |= {"steps": self.gradient_steps, **own}
        plugin = origin(self)
        return told if plugin is None else told | {"plugin": plugin}

    def differs_from(self, made: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
        """The first setting in which another run's images are not this attack's. Both are attacks in run.json."""
        return next((key for key in own if key not in _OF_THE_RUN and key in made and made[key] != own[key]), None)

    def round_to_8bit(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """uint8 images [B,3,H,W] next to `x_adv`, within the budget of the clean ones `x`."""
        return to_8bit(x_adv, x, eps=self.eps, norm=self.norm)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def attacked_view(model: PixelModel, attack: Attack, surrogate: PixelModel | None) -> AbstractContextManager[object]:
    """`transfer` without a surrogate is crafted on the undefended model: the same weights without the defence."""
    return model.undefended() if attack.threat == "transfer" and surrogate is None else nullcontext()
