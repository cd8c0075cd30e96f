"""Train photo-clip, a small CLIP, on photographs: `python -m tools.embedded.train_photos --photos DIR --out DIR`.

The first DIR is one that `tools.embedded.photos` laid out. A photo has two texts, its class name and a general word for
it (`photo_texts.GENERAL`), each in a template of CLIP's drawn anew at every step. It must choose its own among those of
all classes, and so among the general words. Most steps see photos at 40 px, the last ones at 64 px. Steps decide the
schedule; the run is seeded and goes on from its last checkpoint. After the steps follows the accuracy on the choosing
part.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging as transformers_logging

from lvlm_radapt.utils.atomic_folder import open_to_umask
from tools.embedded.build import clip_processor
from tools.embedded.photo_texts import LENGTH, general_of, photo_tokenizer, templates
from tools.embedded.photos import SIDE, Photos, read, vary
from tools.embedded.pool import normalise
from tools.embedded.training_run import Run

LEARNING_RATE = 2e-3
SMOOTHING = 0.1
SAVED_EVERY = 20  # steps
SMALL = 40  # px of the first steps: two fifths of the patches
TEMPLATE = "a photo of a {}."


def photo_clip(words: int) -> CLIPModel:
    """photo-clip with random weights. words: how many the tokenizer has."""
    text = {
        "vocab_size": words, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": LENGTH, "projection_dim": 128,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": words - 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": 8, "projection_dim": 128, "hidden_act": "quick_gelu",
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=128, attn_implementation="eager")
    return CLIPModel(config)  # eager: on CPUs in bfloat16 1.7 times as fast as the fused attention


def loss(model: Any, tokenizer: Any, x: Tensor, classes: Tensor, names: list[str], rng: np.random.Generator) -> Tensor:
    """The mean cross-entropy of choosing each photo's class name and, where it has one, its general word."""
    words, general = general_of(names)
    drawn = rng.choice(templates(), len(names) + len(words))
    texts = [str(t).replace("{}", name) for t, name in zip(drawn, [*names, *words], strict=True)]
    with torch.autocast("cpu", torch.bfloat16):
        images = _embed_images(model, x)
        written = _embed_texts(model, tokenizer, texts)
    scale = model.logit_scale.exp().clamp(max=100)
    logits = scale * F.normalize(images.float(), dim=-1) @ F.normalize(written.float(), dim=-1).T
    own, broad = logits.split([len(names), len(words)], -1)
    total = F.cross_entropy(own, classes, label_smoothing=SMOOTHING)
    target = torch.tensor(general)[classes]
    if len(words) > 1 and (target >= 0).any():
        total = total + 0.3 * F.cross_entropy(broad, target, ignore_index=-1, label_smoothing=SMOOTHING)
    return total


def _embed_images(model: Any, x: Tensor) -> Tensor:
    out = model.vision_model(x, interpolate_pos_encoding=x.shape[-1] != SIDE)
    return model.visual_projection(out.pooler_output)


def _embed_texts(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    out = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    return model.text_projection(out.pooler_output)


def train(args: argparse.Namespace, photos: Photos) -> Any:
    """The trained CLIPModel. `args`: those of `main`."""
    torch.manual_seed(args.seed)
    tokenizer = photo_tokenizer(photos.names)
    model: Any = photo_clip(len(tokenizer)).train()
    run = Run(args, "clip", {"model": model}, args.small_steps + args.steps, LEARNING_RATE, SAVED_EVERY)
    classes = torch.from_numpy(photos.classes)
    while run.step < run.steps:
        rows = _rows(len(classes), args.batch, args.seed, run.step)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + run.step)
        rng = np.random.Generator(np.random.PCG64([args.seed + 1, run.step]))
        x = vary(photos.images[rows], SMALL if run.step < args.small_steps else SIDE, generator)
        run.update(loss(model, tokenizer, x, classes[rows], photos.names, rng))
    return model


def _rows(count: int, batch: int, seed: int, step: int) -> np.ndarray:
    """The photos of a step: every photo once an epoch, each epoch in an order of its own."""
    steps = max(1, count // batch)
    order = np.random.Generator(np.random.PCG64([seed, step // steps])).permutation(count)
    return order[step % steps * batch : (step % steps + 1) * batch]


@torch.no_grad()
def accuracy(model: Any, photos: Photos) -> tuple[float, float]:
    """(top-1, top-5) of the class names in one template, fp32, in percent."""
    texts = [TEMPLATE.replace("{}", name) for name in photos.names]
    written = F.normalize(_embed_texts(model, photo_tokenizer(photos.names), texts), dim=-1)
    hits = np.zeros(2)
    for start in range(0, len(photos.classes), 250):
        x = torch.from_numpy(photos.images[start : start + 250]).permute(0, 3, 1, 2).float() / 255
        best = (_embed_images(model, normalise(x)) @ written.T).topk(min(5, len(texts))).indices.numpy()
        right = best == photos.classes[start : start + 250, None]
        hits += right[:, 0].sum(), right.any(1).sum()
    first, five = 100 * hits / len(photos.classes)
    return float(first), float(five)


def save(model: Any, names: list[str], folder: Path) -> None:
    """Write `folder`: fp16 weights, tokenizer, image processor."""
    model.half().save_pretrained(folder)
    photo_tokenizer(names).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(clip_processor(SIDE), indent=1) + "\n")
    open_to_umask(folder)


def main() -> None:
    """The command line of the module."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tools.embedded.train_photos", description=about)
    parser.add_argument("--photos", type=Path, required=True, help="holds train and choosing")
    parser.add_argument("--out", type=Path, required=True, help="folder the trained model is written to")
    parser.add_argument("--work", type=Path, default=Path(".train"), help="checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=128, help="photos a step")
    parser.add_argument("--small-steps", type=int, default=6000, help="steps at 40 px")
    parser.add_argument("--steps", type=int, default=800, help="steps at 64 px, after those")
    args = parser.parse_args()
    args.name = "photo-clip"
    args.work.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()  # the log has lines of its own
    model = train(args, read(args.photos / "train")).eval()
    held = read(args.photos / "choosing")
    print(f"choosing part, n = {len(held.classes)}: top-1 %.1f %%, top-5 %.1f %%" % accuracy(model, held), flush=True)
    save(model, held.names, args.out)


if __name__ == "__main__":
    main()
