"""The learned anchor (R-Adapt+, arXiv 2603.12799): the white one, optimised on adversarial images and nothing else.

    minimise over A (and alpha)   mean of  d( f_A(x_adv), f(x) ),    x_adv = PGD on the same distance through f_A

f is the undefended model, f_A the defended one, d the squared distance of its image tokens: those the language model
reads, after the projector or merger, or an image encoder's pooled embedding. This is FARE's loss (Schlarmann et al.
2024, arXiv 2402.12336) with the anchor in the weights' place: no labels, no texts.

The anchor keeps the white one's shape. On a fixed grid (CLIP, SigLIP) it has a row per token. For Qwen2-VL and 2.5 it
is one vector: without absolute positions all patches of a uniform image answer alike, whatever the image's shape, so a
row per place would be a statement about places that the tower itself does not make, and would not fold into weights.
Qwen3-VL adds positions: its anchor has the rows of the usual grid and is interpolated to each image's.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks.auto_batch import AutoBatch
from attacks.eps import eps_text
from attacks.losses import LossFn, embedding_loss
from attacks.pgd import pgd
from attacks.threads import workers_of
from lvlm_radapt.defences.base import refuse_attached
from lvlm_radapt.defences.radapt.anchor import Anchor, white_anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import inject, injected_mix, is_injected, remove
from lvlm_radapt.models.base import LVLM, PixelBatch, PixelModel
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.towers.fingerprint import tower_fingerprints
from lvlm_radapt.training.images import batches_from, batches_of, canvas_batches, images_digest, load_pixels
from lvlm_radapt.training.state import StateFile
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.progress import Announce

LEARNED = "learned.json"
"""The note of how an anchor was learned, in the folder it is in."""
_PROBED = 32  # images held back at most; a 16th of all, but two
PROBES = 8  # how often they are looked at after the start
PROBE_STEPS = 10  # of PGD then
_DIVERGED = 1.5  # times the loss at the start; of unrelated features it is not much more than 2 in all
_LOOKED_BACK = 10  # steps whose mean loss is compared with it


@dataclass(frozen=True)
class LearnSettings:
    """How an anchor is learned.

    eps: Linf budget of the adversarial images, in [0, 1] pixel units. steps: updates of the anchor. batch: images of
    one. attack_steps: PGD steps behind each, of 2.5 eps / attack_steps. rate: step of Adam at the beginning, in units
    of the white anchor's root mean square (for alpha, of 1); it falls to 0 along a half cosine. learn_alpha: alpha
    too. seed: draws batches and starting noise.
    """

    eps: float = 4 / 255
    steps: int = 200
    batch: int = 32
    attack_steps: int = 5
    rate: float = 0.05
    learn_alpha: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("eps", "rate"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0 or (name == "eps" and value > 1):
                raise UserError(f"{name} of the learned anchor is {value:g}: give a number above 0, eps at most 1")
        for name in ("steps", "batch", "attack_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name.replace('_', ' ')} of the learned anchor must be at least 1")


@dataclass(frozen=True)
class Probe:
    """How far the defended model's features of held-back images are from the undefended model's of the clean ones:
    the mean squared distance, in units of the mean squared distance of those features from their own mean (0: the same,
    1: as far as one constant answer for all tokens). `clean`: unattacked images, `robust`: attacked ones (PGD)."""

    step: int
    clean: float
    robust: float


@dataclass(frozen=True, eq=False)
class LearnedAnchor:
    """anchor, alpha: what was learned. history: the training loss of each step, in `Probe`'s unit. probes: before the
    first step, on the way, after the last. undefended: `Probe.robust` of the undefended model under the same attack.
    images: how many there were to learn from; digest: which (sha256)."""

    anchor: Anchor
    alpha: float
    history: tuple[float, ...]
    probes: tuple[Probe, ...]
    undefended: float
    images: int
    digest: str


def learn_anchor(
    model: PixelModel,
    images: Sequence[Path],
    config: RAdaptConfig,
    settings: LearnSettings | None = None,
    *,
    state: Path | None = None,
    resume: bool = False,
    save_every: float = 10.0,
    announce: Announce | None = None,
) -> LearnedAnchor:
    """Learns an anchor for `model`, which is undefended before and after.

    Weights are frozen; gradients reach the anchor (and alpha) alone. On a CPU in float32 the result is a function of
    the arguments and the number of threads, to the bit, also across interruptions.

    Args:
        images: files to learn from (`image_files`); the first of them, at most 32, are held back for the probe.
        config: filter, mix, and the alpha to begin with.
        settings: `LearnSettings()` by default.
        state: a file to save what was done to, every `save_every` seconds and when a signal ends the work; whoever
            keeps the result removes it.
        resume: goes on from `state`, if it is there.

    Raises:
        UserError: too few images for a batch, alpha 0, a model in float16 or with a defence in it, a loss that
            diverges, a state file that is there unasked, damaged, or of other settings, or that cannot be written.
    """
    settings = LearnSettings() if settings is None else settings
    refuse_attached(model, "learning an anchor")
    if is_injected(model.hf):
        raise UserError(f"{model.name} has R-Adapt in it already: learn an anchor for the undefended model")
    if config.alpha == 0:
        raise UserError("alpha is 0, which leaves the anchor out: give another one to learn an anchor")
    if model.dtype == torch.float16:
        raise UserError(
            "an anchor is learned in float32 or bfloat16, float16 has too small a range: choose one of them"
        )
    held = list(images[: min(_PROBED, max(2, len(images) // 16))])
    files = list(images[len(held) :])
    batches_of(model, files, settings.batch, seed=settings.seed, epoch=0)  # too few images are told first of all
    digest = images_digest(images)
    kept = StateFile(state, _identity(model, config, settings, digest), every=save_every)
    with kept:
        kept.begin(resume=resume)  # a mistake there shows before anything is measured
        start = white_anchor(model.hf, model.image_mean, model.image_std)
        inject(model.hf, config, start)
        try:
            watched = [load_pixels(model, f) for f in canvas_batches(model, held, settings.batch)]
            work = _Learning(model, settings, watched)
            kept.resume(work.restore, resume=resume)
            _work_on(work, files, kept, announce)
            anchor = dataclasses.replace(start, values=work.values.detach().cpu())
            alpha = float(work.alpha.detach()) if settings.learn_alpha else config.alpha
        finally:
            remove(model.hf)
    return LearnedAnchor(anchor, alpha, tuple(work.history), tuple(work.probes), work.undefended, len(images), digest)


def _work_on(work: _Learning, files: Sequence[Path], kept: StateFile, announce: Announce | None) -> None:
    """From the step `work` is at to the last."""
    settings = work.settings
    advance = announce("learning the anchor", settings.steps) if announce else None
    if advance:
        advance(work.step, "")
    marks = {round(i * settings.steps / PROBES) for i in range(PROBES)}
    batches = batches_from(work.model, files, settings.batch, seed=settings.seed, skip=work.step)
    while work.step < settings.steps:
        if work.step in marks:
            work.probe()
        try:
            work.learn(load_pixels(work.model, next(batches)))
        except _Diverged as found:
            kept.remove()
            raise UserError(
                f"learning the anchor diverges, {found}, at step {work.step}: nothing is kept; lower --learn-rate "
                f"(now {settings.rate:g}) or --learn-eps"
            ) from found
        kept.note(work.state())
        if advance:
            advance(1, work.told())
    work.probe()


class _Diverged(Exception):
    """What is wrong with the loss."""


class _Learning:
    """The anchor of a defended model while it is learned, and all that the next step depends on."""

    def __init__(self, model: PixelModel, settings: LearnSettings, held: Sequence[PixelBatch]) -> None:
        self.model = model
        self.settings = settings
        self.held = held
        self.step = 0
        self.history: list[float] = []
        self.probes: list[Probe] = []
        self._pieces = AutoBatch(last_resort=model.recompute_activations)
        mix: Any = injected_mix(model.hf)
        size = float(mix.anchor.square().mean().sqrt())
        self.values = mix.anchor = mix.anchor.detach().clone().requires_grad_()
        self.alpha = torch.tensor(mix.alpha, device=self.values.device)
        # Adam's step is its rate whatever the gradient's scale
        self._learned, self._rates = [self.values], [settings.rate * (size or 1.0)]
        if settings.learn_alpha:
            mix.alpha = self.alpha.requires_grad_()
            self._learned.append(self.alpha)
            self._rates.append(settings.rate)
        self._adam = torch.optim.Adam([{"params": [one]} for one in self._learned])
        clean = [self._clean(batch) for batch in held]
        tokens = torch.cat([one.float().flatten(0, 1) for one in clean])
        self._unit = max(float((tokens - tokens.mean(0)).square().sum(1).mean()), 1e-12)
        with model.undefended():
            self.undefended = self._attacked()

    def learn(self, batch: PixelBatch) -> None:
        """One step on a batch; `_Diverged` where it leads nowhere."""
        with self.model.naming_size(batch):
            self._learn(batch)

    def _learn(self, batch: PixelBatch) -> None:
        own = self.settings
        distance = self._distance(batch)
        seeds = [(own.seed * (own.steps + 1) + self.step + 1) * own.batch + i for i in range(len(batch))]
        attacked, failed = self._attack(distance, batch, own.attack_steps, seeds)
        if failed:
            raise _Diverged(f"as an attack's {failed}")

        def piece(rows: slice) -> tuple[float, tuple[Tensor, ...]]:
            index = list(range(len(batch)))[rows]
            loss = distance(attacked[rows], index).sum() / (len(batch) * self._unit)
            # of these alone: nothing can gather on the model's weights
            return float(loss.detach()), torch.autograd.grad(loss, self._learned)

        losses, slopes = zip(*self._pieces.run(piece, len(batch)), strict=True)
        falling = 0.5 * (1 + math.cos(math.pi * self.step / own.steps))
        for one, group, rate, parts in zip(
            self._learned, self._adam.param_groups, self._rates, zip(*slopes, strict=True), strict=True
        ):
            one.grad = torch.stack(parts).sum(0)
            group["lr"] = rate * falling
        self._note(sum(losses), all(bool(one.grad.isfinite().all()) for one in self._learned if one.grad is not None))
        self._adam.step()
        self.step += 1

    def probe(self) -> None:
        """Looks at the held-back images, once a step."""
        if self.probes and self.probes[-1].step == self.step:
            return
        with torch.no_grad():
            clean = sum(float(self._distance(batch)(batch.x, list(range(len(batch)))).sum()) for batch in self.held)
        self.probes.append(Probe(self.step, clean / (self._count * self._unit), self._attacked()))

    def told(self) -> str:
        """The last loss and probe in words."""
        seen = self.probes[-1]
        return f"loss {self.history[-1]:.3f}, held-back images clean {seen.clean:.3f}, attacked {seen.robust:.3f}"

    def state(self) -> dict[str, Any]:
        """A copy of what `restore` takes."""
        return {
            "step": self.step,
            "values": self.values.detach().clone(),
            "alpha": self.alpha.detach().clone(),
            "adam": copy.deepcopy(self._adam.state_dict()),
            "history": list(self.history),
            "probes": [dataclasses.astuple(probe) for probe in self.probes],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken, of the same settings."""
        with torch.no_grad():
            self.values.copy_(state["values"])
            self.alpha.copy_(state["alpha"])
        self._adam.load_state_dict(state["adam"])
        self.step, self.history = state["step"], list(state["history"])
        self.probes = [Probe(*probe) for probe in state["probes"]]

    @property
    def _count(self) -> int:
        return sum(map(len, self.held))

    def _note(self, loss: float, sound: bool) -> None:
        self.history.append(loss)
        if not math.isfinite(loss) or not sound:
            raise _Diverged("with a loss or gradient that is no number")
        last = self.history[-_LOOKED_BACK:]
        before, now = max(self.history[0], self.probes[0].robust), sum(last) / len(last)
        if len(last) == _LOOKED_BACK and now > _DIVERGED * before:
            raise _Diverged(f"with a loss of {now:.3g} after {before:.3g} in the beginning")

    def _clean(self, batch: PixelBatch) -> Tensor:
        """The undefended model's features of the clean images."""

        def piece(rows: slice) -> Tensor:
            return read_features(self.model, batch[rows])

        with torch.no_grad(), self.model.undefended():
            return torch.cat(self._pieces.run(piece, len(batch)))

    def _distance(self, batch: PixelBatch) -> LossFn:
        """Squared distance of the model's features of images in the batch's place from the original ones, by image."""

        def features(x: Tensor, index: list[int]) -> Tensor:
            return read_features(self.model, batch[index].replace(x))

        return embedding_loss(features, self._clean(batch), distance="l2")

    def _attack(self, distance: LossFn, batch: PixelBatch, steps: int, seeds: list[int]) -> tuple[Tensor, str]:
        """The attacked images, and what went wrong with one of them, if anything."""
        eps = self.settings.eps
        found = pgd(
            distance,
            batch.x,
            eps=eps,
            step_size=2.5 * eps / steps,
            steps=steps,
            seed=seeds,
            workers=workers_of(batch.x),
        )
        return found.x_adv, next(filter(None, found.failed), "") or ""

    def _attacked(self) -> float:
        """`Probe.robust` of the model as it is now."""
        total = 0.0
        for number, batch in enumerate(self.held):
            distance, index = self._distance(batch), list(range(len(batch)))
            # the same noise each time: probes differ by the anchor alone
            seeds = [-1 - number * self.settings.batch - i for i in index]
            attacked, _ = self._attack(distance, batch, PROBE_STEPS, seeds)
            with torch.no_grad():
                total += float(distance(attacked, index).sum())
        return total / (self._count * self._unit)


def origin_of(found: LearnedAnchor, settings: LearnSettings) -> str:
    """What an anchor was learned from, in a line."""
    return (
        f"{found.images} images ({found.digest[:8]}), eps {eps_text(settings.eps)}, {settings.steps} steps, "
        f"seed {settings.seed}"
    )


def notes_of(found: LearnedAnchor, settings: LearnSettings) -> str:
    """How the anchor was learned and how that went, as JSON text."""
    told = {
        "images": found.images,
        "images_sha256": found.digest,
        "settings": dataclasses.asdict(settings),
        "alpha": found.alpha,
        "loss": found.history,
        "probes": [dataclasses.asdict(probe) for probe in found.probes],
        "undefended_attacked": found.undefended,
    }
    return json.dumps(told, indent=1) + "\n"


def read_features(model: PixelModel, batch: PixelBatch) -> Tensor:
    """[B, T, D] what of an image is read on: the tokens a language model gets; an encoder's pooled embedding (T = 1),
    or of a bare tower, which has none, its patch tokens."""
    if isinstance(model, LVLM):
        return model.features(batch, at="projector")
    if isinstance(model, CLIPEncoder) and model.embeds_images:
        return model.image_features(batch).unsqueeze(1)
    return model.features(batch)


def _identity(model: PixelModel, config: RAdaptConfig, settings: LearnSettings, digest: str) -> dict[str, Any]:
    """All that the result depends on, but for the number of threads, which `StateFile` adds."""
    return {
        "tower": tower_fingerprints(model.tower, ["float32"])["float32"],
        "dtype": str(model.dtype),
        "geometry": model.geometry,
        "images": digest,
        **{f"config {name}": value for name, value in config.to_dict().items()},
        **dataclasses.asdict(settings),
    }
