"""Samples attacked a second: this project's engine against one image at a time, the way reference code does it.

The reference loop is written here: one sample, the library's own forward pass with labels (all layers of the tower,
logits at every position), a plain APGD with Python numbers, an answer, a score; then the next sample. Same model
code, images, questions, threads, dtype, steps and seeds; accuracy under both attacks is printed, since a fast attack
that is weaker is none. With --early-exit the engine lets a sample go once its answer scores 0, as `eval` does with
that flag. For a GPU's share of its matrix peak see full_size.py.

Run: python benchmarks/attack_speed.py [--attack e2e|ensemble] [--early-exit] [--images 32] [--steps 20] [--repeats 3]
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from attacks.apgd_state import checkpoint_windows
from attacks.eight_bit import from_8bit, to_8bit
from attacks.noise import random_start
from eval_tasks.crafting.batches import PromptBatch
from eval_tasks.crafting.crafted import sample_seed
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.data import Sample, load_task, open_image
from eval_tasks.run.environment import environment
from eval_tasks.tasks.make_task import make_task
from lvlm_radapt import load_model
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.models import LVLM, PixelBatch

EPS = 4 / 255


def library_loss(model: LVLM, batch: PixelBatch, prompt: str, target: str) -> Callable[[Tensor], Tensor]:
    """The library's own loss of one image, question and answer, as a function of the pixels."""
    question = model.text.prompt(prompt, model.image_tokens(batch)[0])
    answer = model.text.target(prompt, target)
    ids = torch.tensor([question + answer])
    labels = torch.tensor([[-100] * len(question) + answer])
    mask = torch.ones_like(ids)
    return lambda x: (
        model.hf(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=model.pixel_values(batch.replace(x)),
            labels=labels,
            use_cache=False,
        ).loss
    )


def plain_apgd(loss_fn: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, steps: int) -> Tensor:
    """APGD (Linf) for one image, as its authors write it down."""

    def look(point: Tensor) -> tuple[float, Tensor]:
        point = point.detach().requires_grad_()
        loss = loss_fn(point)
        return loss.item(), torch.autograd.grad(loss, point)[0]

    def closest(point: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(point, x - EPS), x + EPS).clamp(0, 1)

    size, rises, last, halved = 2 * EPS, 0, 0.0, True
    before = here = start
    best_loss, slope = look(here)
    best, best_slope, checked = here, slope, best_loss
    windows = checkpoint_windows(steps)
    for step in range(1, steps + 1):
        weight = 1.0 if step == 1 else 0.75
        ahead = closest(here + size * slope.sign())
        before, here = here, closest(here + weight * (ahead - here) + (1 - weight) * (here - before))
        loss, slope = look(here)
        rises += loss > last
        last = loss
        if loss > best_loss:
            best, best_loss, best_slope = here, loss, slope
        if step in windows:
            halve = rises <= 0.75 * windows[step] or (not halved and checked >= best_loss)
            halved, checked, rises = halve, best_loss, 0
            if halve:
                size, here, slope = size / 2, best, best_slope
    return best


class Job:
    """The samples of one comparison, and both ways to attack and score them."""

    def __init__(self, model: LVLM, samples: Sequence[Sample], args: argparse.Namespace) -> None:
        self.model, self.samples, self.steps, self.attack = model, samples, args.steps, args.attack
        made = make_attack(args.attack, eps=EPS, steps=args.steps, early_exit=args.early_exit)
        assert made is not None
        self.made = made
        self.run = make_task("vqav2", "scenes").bind(model, samples, samples, batch_size=len(samples))
        batch = self.run.batch(samples)
        assert isinstance(batch, PromptBatch)
        self.asked = batch
        self.batch = model.pixels([open_image(s.image) for s in samples])
        self.seeds = [sample_seed(0, s.id) for s in samples]

    def reference(self) -> float:
        """One image at a time; the mean accuracy left."""
        return statistics.mean(self._reference(i) for i in range(len(self.samples)))

    def _reference(self, i: int) -> float:
        one, prompt = self.batch[i], self.asked.prompts[i]
        noise = random_start(one.x, eps=EPS, seeds=[self.seeds[i]])

        def attack(text: str, start: Tensor, sign: int = 1) -> tuple[float, Tensor]:
            loss = library_loss(self.model, one, prompt, text)
            found = to_8bit(plain_apgd(lambda x: sign * loss(x), one.x, start, self.steps), one.x, eps=EPS, norm="Linf")
            return self._accuracy(one, found, [i])[0], from_8bit(found)

        texts = self.asked.scores.references(self.samples[i], 5)
        if self.attack == "e2e":
            return attack(texts[0], noise)[0]
        lowest, kept, worst = self._accuracy(one, to_8bit(one.x, one.x, eps=EPS, norm="Linf"), [i])[0], one.x, texts[0]
        reach = float("inf")
        for text in texts:
            if lowest > 0:
                score, found = attack(text, noise)
                if score < reach:
                    reach, worst = score, text
                if score < lowest:
                    lowest, kept = score, found
        if lowest > 0:
            lowest = min(lowest, attack(worst, kept)[0])
        for target in ("maybe", "Word"):
            if lowest > 0:
                lowest = min(lowest, attack(target, noise, sign=-1)[0])
        return lowest

    def ours(self) -> float:
        """All of them together; the mean accuracy left."""
        everyone = list(range(len(self.samples)))
        crafted = self.run.craft(self.batch, self.samples, self.made, seeds=self.seeds)
        return statistics.mean(self._accuracy(self.batch, crafted.pixels, everyone))

    def _accuracy(self, batch: PixelBatch, pixels: Tensor, rows: list[int]) -> list[float]:
        return self.asked.grade(self.asked.said_to(self.model, batch.replace(from_8bit(pixels)), rows), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attack", choices=("e2e", "ensemble"), default="e2e")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--early-exit", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model = load_model("tiny-llava")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "scenes"
        write_scenes(data, count=args.images, seed=1)
        job = Job(model, load_task("vqav2", data)[: args.images], args)
        first = argparse.Namespace(**vars(args) | {"steps": 1})
        Job(model, job.samples[:2], first).ours()  # the first call is slower
        rounds = []
        for _ in range(args.repeats):
            results = []
            for attack in (job.reference, job.ours):
                started = time.perf_counter()
                accuracy = attack()
                results.append((len(job.samples) / (time.perf_counter() - started), accuracy))
            rounds.append(results)
    (slow, accuracy), (fast, ours) = rounds[0]
    slow, fast = (statistics.median(r[i][0] for r in rounds) for i in (0, 1))
    ratio = statistics.median(r[1][0] / r[0][0] for r in rounds)
    where = environment()
    attack_named = args.attack + (", early exit" if args.early_exit else "")
    print(
        f"| {datetime.date.today()} | {attack_named} | {where['cpu']}, {where['threads']} threads, "
        f"torch {torch.__version__} | {args.images} images, {args.steps} steps, float32 | {slow:.2f} | {fast:.2f} "
        f"| {ratio:.2f}x | {accuracy:.1f} / {ours:.1f} |"
    )


if __name__ == "__main__":
    main()
