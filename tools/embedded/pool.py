"""The training pool: scenes drawn once, with every label the recipe needs, as plain arrays."""

from __future__ import annotations

import io
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from lvlm_radapt.embedded import scenes
from tools.embedded.build import CLIP_MEAN, CLIP_STD, PATCH
from tools.embedded.training_run import save_whole

VARIANTS = 3  # times every question type is asked anew of a scene
# classes of a patch: shape, colour, size (each with "nothing"), word (with "no sign"), background
HEADS = (
    len(scenes.SHAPES) + 1,
    len(scenes.COLOURS) + 1,
    len(scenes.SIZES) + 1,
    len(scenes.WORDS) + 1,
    len(scenes.BACKGROUNDS),
)
PAIRS = len(scenes.SHAPES) * len(scenes.COLOURS)
GLOBAL = PAIRS + len(scenes.WORDS) + 1 + len(scenes.BACKGROUNDS) + 3  # what the CLS token is asked to know


@dataclass
class Pool:
    """`images` uint8 [N,H,W,3]; `dense` int64 [N,patches,5]; `whole` int64 [N,3]; `pairs` [N,PAIRS];
    texts: one caption and `VARIANTS` x 7 (question, answer) a scene, "" where a question cannot be asked."""

    images: np.ndarray
    dense: np.ndarray
    whole: np.ndarray
    pairs: np.ndarray
    captions: list[str]
    asked: list[list[list[tuple[str, str]]]]

    def __len__(self) -> int:
        return len(self.images)


def _labels(scene: scenes.Scene) -> np.ndarray:
    rows, cols = scene.height // PATCH, scene.width // PATCH
    out = np.zeros((rows, cols, 5), np.int64)
    out[..., 4] = list(scenes.BACKGROUNDS).index(scene.background)
    ys, xs = (np.mgrid[0:rows, 0:cols] + 0.5) * PATCH
    for t in scene.things:
        reach = max(t.radius, 0.75 * PATCH)
        on = np.maximum(abs(xs - t.x), abs(ys - t.y)) < reach
        out[on, 0] = scenes.SHAPES.index(t.shape) + 1
        out[on, 1] = list(scenes.COLOURS).index(t.colour) + 1
        out[on, 2] = list(scenes.SIZES).index(t.size) + 1
    if scene.word and scene.sign:
        x, y = scene.sign
        on = (xs > x) & (xs < x + 46) & (ys > y) & (ys < y + 26)
        out[on, 3] = scenes.WORDS.index(scene.word) + 1
    return out.reshape(-1, 5)


def _chunk(job: tuple[str, int, int, int, tuple[int, int]]) -> tuple:
    split, seed, start, stop, size = job
    drawn = [scenes.sample_scene(split, seed, i, size) for i in range(start, stop)]  # type: ignore[arg-type]
    images = np.stack([np.asarray(scenes.render(s)) for s in drawn])
    dense = np.stack([_labels(s) for s in drawn])
    pairs = np.zeros((len(drawn), PAIRS), np.float32)
    whole = np.zeros((len(drawn), 3), np.int64)
    for i, s in enumerate(drawn):
        for t in s.things:
            pairs[i, scenes.SHAPES.index(t.shape) * len(scenes.COLOURS) + list(scenes.COLOURS).index(t.colour)] = 1
        whole[i] = (
            scenes.WORDS.index(s.word) + 1 if s.word else 0,
            list(scenes.BACKGROUNDS).index(s.background),
            len(s.things) - 1,
        )
    asked = []
    for s in drawn:
        variants = []
        for v in range(VARIANTS):
            by_kind = {q.kind: (q.text, q.answer) for q in scenes.questions(s, seed=v + 1)}
            variants.append([by_kind.get(kind, ("", "")) for kind in scenes.QUESTION_TYPES])
        asked.append(variants)
    return images, dense, whole, pairs, [scenes.caption(s) for s in drawn], asked


def draw(count: int, seed: int, size: tuple[int, int], workers: int) -> Pool:
    """`count` training scenes of `size`; the same for any number of workers."""
    jobs = [("train", seed, a, min(a + 500, count), size) for a in range(0, count, 500)]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(_chunk, jobs))
    images, dense, whole, pairs = (np.concatenate([p[i] for p in parts]) for i in range(4))
    return Pool(images, dense, whole, pairs, [c for p in parts for c in p[4]], [a for p in parts for a in p[5]])


def augment(images: np.ndarray, generator: torch.Generator, rng: np.random.Generator) -> torch.Tensor:
    """Normalised float [B,3,H,W]: a tenth through JPEG, half blurred (sigma up to 1.3 px), half with noise."""
    batch = images
    chosen = np.flatnonzero(rng.random(len(images)) < 0.1)
    if len(chosen):
        batch = images.copy()
        for i in chosen:
            buffer = io.BytesIO()
            Image.fromarray(images[i]).save(buffer, "JPEG", quality=int(rng.integers(40, 95)))
            batch[i] = np.asarray(Image.open(buffer))
    x = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
    b = len(x)
    gain = 1 + 0.15 * (torch.rand(b, 1, 1, 1, generator=generator) - 0.5)
    x = x * gain + 0.08 * (torch.rand(b, 1, 1, 1, generator=generator) - 0.5)
    sigma = torch.rand(b, generator=generator) * 1.3 * (torch.rand(b, generator=generator) < 0.5)
    x = _blur(x, sigma.clamp_min(1e-3))
    level = 0.04 * torch.rand(b, 1, 1, 1, generator=generator) * (torch.rand(b, 1, 1, 1, generator=generator) < 0.5)
    x = (x + level * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    return normalise(x)


def normalise(x: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return (x - mean[:, None, None]) / std[:, None, None]


def _blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    b, c, h, w = x.shape
    at = torch.arange(-4, 5).float()
    taps = torch.exp(-(at**2) / (2 * sigma[:, None] ** 2))
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(c, 0)
    flat = F.pad(x, (4, 4, 4, 4), mode="reflect").reshape(1, b * c, h + 8, w + 8)
    flat = F.conv2d(flat, taps[:, None, :, None], groups=b * c)
    return F.conv2d(flat, taps[:, None, None, :], groups=b * c).reshape(b, c, h, w)


def cached(count: int, seed: int, size: tuple[int, int], workers: int, folder: Path) -> Pool:
    """`draw`, kept on disk so that a resumed training starts at once."""
    path = folder / f"pool-{size[0]}x{size[1]}-{count}-{seed}.pt"
    if path.exists():
        return Pool(**torch.load(path, weights_only=False))  # our own file of a moment ago, never a download
    pool = draw(count, seed, size, workers)
    folder.mkdir(parents=True, exist_ok=True)
    save_whole(vars(pool), path)
    return pool
