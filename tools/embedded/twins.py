"""Make the embedded robust twins of tiny-clip: `python -m tools.embedded.twins NAME --out DIR`.

They are trained as `lvlm-radapt finetune tiny-clip` trains, by the preset `scenes`, on scenes of the training split,
and written in float16.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from eval_tasks.config.presets import load_recipe
from lvlm_radapt.embedded.dataset import CLASSES, IMAGES, write_scenes
from lvlm_radapt.loading.load import load_encoder
from lvlm_radapt.training.finetune import FinetuneSettings, finetune
from lvlm_radapt.training.labelled import TrainingImages
from lvlm_radapt.training.robust_twin import save_twin

SCENES = 2000  # for FARE
PER_CLASS = 62  # for TeCoA, of each of the 32 classes of the training split

TWINS: dict[str, tuple[FinetuneSettings, str]] = {
    "tiny-clip-fare": (FinetuneSettings("fare", load_recipe("scenes"), features="tokens"), IMAGES),
    "tiny-clip-tecoa": (FinetuneSettings("tecoa", load_recipe("scenes")), CLASSES),
}
"""Name -> how it is trained, and on which of the folders that `write_scenes` makes."""

MORE = """
What the twins do under adaptive attacks, with all settings: `lvlm_radapt/embedded/weights/README.md`.
"""


def make(name: str, out: Path) -> None:
    """Train the twin `name` and write it to the new folder `out`."""
    settings, folder = TWINS[name]
    model: Any = load_encoder("tiny-clip")
    with tempfile.TemporaryDirectory() as data:
        scenes = Path(data) / "scenes"
        write_scenes(scenes, count=SCENES, split="train", per_class=PER_CLASS)
        images = TrainingImages.of(scenes / folder, limit=None, seed=settings.seed, classes=folder == CLASSES)
        log = finetune(model, images, settings)
        model.hf.half()
        save_twin(model, log, settings, images, out, more=MORE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(TWINS))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    make(given.name, given.out)
