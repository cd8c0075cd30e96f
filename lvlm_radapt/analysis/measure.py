"""What `lvlm-radapt analyze` measures on images without labels: plain numbers and arrays, no figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks.eight_bit import from_8bit
from eval_tasks.crafting.batches import SampleBatch
from eval_tasks.crafting.crafted import sample_seed
from eval_tasks.crafting.embedding import Embedding
from eval_tasks.crafting.source_model import SourceModel
from lvlm_radapt.analysis.attention import attention_maps, evenness, moved
from lvlm_radapt.analysis.cka import cka_matrix
from lvlm_radapt.analysis.passes import layer_rows
from lvlm_radapt.analysis.spectrum import kernel_spectrum, mean_magnitude, radial_profile
from lvlm_radapt.experiments.mixing import Mixed
from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.towers import find_tower
from lvlm_radapt.training.images import canvas_batches, load_pixels
from lvlm_radapt.utils.errors import UserError

ROWS = 4096  # tokens that CKA is estimated from
SHOWN = 4  # images whose attention is drawn

Advance = Callable[[int, str], None]


@dataclass(frozen=True)
class Images:
    """The images on the model's canvas, a batch after the other, each of one canvas; files in the same order."""

    files: tuple[Path, ...]
    batches: tuple[PixelBatch, ...]


@dataclass(frozen=True)
class Attacked:
    """Images of either encoder's own white-box attack, as `Images.batches`, after the 8-bit round trip."""

    standard: tuple[PixelBatch, ...]
    robust: tuple[PixelBatch, ...]


def open_images(mixed: Mixed, files: Sequence[Path], batch_size: int) -> Images:
    """`files` in batches of at most `batch_size` of one canvas, in the order of their first image."""
    batches = canvas_batches(mixed.model, files, batch_size)
    return Images(tuple(chain(*batches)), tuple(load_pixels(mixed.model, some) for some in batches))


def cka(mixed: Mixed, images: Images, *, seed: int, advance: Advance) -> dict[str, Any]:
    """{"estimator", "rows", "layers", "matrix"}: standard (rows) against robust twin (columns), None for NaN."""
    seen = []
    for which, parts in (("standard", ()), ("robust twin", mixed.parts)):
        seen.append(layer_rows(mixed.take(parts), images.batches, most=ROWS, seed=seed))
        advance(len(images.files), f"layers of the {which}")
    mixed.take(())
    rows = len(seen[0][0])
    if rows < 4:
        raise UserError(f"{rows} tokens are too few for CKA: give more images")
    matrix = cka_matrix(*seen).tolist()
    return {
        "estimator": "linear CKA with the unbiased HSIC, over tokens of all images at once",
        "rows": rows,
        "layers": ["embedding", *(f"block {n}" for n in range(1, len(seen[0])))],
        "matrix": [[None if value != value else value for value in line] for line in matrix],
    }


def attacked(
    mixed: Mixed, images: Images, attack: Embedding, *, seed: int, batch_size: int, advance: Advance
) -> Attacked:
    """Both encoders attacked white-box on their image tokens, each with its own gradient."""
    made = []
    for which, parts in (("standard encoder", ()), ("robust twin", mixed.parts)):
        model = mixed.take(parts)
        done, start = [], 0
        for batch in images.batches:
            names = [path.name for path in images.files[start : start + len(batch)]]
            seeds = [sample_seed(seed, name) for name in names]
            pixels_alone = SampleBatch(samples=(), batch_size=batch_size)
            crafted = attack.craft(SourceModel(model, batch), batch, pixels_alone, seeds)
            done.append(batch.replace(from_8bit(crafted.pixels).to(batch.x.device)))
            start += len(batch)
            advance(len(batch), f"attack on the {which}")
        made.append(tuple(done))
    mixed.take(())
    return Attacked(*made)


def kernels(mixed: Mixed) -> dict[str, Any]:
    """{"unit", "standard", "robust", "shift"}: [p, p] mean magnitudes, and robust minus standard."""
    standard, robust = (kernel_spectrum(find_tower(mixed.take(parts).hf)) for parts in ((), mixed.parts))
    mixed.take(())
    return {
        "unit": "mean magnitude of the orthonormal FFT of the kernels; axes in cycles per patch, 0 in the centre",
        "standard": standard.tolist(),
        "robust": robust.tolist(),
        "shift": (robust - standard).tolist(),
    }


def perturbations(images: Images, attacks: Attacked) -> dict[str, Any]:
    """Mean spectra of attacked minus clean image in 1/255, over the images of the canvas that most share."""
    canvas, _ = Counter(tuple(b.x.shape[-2:]) for b in images.batches for _ in range(len(b))).most_common(1)[0]
    found: dict[str, Any] = {"canvas": [*canvas], "unit": "mean magnitude of the orthonormal FFT, in 1/255"}
    profiles: dict[str, list[float]] = {}
    for name in ("standard", "robust"):
        pairs = zip(images.batches, getattr(attacks, name), strict=True)
        delta = torch.cat([(after.x - before.x) for before, after in pairs if tuple(before.x.shape[-2:]) == canvas])
        spectrum = mean_magnitude(255 * delta.cpu())
        profiles["frequency"], profiles[name] = radial_profile(spectrum)
        found |= {"n": len(delta), name: spectrum.tolist()}
    return found | {"profile": profiles}


def attention(mixed: Mixed, images: Images, attacks: Attacked) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of each image and encoder: how evenly block 1 looks, and the share of its attention that its own attack moves;
    over all images, `spread`, how much the maps differ from image to image. And the first images with their maps."""
    maps: dict[str, list[Tensor]] = {}
    for name, parts in (("standard", ()), ("robust", mixed.parts)):
        model = mixed.take(parts)
        for kind, batches in (("clean", images.batches), ("attacked", getattr(attacks, name))):
            maps[f"{name}, {kind}"] = [one for batch in batches for one in attention_maps(model, batch)]
    mixed.take(())
    rows: list[dict[str, Any]] = [
        {"image": path.name}
        | {f"{name}_evenness": evenness(maps[f"{name}, clean"][i]) for name in ("standard", "robust")}
        | {
            f"{name}_moved": moved(maps[f"{name}, clean"][i], maps[f"{name}, attacked"][i])
            for name in ("standard", "robust")
        }
        for i, path in enumerate(images.files)
    ]
    numbers = {
        "rows": rows,
        "mean": {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if key != "image"},
        "spread": {name: _spread(maps[f"{name}, clean"]) for name in ("standard", "robust")},
    }
    seen = [x[:, : x.shape[-1]] if mixed.model.views_apart else x for batch in images.batches for x in batch.x]
    shown = [
        {"image": x.permute(1, 2, 0).cpu().numpy(), "maps": {title: of[i].numpy() for title, of in maps.items()}}
        for i, x in enumerate(seen[:SHOWN])
    ]
    return numbers, shown


def _spread(maps: Sequence[Tensor]) -> float | None:
    """How far an image's map is from the mean map, in share of attention moved; over the grid that most share, None
    for a single image."""
    grid, count = Counter(tuple(one.shape) for one in maps).most_common(1)[0]
    if count < 2:
        return None
    alike = [one for one in maps if tuple(one.shape) == grid]
    mean = torch.stack([one / one.sum() for one in alike]).mean(0)
    return sum(moved(one, mean) for one in alike) / count
