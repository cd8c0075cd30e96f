"""What the exams of image encoders share: whose texts are asked, and what an attack needs of the encoders."""

from __future__ import annotations

from eval_tasks.crafting.craft import AttackPlan
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.utils.errors import UserError


def text_side(encoder: CLIPEncoder, texts: CLIPEncoder | None) -> CLIPEncoder | None:
    """Whose text model is asked in an encoder's place: nobody's where it has its own. UserError where none is named."""
    if encoder.tokenizer is not None:
        return None
    if texts is None:
        raise UserError(
            f"{encoder.name} is a bare vision tower: for texts name the CLIP that it was tuned from, --texts MODEL, or "
            "give a whole checkpoint"
        )
    return texts


def reading_surrogate(surrogate: PixelModel) -> CLIPEncoder:
    """The surrogate, for attacks that go through texts of their own. UserError for a language model."""
    if not isinstance(surrogate, CLIPEncoder):
        raise UserError(f"--surrogate {surrogate.name} answers in texts: use an image encoder, or --attack embedding")
    return surrogate


def check_reads_tower(plan: AttackPlan) -> None:
    """UserError for an embedding attack on what an encoder has none of."""
    if plan.config.loss == "embedding" and plan.config.at != "tower":
        raise UserError(f"--attack {plan.config.name} reads a projector, which an image encoder has none of")
