"""The recipe of a fine-tuning: what a YAML file in `configs/finetune` says."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationError

from lvlm_radapt.utils.bounds import MOST
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.fields import Eps, Named, Templates
from lvlm_radapt.utils.json_files import first_problem


class FinetuneRecipe(Named):
    """How an encoder is fine-tuned adversarially: `pgd_steps` steps of `pgd_step` for each image in the ball of radius
    `eps` (all three as in `4/255`), AdamW at `lr`, which rises over `warmup` steps and falls as a cosine to 0.

    `templates` word the classes (TeCoA, TGA). Every `probe_every` steps the model is looked at on held-back images.
    """

    eps: Eps
    pgd_step: Eps
    pgd_steps: Annotated[int, Field(ge=1, le=MOST)]
    steps: Annotated[int, Field(ge=1, le=MOST)]
    warmup: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1, le=MOST)]
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    templates: Templates
    probe_every: Annotated[int, Field(ge=1, le=MOST)]

    def changed(self, **values: float | None) -> FinetuneRecipe:
        """With those values that are not None. With other `steps` the warm-up keeps its share of them.

        UserError for one out of range."""
        chosen = {key: value for key, value in values.items() if value is not None}
        if "steps" in chosen:
            chosen["warmup"] = round(self.warmup * chosen["steps"] / self.steps)
        try:
            return FinetuneRecipe.model_validate(self.model_dump() | chosen)
        except ValidationError as error:
            raise UserError(f"preset {self.name}: {first_problem(error)}") from error
