"""SigLIP vision transformers, as in SigLIP and LLaVA-OneVision: pixels [B, 3, H, W], tokens in raster order."""

from __future__ import annotations

from lvlm_radapt.towers.base import PartLayout
from lvlm_radapt.towers.clip import CLIPTower


class SiglipTower(CLIPTower):
    """SiglipVisionModel, or the level it once had below: CLIP's module layout without a CLS token."""

    family = "siglip"
    encoders = ("SiglipVisionModel", "SiglipVisionTransformer")
    layout = PartLayout(("embeddings.",), "encoder.layers.", "layer_norm1")
    prefix_tokens = 0
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
