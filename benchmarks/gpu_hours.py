"""GPU hours of `lvlm-radapt compare evidence-7b` and of the trainings before it, from FLOP counted on the meta device.

Hours are FLOP / (peak x utilisation). The utilisation is an assumption: nothing here was ever run on a GPU.
Attacks that stop early, as an ensemble does where a sample has fallen, take less.

Run: python benchmarks/gpu_hours.py
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import flops
import full_size
import torch
from PIL import Image

from eval_tasks.audit.short import SHARE
from eval_tasks.config.presets import FinetuneRecipe, load_attack, load_protocol, load_recipe
from eval_tasks.crafting.apgd_attack import APGDAttack
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.tasks.make_task import make_task
from eval_tasks.tasks.text import TextTask
from lvlm_radapt.defences.csr import CSR
from lvlm_radapt.defences.registry import find_defence
from lvlm_radapt.defences.ttc import TTC
from lvlm_radapt.experiments.compare.preset import Comparison, load_comparison
from lvlm_radapt.experiments.harden.plan import AUDIT_SAMPLES, AUDIT_WORK, Costs
from lvlm_radapt.experiments.harden.timing import costs_of
from lvlm_radapt.models import LVLM
from lvlm_radapt.models.base import EOT_DRAWS
from lvlm_radapt.training.learned_anchor import LearnSettings

PLAN = "evidence-7b"
MODELS = {"llava": "LLaVA-1.5-7B", "qwen2_5_vl": "Qwen2.5-VL-7B"}
PEAK = full_size.MATRIX_PEAK["H100"]
UTILISATION = 0.3
PHOTO = (640, 480)
"""Most of COCO's photos have this size. A Qwen sees 391 tokens of it."""
TRAININGS = 6
"""Low rank and FARE, three seeds each: the commands of docs/holds.md."""


class Work(NamedTuple):
    """FLOP of one image. end_to_end, embedding: a step of the attack. forward: through the tower and projector.
    weights: forward and backward to the tower's weights. answer: image and question, without the few words said."""

    end_to_end: int
    embedding: int
    forward: int
    weights: int
    answer: int

    def training(self, recipe: FinetuneRecipe) -> int:
        """Of a training step: PGD's gradients and its last look, the original's features, and the descent."""
        return recipe.pgd_steps * self.embedding + 2 * self.forward + self.weights


class Stage(NamedTuple):
    """A piece of the work: FLOP of one unit of it, and how many, as numbers with their words."""

    name: str
    each: float
    counts: tuple[tuple[float, str], ...]

    @property
    def flop(self) -> float:
        return self.each * math.prod(number for number, _ in self.counts)


def work_of(model: LVLM) -> Work:
    """Counted on one photo, one question, one answer. model: on the meta device."""
    prompts, targets = [full_size.PROMPT], [flops.TARGET]
    if model.image_processor.size.longest_edge is not None:  # a canvas that grows: as large as a photo asks for
        model.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 1280 * 28 * 28}
    with flops.ShapesAlone():
        batch = model.pixels([Image.new("RGB", PHOTO)])

    def counted(job: Callable[[], object], gradients: bool = True) -> int:
        with flops.counting() as counter, torch.set_grad_enabled(gradients):
            job()
        return int(counter.get_total_flops())

    def distance(x: torch.Tensor) -> torch.Tensor:
        return model.features(batch.replace(x)).float().square().sum((1, 2))

    weights = list(model.tower.requires_grad_(True).parameters())
    descent = counted(lambda: torch.autograd.grad(distance(batch.x).sum(), weights, allow_unused=True))
    model.tower.requires_grad_(False)
    return Work(
        end_to_end=counted(
            lambda: full_size.gradient(lambda x: model.loss(batch.replace(x), prompts, targets), batch.x)
        ),
        embedding=counted(lambda: full_size.gradient(distance, batch.x)),
        forward=counted(lambda: model.features(batch), gradients=False),
        weights=descent,
        answer=counted(lambda: model.loss(batch, prompts, targets), gradients=False),
    )


def stages(work: Work, plan: Comparison) -> Iterator[Stage]:
    """What the page's commands do, in order."""
    yield trainings(work, "published")
    yield from _anchors(work, plan)
    attacked = list(_attacks(work, plan))
    yield from attacked
    yield Stage("short audits", sum(stage.flop for stage in attacked), ((SHARE, "of the attacks"),))
    cells = ((plan.samples, "questions"), (len(plan.columns), "attacks"), (len(plan.eps), "budgets"))
    rows = len(plan.rows)
    yield Stage("answers", work.answer, (*cells, (rows, "rows"), (rows, "rows' images")))
    full = ((plan.steps, "steps"), (AUDIT_SAMPLES, "questions"), (AUDIT_WORK, "gradients"))
    yield Stage("full audit of one row", work.end_to_end, full)


def trainings(work: Work, recipe: str) -> Stage:
    """Low rank and FARE by a recipe, with what is measured on the way."""
    how = load_recipe(recipe)
    return Stage(
        f"trainings, recipe {recipe}", _costs(work, how).tuning, ((TRAININGS, "trainings"), (how.steps, "steps"))
    )


def _costs(work: Work, recipe: FinetuneRecipe) -> Costs:
    return costs_of(work.end_to_end, work.answer, recipe.batch_size * work.training(recipe), recipe, (0, 0))


def _anchors(work: Work, plan: Comparison) -> Iterator[Stage]:
    learn, costs = LearnSettings(), _costs(work, load_recipe("published"))
    count = sum(row.learn is not None for row in plan.rows)
    yield Stage(
        "learned anchor", costs.anchor + costs.probes / learn.steps, ((count, "anchor"), (learn.steps, "steps"))
    )


def _attacks(work: Work, plan: Comparison) -> Iterator[Stage]:
    """Every attack on the rows that cost the same."""
    protocol = load_protocol(plan.protocol)
    alike = Counter(row.defence for row in plan.rows)
    for column in plan.columns:
        attack = make_attack(protocol.adapt(load_attack(column.attack)), steps=plan.steps)
        assert isinstance(attack, APGDAttack)
        task = make_task(column.task, protocol)
        assert isinstance(task, TextTask)
        step = work.end_to_end if attack.reads_prompt else work.embedding
        named = attack.stage_names(task.kind)
        runs = (len(named), "stages") if named else (attack.restarts, "restart")
        for defence, rows in alike.items():
            each, on = float(step), ""
            if defence is not None:
                made = find_defence(defence)
                assert isinstance(made, CSR | TTC)
                # two looks and a gradient a step, and one more gradient at most, each draw anew
                each = (EOT_DRAWS if made.random else 1) * (step + (made.steps + 2) * work.embedding)
                on = f" on {defence}"
            counts = (
                runs,
                (plan.steps, "steps"),
                (plan.samples, "questions"),
                (len(plan.eps), "budgets"),
                (rows, "rows"),
            )
            yield Stage(f"{column.attack}{on}", each, counts)


def hours(flop: float) -> float:
    """On one H100 or H200 at the assumed utilisation."""
    return flop / (PEAK * UTILISATION) / 3600


def main() -> None:
    plan, kinds = load_comparison(PLAN), flops.kinds()
    works = [work_of(flops.build(kind, kinds[kind])[0]) for kind in MODELS]
    print(f"one H100 or H200: {PEAK / 1e12:.0f} TFLOP/s in bf16, utilisation {UTILISATION} (assumed)\n")
    print(f"| stage | how many | {' | '.join(f'{name}: TFLOP of one | hours' for name in MODELS.values())} |")
    print("|---|---|" + "---:|" * 4)
    both = [list(stages(work, plan)) for work in works]
    for same in zip(*both, strict=True):
        print(_line(same))
    sums = " | ".join(f"| {hours(sum(stage.flop for stage in one)):.0f}" for one in both)
    print(f"| all | {sums} |")
    print(_line([trainings(work, "scenes") for work in works]))


def _line(same: Sequence[Stage]) -> str:
    """A stage of both models."""
    counts = " x ".join(f"{number:,g} {word}" for number, word in same[0].counts)
    cells = [f"{stage.each / 1e12:,.{2 if stage.each < 1e15 else 0}f} | {hours(stage.flop):.1f}" for stage in same]
    return f"| {same[0].name} | {counts} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
