"""Our PGD and APGD against those of torchattacks and foolbox, on one classifier: loss reached, accuracy left, time.

Run: python benchmarks/against_libraries.py [--model tiny-clip] [--data DIR] [--images 64] [--steps 20] [--eps 4/255]
     [--repeats 5]

Needs torchattacks and foolbox, which are no dependencies of this project:
    pip install --no-deps torchattacks foolbox eagerpy GitPython gitdb smmap

All get the same images, labels, budget, steps and, for PGD, the same step size of eps / 4, and start at random. The
rounds go through all attacks in turn, so that a machine which grows slower does so for all.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import apgd, cpu_workers, pgd
from eval_tasks.data import load_task, open_image, select
from eval_tasks.data.imagefolder import class_names
from eval_tasks.run.environment import environment
from lvlm_radapt import load_encoder
from lvlm_radapt.embedded.dataset import CLASSES, write_scenes
from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.zero_shot import ZeroShot
from lvlm_radapt.utils.budget import parse_eps

Attack = Callable[[int], Tensor]
"""The attacked images [B, 3, H, W], given a seed."""


class Classifier(nn.Module):
    """A zero-shot classifier as a plain module: images [B, 3, H, W] in [0, 1] to logits [B, K]."""

    def __init__(self, zero_shot: ZeroShot, batch: PixelBatch) -> None:
        super().__init__()
        self.hf = zero_shot.encoder.hf
        self._zero_shot, self._meta = zero_shot, batch.meta[:1]

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self._zero_shot.logits(PixelBatch(x, self._meta * len(x)))


def classification(
    model: str, data: Path | None, images: int, seed: int, device: str
) -> tuple[ZeroShot, PixelBatch, Tensor]:
    """A zero-shot classifier, so many images on its canvas, and the number of each one's class, long [B].

    data: an image folder; None for scenes. seed: draws the images.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if data is None:
            write_scenes(Path(scratch) / "scenes", count=1, per_class=-(-images // 36))
            data = Path(scratch) / "scenes" / CLASSES
        samples = load_task("imagefolder", data)
        chosen, _ = select(samples, images, seed)
        names = class_names(samples)
        encoder = load_encoder(model, device=device)
        batch = encoder.pixels([open_image(s.image) for s in chosen])
    y = torch.tensor([names.index(s.references[0]) for s in chosen], device=batch.x.device)
    return ZeroShot(encoder, names), batch, y


def ours(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, workers: int) -> dict[str, Attack]:
    """This project's."""

    def loss(images: Tensor, index: list[int]) -> Tensor:
        return cross_entropy(model(images), y[index], reduction="none")

    return {
        "PGD, ours": lambda seed: pgd(loss, x, eps=eps, step_size=eps / 4, steps=steps, seed=seed).x_adv,
        "APGD-CE, ours": lambda seed: apgd(loss, x, eps=eps, steps=steps, seed=seed).x_adv,
        f"APGD-CE, ours, {workers} workers": lambda seed: (
            apgd(loss, x, eps=eps, steps=steps, seed=seed, workers=workers).x_adv
        ),
    }


def theirs(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> dict[str, Attack]:
    """The libraries', through their usual calls."""
    import foolbox
    import torchattacks

    seen = foolbox.PyTorchModel(model, bounds=(0, 1))
    foolbox_pgd = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=steps, random_start=True)

    def seeded(attack: Callable[[], Tensor]) -> Attack:
        def run(seed: int) -> Tensor:
            torch.manual_seed(seed)
            return attack().detach()

        return run

    return {
        "PGD, torchattacks": seeded(lambda: torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=steps)(x, y)),
        "PGD, foolbox": seeded(lambda: foolbox_pgd.run(seen, x, y, epsilon=eps)),
        # its usual call gives the clean image where none is misclassified: this is its own way to the best point
        "APGD-CE, torchattacks": seeded(
            lambda: torchattacks.APGD(model, eps=eps, steps=steps, n_restarts=1).perturb(x, y, best_loss=True)[1]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-clip")
    parser.add_argument("--data", type=Path, help="an image folder; scenes when left out")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--eps", default="4/255")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    classifier, batch, y = classification(args.model, args.data, args.images, 0, args.device)
    model, x = Classifier(classifier, batch).eval(), batch.x
    eps = parse_eps(args.eps)
    attacks = ours(model, x, y, eps, args.steps, max(2, cpu_workers(len(x))))
    attacks |= theirs(model, x, y, eps, args.steps)
    seconds: dict[str, list[float]] = {name: [] for name in attacks}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in attacks}
    for seed in range(args.repeats):
        for name, attack in attacks.items():
            start = time.perf_counter()
            x_adv = attack(1000 * seed)
            seconds[name].append(time.perf_counter() - start)
            assert float((x_adv - x).abs().max()) <= eps + 1e-6, f"{name} left the ball"
            with torch.no_grad():
                logits = model(x_adv)
            right = 100 * float((logits.argmax(dim=1) == y).float().mean())
            found[name].append((float(cross_entropy(logits, y)), right))
    with torch.no_grad():
        clean = model(x)
    told = environment()
    print(
        f"{datetime.date.today()}, {args.model}, {args.images} images, {args.steps} steps, Linf {args.eps}, "
        f"{args.repeats} seeds, {told['cpu']}, {torch.get_num_threads()} threads, torch {told['packages']['torch']}; "
        f"clean: loss {float(cross_entropy(clean, y)):.3f}, "
        f"{100 * float((clean.argmax(dim=1) == y).float().mean()):.1f} % right\n"
    )
    print("| attack | mean loss (seeds, least to most) | right, % | seconds, median (least to most) |")
    print("|---|---|---|---|")
    for name in sorted(attacks):
        losses, right = zip(*found[name], strict=True)
        times = seconds[name]
        spread = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        reached = f"{statistics.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"
        print(f"| {name} | {reached} | {statistics.mean(right):.1f} | {spread} |")


if __name__ == "__main__":
    main()
