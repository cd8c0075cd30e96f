"""Adversarial fine-tuning of a vision encoder, or of the one inside a vision-language model (FARE, TeCoA, TGA)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attacks.auto_batch import AutoBatch
from attacks.pgd import pgd
from attacks.threads import workers_of
from lvlm_radapt.defences.base import refuse_attached
from lvlm_radapt.defences.radapt.hooks import is_injected
from lvlm_radapt.models.base import PixelBatch, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.fingerprint import tower_fingerprints
from lvlm_radapt.training.data_parallel import SingleProcess
from lvlm_radapt.training.images import batches_from, batches_of, canvas_batches, load_pixels
from lvlm_radapt.training.labelled import TrainingImages
from lvlm_radapt.training.low_rank import low_rank_changes
from lvlm_radapt.training.objectives import Features, Method, Objective, Targets, objective_of
from lvlm_radapt.training.recipe import FinetuneRecipe
from lvlm_radapt.training.scopes import WHOLE, scope_parameters
from lvlm_radapt.training.state import StateFile
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.progress import Announce

SAVED_EVERY = 50  # steps; what is lost at most where one takes long
DIVERGED = 4.0  # times the first loss, smoothed
_SMOOTH = 0.8
_PROJECTION = "visual_projection.weight"


class Diverged(UserError):
    """The loss grows without bounds, or is no number any more."""


@dataclass(frozen=True)
class FinetuneSettings:
    """What decides the outcome besides the model, the images and the number of processes.

    features: what FARE compares, the image embedding (`cls`) or the patch tokens that a language model reads.
    bf16: networks run under bfloat16 autocast; weights and optimiser stay float32.
    rank: train changes of this rank of the scope's matrices (linear layers, patch embedding) and nothing else of it;
        None trains its weights.
    """

    method: Method
    recipe: FinetuneRecipe
    scope: str = WHOLE
    features: Features = "cls"
    seed: int = 0
    bf16: bool = False
    rank: int | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON values; the recipe's fields among the others, less its texts for people."""
        own = {key: value for key, value in asdict(self).items() if key != "recipe"}
        return own | {"preset": self.recipe.name} | self.recipe.model_dump(exclude={"name", "description"})


@dataclass
class Probe:
    """The mean score on the held-back images, clean and under the inner attack, after `step` steps."""

    step: int
    clean: float
    robust: float


@dataclass
class TrainingLog:
    """watched: what a probe's scores are. losses, rates: a number a step. trained: how many weights were reached by
    gradients, of `weights` in the tower (and the projection, where it is trained)."""

    watched: str
    trained: int = 0
    weights: int = 0
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)


def finetune(
    model: PixelModel,
    images: TrainingImages,
    settings: FinetuneSettings,
    *,
    state: Path | None = None,
    resume: bool = False,
    announce: Announce | None = None,
    processes: SingleProcess | None = None,
    watch: Callable[[TrainingLog], None] = lambda log: None,
) -> TrainingLog:
    """Trains the vision tower of `model` in place; every weight outside the scope stays as it is, to the bit.

    A step: PGD with a random start finds, in the eps ball around each image, what the loss is highest on; one AdamW
    step lowers the loss there. What features should be comes from the original weights, once a batch, on the clean
    images. Under the scope `tower` CLIP's image projection is trained too where the loss goes through it, as in FARE's
    code; changes of low rank are the tower's alone, and end up in its weights. The tower is trained in float32,
    whatever the rest is in, and given back in its own precision.

    state: a file that what is done is saved to every `SAVED_EVERY` steps (but not more often than every few seconds),
        and left there. With `resume` training goes on from it, where it is there, and ends at the same weights to the
        bit as if it had not been stopped (on one CPU thread). One begun with another number of threads is refused.
    processes: those that share each batch; the weights they end at are the same up to rounding.
    watch: called with the log at the beginning and after every step.

    Raises:
        UserError: a model that the method or the scope is not made for, or with R-Adapt in it; too few images for
            a batch; a batch that the processes cannot share evenly; a state that is there and not to be resumed, of
            other settings, or damaged; a loss that grows without bounds or is not finite (the state is removed then).
    """
    processes = SingleProcess() if processes is None else processes
    recipe = settings.recipe
    refuse_attached(model, "fine-tuning it")
    if any(parameter.is_meta for parameter in find_tower(model.hf).module.parameters()):
        raise UserError(f"{model.name}: its vision tower does not fit into memory: use --quantize 4bit or a larger GPU")
    if is_injected(model.hf):
        raise UserError(f"{model.name} has R-Adapt in it: fine-tune its base model, then robustify that")
    if recipe.batch_size % processes.size:
        raise UserError(f"a batch of {recipe.batch_size} does not divide among {processes.size} processes: change it")
    objective = objective_of(
        settings.method, model, features=settings.features, class_names=images.names, templates=recipe.templates
    )
    batches_of(model, images.files, recipe.batch_size, seed=settings.seed, epoch=0)  # too few images are told now
    precision = find_tower(model.hf).dtype
    (model.hf if isinstance(model, CLIPEncoder) else model.tower).float()
    fingerprint = tower_fingerprints(model.tower, ["float32"])["float32"]
    origin = {"model": model.label, "tower": fingerprint, "images": images.digest}
    file = StateFile(state, settings.plain() | origin, writes=processes.rank == 0)
    try:
        with _trained(model, settings) as weights, file:
            work = Work(model, objective, images, settings, processes, weights)
            file.resume(work.restore, resume=resume)
            log = work.log
            advance = announce("fine-tuning", recipe.steps) if announce else lambda done, what: None
            batches = batches_from(model, images.files, recipe.batch_size, seed=settings.seed, skip=len(log.losses))
            if not log.probes:
                log.probes.append(work.probe())
            advance(len(log.losses), "")
            watch(log)
            for files, clean in work.loaded(itertools.islice(batches, recipe.steps - len(log.losses))):
                work.step(files, clean)
                done = len(log.losses)
                if done % recipe.probe_every == 0 or done == recipe.steps:
                    log.probes.append(work.probe())
                if processes.rank == 0 and (done % SAVED_EVERY == 0 or done == recipe.steps):
                    file.note(work.saved())
                watch(log)
                last = log.probes[-1]
                advance(1, f"loss {log.losses[-1]:.4g}, held back: clean {last.clean:.3f} attacked {last.robust:.3f}")
    except Diverged:
        file.remove()  # going on from there would end here again
        raise
    (model.hf if isinstance(model, CLIPEncoder) else model.tower).to(precision)
    model.hf.requires_grad_(False)
    return log


def rate_at(recipe: FinetuneRecipe, step: int) -> float:
    """The learning rate of step 0, 1, ...: a line up to `lr` over the warm-up, then half a cosine towards 0."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


class _Weights(NamedTuple):
    trained: dict[str, nn.Parameter]
    all: int
    """How many numbers the tower has in its weights, and the projection where it is trained."""


@contextmanager
def _trained(model: PixelModel, settings: FinetuneSettings) -> Iterator[_Weights]:
    tower = find_tower(model.hf)
    names = scope_parameters(tower, settings.scope)
    own = dict(tower.module.named_parameters())
    count = sum(weight.numel() for weight in own.values())
    if settings.rank is not None:
        with low_rank_changes(tower.module, names, settings.rank, seed=settings.seed) as factors:
            yield _Weights(factors, count)
        return
    chosen = {name: own[name] for name in names}
    projected = settings.method != "fare" or settings.features == "cls"
    if settings.scope == WHOLE and projected and hasattr(model.hf, "visual_projection"):
        chosen[_PROJECTION] = model.hf.visual_projection.weight
        count += chosen[_PROJECTION].numel()
    yield _Weights(chosen, count)


class Work:
    """A model in training: its weights, optimiser and log."""

    def __init__(
        self,
        model: PixelModel,
        objective: Objective,
        images: TrainingImages,
        settings: FinetuneSettings,
        processes: SingleProcess,
        weights: _Weights,
    ) -> None:
        self._model, self._objective, self._images, self._processes = model, objective, images, processes
        self._settings, self._recipe = settings, settings.recipe
        self._trained = weights.trained
        self._original = {name: weight.detach().clone() for name, weight in self._trained.items()}
        self._optimiser = torch.optim.AdamW(
            list(self._trained.values()), lr=self._recipe.lr, weight_decay=self._recipe.weight_decay
        )
        self.log = TrainingLog(objective.watched, weights=weights.all)
        self._watched: list[tuple[PixelBatch, Targets, list[int]]] | None = None
        self._smooth: float | None = None
        self._parts = AutoBatch(last_resort=model.recompute_activations)

    def loaded(self, batches: Iterator[list[Path]]) -> Iterator[tuple[list[Path], PixelBatch]]:
        """Of batch after batch this process's share: its files and their pixels, read while the one before is
        trained on."""
        rank, size = self._processes.rank, self._processes.size
        with ThreadPoolExecutor(1, "images") as reader:
            waiting: tuple[list[Path], Future[PixelBatch]] | None = None
            for whole in batches:
                files = whole[rank::size]
                coming = files, reader.submit(load_pixels, self._model, files)
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                waiting = coming
            if waiting is not None:
                yield waiting[0], waiting[1].result()

    def step(self, files: Sequence[Path], clean: PixelBatch) -> None:
        """One step on this process's share of a batch."""
        with self._model.naming_size(clean):
            self._step(files, clean)

    def _step(self, files: Sequence[Path], clean: PixelBatch) -> None:
        number = len(self.log.losses)
        targets = self._targets(clean, files)
        # a seed of its own for every image of every step, whatever process it falls to
        first = (self._settings.seed * self._recipe.steps + number) * self._recipe.batch_size
        mine = range(self._processes.rank, self._recipe.batch_size, self._processes.size)
        adversarial = clean.replace(self._attacked(clean, targets, [first + i for i in mine]))
        self._train(True)
        weights = list(self._trained.values())
        loss = self._descend(adversarial, clean, targets, weights)
        value = self._processes.mean(loss, weights)
        self._check(value, number)
        if not self.log.trained:
            self.log.trained = sum(weight.numel() for weight in weights if weight.grad is not None)
        rate = rate_at(self._recipe, number)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.log.losses.append(value)
        self.log.rates.append(rate)

    def _descend(
        self, adversarial: PixelBatch, clean: PixelBatch, targets: Targets, weights: Sequence[nn.Parameter]
    ) -> Tensor:
        """The mean loss, with its gradient in the weights. A batch that does not fit into memory is taken in parts."""

        def piece(rows: slice) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            index = list(range(len(clean)))[rows]
            with self._precision():
                own = tuple(one[index] for one in targets)
                loss = self._objective.loss(adversarial[index], clean[index], own).sum() / len(clean)
            # a part that fails leaves nothing in the weights
            return loss.detach(), torch.autograd.grad(loss, weights, allow_unused=True)

        losses, gradients = zip(*self._parts.run(piece, len(clean)), strict=True)
        for weight, parts in zip(weights, zip(*gradients, strict=True), strict=True):
            reached = [part for part in parts if part is not None]
            weight.grad = torch.stack(reached).sum(0) if reached else None
        return torch.stack(losses).sum()

    def probe(self) -> Probe:
        """How the model does on the held-back images now. UserError when it is no number."""
        if self._watched is None:
            self._watched = list(self._held_back())
        clean, robust = [], []
        for batch, targets, seeds in self._watched:
            attacked = batch.replace(self._attacked(batch, targets, seeds))
            with torch.no_grad(), self._precision():
                clean.append(self._objective.score(batch, targets).float())
                robust.append(self._objective.score(attacked, targets).float())
        step = len(self.log.losses)
        found = Probe(step, float(torch.cat(clean).mean()), float(torch.cat(robust).mean()))
        if not math.isfinite(found.clean + found.robust):
            self._diverged(f"the model gives no finite features after step {step}")
        return found

    def saved(self) -> dict[str, Any]:
        """All of it as it is now, on the CPU."""
        weights = {name: weight.detach().cpu().clone() for name, weight in self._trained.items()}
        optimiser = self._optimiser.state_dict()
        moments = {
            number: {key: value.cpu().clone() if isinstance(value, Tensor) else value for key, value in one.items()}
            for number, one in optimiser["state"].items()
        }
        return {
            "weights": weights,
            "optimiser": optimiser | {"state": moments},
            "log": asdict(self.log),
            "smooth": self._smooth,
        }

    def restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, weight in self._trained.items():
                weight.copy_(state["weights"][name])
        self._optimiser.load_state_dict(state["optimiser"])
        self.log = TrainingLog(**state["log"] | {"probes": [Probe(**one) for one in state["log"]["probes"]]})
        self._smooth = state["smooth"]

    def _held_back(self) -> Iterator[tuple[PixelBatch, Targets, list[int]]]:
        number = 0
        for files in canvas_batches(self._model, self._images.watched, self._recipe.batch_size):
            batch = load_pixels(self._model, files)
            # negative ones are no training image's
            yield batch, self._targets(batch, files), [-1 - number - i for i in range(len(files))]
            number += len(files)

    def _targets(self, batch: PixelBatch, files: Sequence[Path]) -> Targets:
        class_of = self._images.class_of
        classes = torch.tensor([class_of[f] for f in files], device=batch.x.device) if class_of else None
        with self._with_original(), self._precision():
            return self._objective.targets(batch, classes)

    def _attacked(self, batch: PixelBatch, targets: Targets, seeds: list[int]) -> Tensor:
        """[B, 3, H, W] the images that the loss is highest on, of those that PGD comes by."""
        self._train(False)

        def loss(x: Tensor, index: list[int]) -> Tensor:
            with self._precision():
                return self._objective.attacked(batch[index].replace(x), tuple(one[index] for one in targets))

        recipe = self._recipe
        found = pgd(
            loss,
            batch.x,
            eps=recipe.eps,
            step_size=recipe.pgd_step,
            steps=recipe.pgd_steps,
            seed=seeds,
            workers=workers_of(batch.x),
        )
        return found.x_adv

    def _train(self, wanted: bool) -> None:
        # not during the attack: it asks for the gradient of the pixels alone
        for weight in self._trained.values():
            weight.requires_grad_(wanted)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._model.device.type, torch.bfloat16, enabled=self._settings.bf16)

    @contextmanager
    def _with_original(self) -> Iterator[None]:
        """Inside, the model has its original weights; no graph may be waiting for its backward pass."""
        now = {name: weight.data for name, weight in self._trained.items()}
        try:
            for name, weight in self._trained.items():
                weight.data = self._original[name]
            yield
        finally:
            for name, weight in self._trained.items():
                weight.data = now[name]

    def _check(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            self._diverged(f"the loss is {loss} at step {step + 1}")
        self._smooth = loss if self._smooth is None else _SMOOTH * self._smooth + (1 - _SMOOTH) * loss
        first = self.log.losses[0] if self.log.losses else loss
        if self._smooth > DIVERGED * first:
            self._diverged(f"the loss has grown from {first:.4g} to {self._smooth:.4g} by step {step + 1}")

    def _diverged(self, what: str) -> None:
        raise Diverged(
            f"training diverges: {what}; begin anew with a lower --lr than {self._recipe.lr:g}, or a longer warm-up"
        )
