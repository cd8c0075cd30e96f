"""What a method of adversarial fine-tuning attacks, trains and watches, on one model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.zero_shot import ZeroShot
from lvlm_radapt.training.losses import fare_loss, tecoa_loss, text_guided_attention, tga_loss
from lvlm_radapt.utils.errors import UserError

Method = Literal["fare", "tecoa", "tga"]
Features = Literal["cls", "tokens"]
Targets = tuple[Tensor, ...]
"""What a batch's images are to be, tensors with a row an image."""


class Objective(ABC):
    """The losses of a method on `model`, whose weights change under it."""

    watched: ClassVar[str]
    """What `score` measures, for people."""

    def __init__(self, model: PixelModel) -> None:
        self.model = model

    @abstractmethod
    def targets(self, batch: PixelBatch, classes: Tensor | None) -> Targets:
        """To be called with the original weights in the model. classes: long [B], where the method needs them."""

    @abstractmethod
    def attacked(self, batch: PixelBatch, targets: Targets) -> Tensor:
        """[B] what the inner attack raises."""

    def loss(self, adversarial: PixelBatch, clean: PixelBatch, targets: Targets) -> Tensor:
        """[B] what training lowers; what the attack raises, if a method says nothing else."""
        return self.attacked(adversarial, targets)

    @abstractmethod
    def score(self, batch: PixelBatch, targets: Targets) -> Tensor:
        """[B] how good the model is on these images, 1 at best."""


class Fare(Objective):
    """FARE on the image embedding (`cls`, as published) or on the patch tokens that a language model reads
    (`tokens`)."""

    watched = "cosine to the original's clean features"

    def __init__(self, model: PixelModel, features: Features) -> None:
        super().__init__(model)
        if features == "cls" and not isinstance(model, CLIPEncoder):
            raise UserError(f"{model.name}: a language model reads patch tokens, no image embedding: use tokens")
        self.features = features

    def read(self, batch: PixelBatch) -> Tensor:
        if self.features == "cls" and isinstance(self.model, CLIPEncoder):
            return self.model.image_features(batch)
        return self.model.features(batch)

    def targets(self, batch: PixelBatch, classes: Tensor | None) -> Targets:
        with torch.no_grad():
            return (self.read(batch).float(),)

    def attacked(self, batch: PixelBatch, targets: Targets) -> Tensor:
        return fare_loss(self.read(batch), *targets)

    def score(self, batch: PixelBatch, targets: Targets) -> Tensor:
        near = cosine_similarity(self.read(batch).float(), targets[0], dim=-1)
        return near if near.ndim == 1 else near.mean(dim=1)


class Tecoa(Objective):
    """TeCoA: zero-shot classification among the class texts of the model's own, frozen text side."""

    watched = "zero-shot accuracy"

    def __init__(self, model: PixelModel, class_names: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__(model)
        if not isinstance(model, CLIPEncoder):
            raise UserError(
                f"{model.name} is no image encoder with texts, which TeCoA and TGA train: use --method fare"
            )
        self.encoder = model
        self.zero_shot = ZeroShot(model, class_names, templates)

    def targets(self, batch: PixelBatch, classes: Tensor | None) -> Targets:
        assert classes is not None
        return (classes,)

    def attacked(self, batch: PixelBatch, targets: Targets) -> Tensor:
        return tecoa_loss(self.zero_shot.logits(batch), targets[0])

    def score(self, batch: PixelBatch, targets: Targets) -> Tensor:
        return (self.zero_shot.logits(batch).argmax(dim=1) == targets[0]).float()


class Tga(Tecoa):
    """TGA: TeCoA with the text-guided attention maps held to the original's. As in the paper the inner attack raises
    TeCoA's cross entropy alone."""

    def __init__(self, model: PixelModel, class_names: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__(model, class_names, templates)
        if type(model) is not CLIPEncoder:
            raise UserError(f"{model.name} has no projection of its patches, which TGA needs: take a CLIP")

    def targets(self, batch: PixelBatch, classes: Tensor | None) -> Targets:
        assert classes is not None
        with torch.no_grad():
            return classes, self.read(batch, classes)[1]

    def loss(self, adversarial: PixelBatch, clean: PixelBatch, targets: Targets) -> Tensor:
        classes, original = targets
        logits, attention = self.read(adversarial, classes)
        return tga_loss(logits, classes, attention, self.read(clean, classes)[1], original)

    def read(self, batch: PixelBatch, classes: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [B, K], attention maps [B, H * W] guided by each image's own class)."""
        hf = self.encoder.hf
        out = hf.vision_model(self.encoder.pixel_values(batch))
        image = normalize(hf.visual_projection(out.pooler_output).float(), dim=-1)
        patches = hf.visual_projection(hf.vision_model.post_layernorm(out.last_hidden_state[:, 1:]))
        height, width = batch.x.shape[-2:]
        side = hf.config.vision_config.patch_size
        texts = self.zero_shot.class_embeddings
        attention = text_guided_attention(
            patches, texts[classes], (height // side, width // side), (int(height), int(width))
        )
        return self.zero_shot.scale * image @ texts.T, attention


def objective_of(
    method: Method, model: PixelModel, *, features: Features, class_names: Sequence[str], templates: Sequence[str]
) -> Objective:
    """The method on this model. UserError where the model is not made for it."""
    if method == "fare":
        return Fare(model, features)
    return {"tecoa": Tecoa, "tga": Tga}[method](model, class_names, templates)
