"""The image processor of the checkpoint in this folder: the stock one, and the low-pass filter on every image.

    AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)  # or AutoImageProcessor

The filter runs where the processor normalises, on the canvas and without rounding: what the model then sees is what the
defended model filters for itself. Without trust_remote_code transformers refuses to open the processor. A stock class
that is named outright opens the same settings and does not filter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import CLIPImageProcessorPil as StockProcessor

from lvlm_radapt.saving.filter_template import low_pass


class RAdaptImageProcessor(StockProcessor):
    """The stock image processor (PIL backend) with the low-pass filter."""

    filters_images = True

    def normalize(self, image: np.ndarray, *args: Any, **settings: Any) -> np.ndarray:
        """Filter `image` [3, H, W], whatever its range, and normalise it: both are linear."""
        filtered = low_pass(low_pass(image.astype(np.float64), 1), 2).astype(np.float32)
        normalised: np.ndarray = super().normalize(filtered, *args, **settings)
        return normalised

    def _preprocess(self, *args: Any, **settings: Any) -> Any:
        if not settings.get(
            "do_normalize", True
        ):  # as servers ask that normalise on the GPU: by 0 and 1 nothing changes
            settings |= {"do_normalize": True, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        return super()._preprocess(*args, **settings)
