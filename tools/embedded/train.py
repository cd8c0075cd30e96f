"""Train an embedded model from scratch: `python -m tools.embedded.train NAME --out DIR`.

Two stages, both counted in steps (never by the clock), seeded and resumable:

1. warm-up: the vision tower alone learns what every patch shows (shape, colour, size, word, background), and,
   where it has one, the CLS token learns what the whole scene holds;
2. joint: caption and questions through the language model, the patch labels kept as a side task.

tiny-clip takes its tower from a finished tiny-llava, locked; see `train_clip`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import logging as transformers_logging

from lvlm_radapt.embedded import scenes
from tools.embedded import build, packing
from tools.embedded.pool import GLOBAL, HEADS, PAIRS, Pool, augment, cached
from tools.embedded.train_clip import train_clip
from tools.embedded.training_run import Run
from tools.embedded.vision import LlavaVision, QwenVision


class Side(nn.Module):
    """The linear heads of the side tasks; thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, sum(HEADS))
        self.cls = nn.Linear(width, GLOBAL)

    def loss(
        self,
        patches: torch.Tensor,
        cls: torch.Tensor | None,
        dense: torch.Tensor,
        whole: torch.Tensor,
        pairs: torch.Tensor,
    ) -> torch.Tensor:
        logits = self.patch(patches).float().split(HEADS, -1)
        total = sum(
            (F.cross_entropy(part.flatten(0, 1), dense[..., i].flatten()) for i, part in enumerate(logits)),
            torch.zeros(()),
        )
        if cls is None:
            return total
        there, word, ground, count = (
            self.cls(cls).float().split((PAIRS, len(scenes.WORDS) + 1, len(scenes.BACKGROUNDS), 3), -1)
        )
        total = total + 6 * F.binary_cross_entropy_with_logits(there, pairs)
        for i, part in enumerate((word, ground, count)):
            total = total + 0.3 * F.cross_entropy(part, whole[:, i])
        return total


class Order:
    """Which scenes step `s` sees: a pure function of seed and step, so that resuming changes nothing."""

    def __init__(self, pools: list[Pool], batch: int, seed: int) -> None:
        self.pools, self.batch, self.seed = pools, batch, seed
        self.weights = np.array([len(p) for p in pools]) / sum(map(len, pools))

    def at(self, step: int) -> tuple[int, np.ndarray, np.random.Generator, torch.Generator]:
        rng = np.random.Generator(np.random.PCG64([self.seed, step]))
        which = int(rng.choice(len(self.pools), p=self.weights))
        rows = rng.integers(len(self.pools[which]), size=self.batch)
        return which, rows, rng, torch.Generator().manual_seed(self.seed * 1_000_003 + step)


def _labels(pool: Pool, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (torch.from_numpy(pool.dense[rows]), torch.from_numpy(pool.whole[rows]), torch.from_numpy(pool.pairs[rows]))


def train_lvlm(args: argparse.Namespace) -> nn.Module:
    """Both stages for tiny-llava or tiny-qwen; returns the trained transformers model."""
    torch.manual_seed(args.seed)
    qwen = args.name == "tiny-qwen"
    sizes = scenes.MIXED if qwen else (scenes.SQUARE,)
    pools = [cached(args.scenes // len(sizes), args.seed, size, args.workers, args.work) for size in sizes]
    model: Any = build.BUILDERS[args.name][0]().train()
    visions = [QwenVision(model, size) for size in sizes] if qwen else [LlavaVision(model)]
    side = Side(build.WIDTH)

    def perceive(
        vision: nn.Module, x: torch.Tensor, dense: torch.Tensor, whole: torch.Tensor, pairs: torch.Tensor
    ) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            patches, cls, _ = vision(x)
            return side.loss(patches, cls, dense, whole, pairs)

    def answer(
        vision: nn.Module, x: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor,
        position: torch.Tensor, before: torch.Tensor, after: torch.Tensor, dense: torch.Tensor, whole: torch.Tensor,
        pairs: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16):
            patches, cls, tokens = vision(x)
            embed = model.get_input_embeddings()
            b = len(x)
            prefix = [embed(before).expand(b, -1, -1), tokens, embed(after).expand(b, -1, -1)]
            hidden = model.model.language_model(
                inputs_embeds=torch.cat([*prefix, embed(ids)], 1).to(torch.bfloat16),
                attention_mask=mask, position_ids=position, use_cache=False,
            ).last_hidden_state  # fmt: skip
            start = hidden.shape[1] - ids.shape[1]
            logits = model.lm_head(hidden[:, start:-1]).float()
            target = labels[:, 1:]
            cap = packing.CAPTION_SLOT - 1
            words = F.cross_entropy(logits[:, :cap].flatten(0, 1), target[:, :cap].flatten())
            replies = F.cross_entropy(logits[:, cap:].flatten(0, 1), target[:, cap:].flatten())
            return words + replies + args.side * side.loss(patches, cls, dense, whole, pairs)

    compiled = [(torch.compile(perceive), torch.compile(answer)) for _ in visions]

    run = Run(args, "warmup", {"model": model, "side": side}, args.warmup_steps, 2e-3)
    order = Order(pools, args.batch, args.seed)
    while run.step < run.steps:
        which, rows, rng, generator = order.at(run.step)
        x = augment(pools[which].images[rows], generator, rng)
        run.update(compiled[which][0](visions[which], x, *_labels(pools[which], rows)))

    run = Run(args, "joint", {"model": model, "side": side}, args.joint_steps, 2e-3)
    order = Order(pools, args.batch, args.seed + 1)
    tokenizer = build.BUILDERS[args.name][1]()
    texts = [packing.tokenise(pool, tokenizer, "qwen" if qwen else "llava") for pool in pools]
    frames = [vision.frame(tokenizer) for vision in visions]
    while run.step < run.steps:
        which, rows, rng, generator = order.at(run.step)
        x = augment(pools[which].images[rows], generator, rng)
        ids, labels = packing.sample(texts[which], rows, rng)
        mask, position, before, after = frames[which]
        run.update(
            compiled[which][1](
                visions[which], x, ids, labels, mask, position, before, after, *_labels(pools[which], rows)
            )
        )
    return model


def main() -> None:
    """The command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m tools.embedded.train", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(build.BUILDERS))
    parser.add_argument("--out", type=Path, required=True, help="folder the trained model is written to")
    parser.add_argument("--work", type=Path, default=Path(".train"), help="scene pools and checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=40_000, help="size of the scene pool")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--warmup-steps", type=int, default=1000)
    parser.add_argument("--joint-steps", type=int, default=900)
    parser.add_argument("--side", type=float, default=0.2, help="weight of the side tasks in the joint stage")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw scenes")
    parser.add_argument("--llava", type=Path, help="finished tiny-llava whose tower tiny-clip takes over")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()  # the log has lines of its own
    if args.name == "tiny-clip":
        model: nn.Module = train_clip(args)
    else:
        model = train_lvlm(args)
    build.save(args.name, model.eval(), args.out)


if __name__ == "__main__":
    main()
