"""Images of noise, questions and answers."""

import numpy as np
from PIL import Image

PROMPTS = ["What is this?", "describe the small red circle on the left with a word", "how many"]

TARGETS = ["a pig", "yes", "two large blue squares and one small green circle on the right"]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)
