"""Batched end-to-end APGD against the same code one image at a time: images per second, mean loss.

Run: python benchmarks/batching.py [--model tiny-llava] [--images 32] [--steps 10] [--repeats 5]
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time

import torch

from attacks import apgd, cpu_workers
from eval_tasks.run.environment import environment
from lvlm_radapt import load_model
from lvlm_radapt.embedded import scenes

PROMPT = "Provide a short caption for this image."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    model = load_model(args.model)
    drawn = [scenes.sample_scene("test", 1, i) for i in range(args.images)]
    batch = model.pixels([scenes.render(s) for s in drawn])
    captions = [scenes.caption(s) for s in drawn]

    def attack(size: int) -> tuple[float, float]:
        losses = []
        started = time.perf_counter()
        for first in range(0, args.images, size):
            rows = list(range(first, min(first + size, args.images)))
            found = apgd(
                lambda x, index, rows=rows: model.loss(
                    batch[[rows[i] for i in index]].replace(x),
                    [PROMPT] * len(index),
                    [captions[rows[i]] for i in index],
                ),
                batch.x[rows],
                eps=4 / 255,
                steps=args.steps,
                seed=rows,
                workers=cpu_workers(len(rows)),  # as in an evaluation
            )
            losses.append(found.loss)
        return args.images / (time.perf_counter() - started), float(torch.cat(losses).mean())

    attack(args.images)
    rounds = [(attack(1), attack(args.images)) for _ in range(args.repeats)]
    single = statistics.median(one[0] for one, _ in rounds)
    batched = statistics.median(many[0] for _, many in rounds)
    ratio = statistics.median(many[0] / one[0] for one, many in rounds)
    loss_one, loss_many = rounds[0][0][1], rounds[0][1][1]
    where = environment()
    print(
        f"| {datetime.date.today()} | {args.model} | {where['cpu']}, {where['threads']} threads, "
        f"torch {torch.__version__} | {args.images} images, {args.steps} steps, float32 | {single:.2f} | {batched:.2f} "
        f"| {ratio:.2f}x | {loss_one:.4f} / {loss_many:.4f} ({100 * abs(loss_many / loss_one - 1):.2f} %) |"
    )


if __name__ == "__main__":
    main()
