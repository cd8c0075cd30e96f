"""Our APGD-CE against the official AutoAttack code's on a zero-shot classifier: accuracy that is left, mean of seeds.

Run: python benchmarks/apgd_parity.py [--model tiny-clip] [--data DIR] [--images 500] [--steps 100] [--eps 2/255]
     [--seeds 3] [--norm Linf] [--batch-size 50]

Wanted: ours is no higher than theirs by more than one image in 500.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from pathlib import Path

import torch
from against_libraries import classification
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor

from attacks.classification import fooled
from attacks.suite import SuiteSettings, run_suite
from eval_tasks.run.environment import environment
from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.utils.budget import parse_eps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-clip")
    parser.add_argument("--data", type=Path, help="an image folder; scenes when left out")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--eps", default="2/255")
    parser.add_argument("--norm", default="Linf", choices=["Linf", "L2"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    classifier, batch, y = classification(args.model, args.data, args.images, 42, args.device)

    def logits(x: Tensor, index: object = None) -> Tensor:
        return classifier.logits(PixelBatch(x, batch.meta[:1] * len(x)))

    def theirs(x: Tensor, labels: Tensor, seed: int) -> int:
        attack = APGDAttack(
            logits, n_iter=args.steps, eps=parse_eps(args.eps), norm=args.norm, seed=seed, loss="ce", device=x.device
        )
        with torch.no_grad():
            return int((~fooled(logits(attack.perturb(x, labels)), labels)).sum())

    def ours(x: Tensor, labels: Tensor, seed: int) -> int:
        found = run_suite(
            ["apgd-ce"], logits, x, labels, eps=parse_eps(args.eps), norm=args.norm, seed=seed,
            settings=SuiteSettings(steps=args.steps),
        )  # fmt: skip
        return found.broken_by.count(None)

    left = {"ours": [], "theirs": []}
    for seed in range(args.seeds):
        for name, attack in (("ours", ours), ("theirs", theirs)):
            alive = 0
            for first in range(0, len(y), args.batch_size):
                rows = slice(first, first + args.batch_size)
                alive += attack(batch.x[rows], y[rows], 10_000 * seed + first)
            left[name].append(100 * alive / len(y))
    mean = {name: statistics.mean(values) for name, values in left.items()}
    difference = mean["ours"] - mean["theirs"]
    shown = {name: f"{mean[name]:.2f} ({', '.join(f'{v:.1f}' for v in values)})" for name, values in left.items()}
    env = environment()
    print("| date | model | torch | setting | ours, % left | official code | difference |")
    print(
        f"| {datetime.date.today()} | {args.model} | {env['packages']['torch']} | {len(y)} images, {args.steps} "
        f"steps, {args.norm} {args.eps} | {shown['ours']} | {shown['theirs']} | {difference:+.2f} |"
    )
    if difference > 100 / 500:
        raise SystemExit(f"ours leaves {difference:.2f} points more than the official code: 0.2 is the limit")


if __name__ == "__main__":
    main()
