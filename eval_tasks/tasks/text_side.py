"""What tasks of image encoders share: the encoder, and the one that supplies text embeddings."""

from __future__ import annotations

from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.utils.errors import UserError


def encoder_of(model: PixelModel, task: str, texts: PixelModel | None) -> tuple[CLIPEncoder, CLIPEncoder | None]:
    """The model as an image encoder, and the encoder that supplies text embeddings; None if this one has its own.
    UserError for a language model, for `texts` without a text side, and where there is none at all."""
    if not isinstance(model, CLIPEncoder):
        raise UserError(f"--task {task} is for image encoders: {model.name} answers in texts")
    if texts is None:
        return model, text_side(model, None)
    if not isinstance(texts, CLIPEncoder):
        raise UserError(f"--texts {texts.name} is no image-text encoder: name a whole CLIP or SigLIP checkpoint")
    if texts.tokenizer is None:
        raise UserError(f"--texts {texts.name} is a bare vision tower itself: name a whole CLIP or SigLIP checkpoint")
    return model, texts


def text_side(encoder: CLIPEncoder, texts: CLIPEncoder | None) -> CLIPEncoder | None:
    """The encoder that supplies text embeddings; None if `encoder` has its own. UserError where none is named."""
    if encoder.tokenizer is not None:
        return None
    if texts is None:
        raise UserError(
            f"{encoder.name} is a bare vision tower: for texts name the CLIP that it was tuned from, --texts MODEL, or "
            "give a whole checkpoint"
        )
    return texts


def surrogate_with_texts(surrogate: PixelModel) -> CLIPEncoder:
    """The surrogate, for attacks that go through texts of their own. UserError for a language model."""
    if not isinstance(surrogate, CLIPEncoder):
        raise UserError(f"--surrogate {surrogate.name} answers in texts: use an image encoder, or --attack embedding")
    return surrogate
