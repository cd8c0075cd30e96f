"""Zero-shot classification with an image-text encoder: an image belongs to the class whose text is nearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.utils.errors import UserError

TEMPLATE = "a photo of a {}."


class ZeroShot:
    """A classifier made of an encoder and class names (Radford et al. 2021, arXiv 2103.00020, section 3.1).

    A class's embedding is the mean over the templates of the texts' unit embeddings, scaled to unit length again.

    encoder: a whole CLIP or SigLIP checkpoint. texts: the encoder that supplies text embeddings for a vision
        tower that comes without one (FARE, TeCoA) and goes on with the texts of the CLIP it was tuned from.
    class_names: K >= 2 distinct names, in the order of the logits. templates: each with the place {} for the name.
    spelled: what stands in that place, a text a class; the names themselves if left out.

    UserError for an encoder without an image or a text embedding, or two that do not fit; for class names that are
    empty, not distinct or fewer than two; for a template without {}.
    """

    def __init__(
        self,
        encoder: CLIPEncoder,
        class_names: Sequence[str],
        templates: Sequence[str] = (TEMPLATE,),
        *,
        texts: CLIPEncoder | None = None,
        spelled: Sequence[str] | None = None,
    ) -> None:
        self.encoder = encoder
        self.class_names = _checked_names(class_names)
        self.templates = _checked_templates(templates)
        self.spelled = self.class_names if spelled is None else tuple(spelled)
        source = encoder if texts is None else texts
        written = [template.replace("{}", name) for name in self.spelled for template in self.templates]
        each = normalize(text_embeddings(source, written), dim=-1)
        mean = each.view(len(self.class_names), len(self.templates), -1).mean(dim=1)
        self.class_embeddings = normalize(mean, dim=-1).to(encoder.device)
        """float32 [K, P], of unit length."""
        self.scale = logit_scale(source).to(encoder.device)
        """What cosines are multiplied by: 100 in OpenAI's CLIPs."""
        if texts is not None:
            check_pair(encoder, texts, self.class_embeddings.shape[-1])

    def logits(self, batch: PixelBatch) -> Tensor:
        """float32 [B, K]: the model's logit scale times the cosine of image and class; differentiable in `batch.x`.

        SigLIP's bias is left out: it moves all classes alike.
        """
        image = normalize(self.encoder.image_features(batch).float(), dim=-1)
        return self.scale * image @ self.class_embeddings.T

    @torch.no_grad()
    def predict(self, batch: PixelBatch) -> list[str]:
        """The name of the most likely class of each image."""
        return [self.class_names[i] for i in self.logits(batch).argmax(dim=1).tolist()]


_AT_A_TIME = 256  # texts: ImageNet's classes in 80 templates would fill the memory


def text_embeddings(source: CLIPEncoder, texts: Sequence[str]) -> Tensor:
    """float32 [N, P], not scaled to unit length; the texts in batches that depend on nothing but their order."""
    return torch.cat(
        [source.text_features(texts[at : at + _AT_A_TIME]).float() for at in range(0, len(texts), _AT_A_TIME)]
    )


def logit_scale(source: CLIPEncoder) -> Tensor:
    """What the model multiplies cosines with, float32 []; UserError for a model without texts."""
    scale = getattr(source.hf, "logit_scale", None)
    if scale is None:
        raise UserError(f"{source.name} has no logit scale, so it is no image-text model: give a whole checkpoint")
    return scale.detach().float().exp()


def check_pair(encoder: CLIPEncoder, texts: CLIPEncoder, width: int) -> None:
    """UserError unless the images of one and the texts of the other, `width` numbers each, lie in one space."""
    with torch.no_grad():
        own = encoder.image_features(encoder.pixels([Image.new("RGB", (32, 32))])).shape[-1]
    if own != width:
        raise UserError(
            f"{encoder.name} embeds images in {own} numbers, {texts.name} texts in {width}: the two do not belong "
            "together, take the texts of the CLIP that the tower was tuned from"
        )


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or len(names) < 2:
        raise UserError("zero-shot classification needs at least two class names")
    if any(not name.strip() for name in names):
        raise UserError(
            f"class name {[bool(name.strip()) for name in names].index(False) + 1} of {len(names)} is empty"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"class name {twice[0]!r} occurs more than once: no text tells its classes apart")
    return tuple(names)


def _checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    if isinstance(templates, str) or not templates:
        raise UserError("zero-shot classification needs a list of at least one template, such as 'a photo of a {}.'")
    without = [template for template in templates if "{}" not in template]
    if without:
        raise UserError(f"template {without[0]!r} has no place for the class name: write {{}} there")
    return tuple(templates)
