"""Plain vision transformers as surrogates and guides: ViT and DINOv2, which have no texts and no image embedding."""

from __future__ import annotations

from torch import nn

from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.family import Family
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.vit import Dinov2Tower, ViTTower


class ViTEncoder(CLIPEncoder):
    """`ViTModel` or `Dinov2Model`, bare or under the head of a classifier, which is not asked."""

    @property
    def tower(self) -> nn.Module:
        return find_tower(self.hf).module


FAMILY = Family(
    checkpoints={
        "vit": ("ViTModel", "ViTForImageClassification"),
        "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    },
    encoder=ViTEncoder,
    towers=(ViTTower, Dinov2Tower),
    image_processors=("ViTImageProcessor", "BitImageProcessor"),
)
