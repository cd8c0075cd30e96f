"""The video processor of the checkpoint in this folder: it refuses videos, whose frames no filter goes over."""

from __future__ import annotations

from typing import Any, NoReturn

from transformers import Qwen2VLVideoProcessor as StockProcessor


class RAdaptVideoProcessor(StockProcessor):
    """It has the stock one's settings, for programs that read them."""

    def preprocess(self, *args: Any, **settings: Any) -> NoReturn:
        """ValueError, always."""
        raise ValueError("frames of videos are not filtered here: send images, or serve an export")
