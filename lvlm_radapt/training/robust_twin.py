"""A fine-tuned model as a folder of plain weights, with its training log and a model card."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from importlib import metadata

from attacks.eps import eps_text
from lvlm_radapt.loading.locate import TRAINING_LOG, lasting_name
from lvlm_radapt.models.base import LVLM, PixelModel
from lvlm_radapt.saving.plain_weights import refuse_unwritable, save_stock, weight_bytes
from lvlm_radapt.training.finetune import FinetuneSettings, TrainingLog
from lvlm_radapt.training.labelled import TrainingImages
from lvlm_radapt.training.scopes import scope_words
from lvlm_radapt.utils.atomic_folder import new_folder
from lvlm_radapt.utils.text_table import as_text

LOG = TRAINING_LOG
CARD = "README.md"

_METHODS = {
    "fare": "FARE (Schlarmann et al. 2024, arXiv 2402.12336)",
    "tecoa": "TeCoA (Mao et al. 2023, arXiv 2212.07016)",
    "tga": "TGA (Yu et al. 2024, arXiv 2410.21802)",
}
_READ = {"cls": "the image embedding", "tokens": "the patch tokens that a language model reads"}


def save_twin(
    model: PixelModel,
    log: TrainingLog,
    settings: FinetuneSettings,
    images: TrainingImages,
    out: str | os.PathLike[str],
    more: str = "",
) -> None:
    """Write `model`, as `finetune` left it, to the new folder `out`: a stock checkpoint in Hugging Face layout.

    An encoder's folder is what `load_encoder` opens, so that it serves as a tower or a guide; a vision-language
    model's what any server opens. `more`: Markdown for the end of its card. UserError when `out` is not empty or cannot
    be written.
    """
    if isinstance(model, LVLM):
        refuse_unwritable(model)
    with new_folder(out, room=weight_bytes(model)) as folder:
        save_stock(model, folder)
        told = {
            "model": model.label,
            "base": lasting_name(model.name) if model.tower_name is None else model.label,
            "images": {"trained_on": len(images.files), "held_back": len(images.watched), "sha256": images.digest},
            "settings": settings.plain(),
            **asdict(log),
        }
        (folder / LOG).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        (folder / CARD).write_text(
            model_card(model, log, settings, images) + more, encoding="utf-8", errors="backslashreplace"
        )


def model_card(model: PixelModel, log: TrainingLog, settings: FinetuneSettings, images: TrainingImages) -> str:
    """The card in Markdown."""
    recipe = settings.recipe
    before, after = log.probes[0], log.probes[-1]
    read = f", features: {_READ[settings.features]}" if settings.method == "fare" else ""
    classes = (
        f" in {len(images.names)} classes, worded {', '.join(map(repr, recipe.templates))}" if images.names else ""
    )
    trained = scope_words(settings.scope, settings.rank)
    count = f"{log.trained:,} of {log.weights:,} weights"
    if settings.rank is not None:
        count = f"{log.trained:,} numbers, merged into the tower's {log.weights:,} weights"
    rows = [
        ("base model", model.label),
        ("method", _METHODS[settings.method] + read),
        ("trained", f"{trained}: {count}; all else is the base's"),
        ("threat model", f"Linf, eps {eps_text(recipe.eps)} in [0, 1] pixel units"),
        ("inner attack", f"PGD, {recipe.pgd_steps} steps of {recipe.pgd_step * 255:.4g}/255, random start"),
        ("images", f"{len(images.files):,}{classes}; {len(images.watched)} more held back"),
        ("steps", f"{len(log.losses):,} of {recipe.batch_size} images"),
        ("optimiser", f"AdamW, rate {recipe.lr:g}, decay {recipe.weight_decay:g}, warm-up {recipe.warmup}, cosine"),
        ("precision", "bfloat16 autocast" if settings.bf16 else "float32"),
        ("preset, seed", f"{recipe.name}, {settings.seed}"),
        ("made by", f"lvlm-radapt {_version()}"),
        (
            f"{log.watched}, held back",
            f"clean {before.clean:.3f} -> {after.clean:.3f}, under the inner attack {before.robust:.3f} -> "
            f"{after.robust:.3f}",
        ),
    ]
    table = "\n".join(f"| {name} | {as_text(value)} |" for name, value in rows)
    return (
        f"# {as_text(model.label)}, adversarially fine-tuned\n\n| | |\n|---|---|\n{table}\n\n"
        "The last row is a look at the training itself, on few images and with its own attack; it is no measure of "
        f"robustness. `{LOG}` holds every step.\n"
    )


def _version() -> str:
    try:
        return metadata.version("lvlm-radapt")
    except metadata.PackageNotFoundError:  # run from a clone
        return "(a clone)"
