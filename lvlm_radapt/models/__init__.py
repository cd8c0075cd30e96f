"""Vision-language models behind one interface: `load_model`, and the classes it gives."""

from lvlm_radapt.loading.load import embedded_models, load_encoder, load_model
from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.siglip import SiglipEncoder

__all__ = [
    "LVLM",
    "CLIPEncoder",
    "PixelBatch",
    "PixelModel",
    "SiglipEncoder",
    "embedded_models",
    "load_encoder",
    "load_model",
]
