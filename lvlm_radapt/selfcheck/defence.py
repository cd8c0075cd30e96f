"""Filter and anchor, in the place where they belong, against plain forms of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import injected_anchor, is_injected
from lvlm_radapt.experiments.models import defended
from lvlm_radapt.selfcheck.result import Check, Skipped, apart, checked, tolerance
from lvlm_radapt.selfcheck.trial import Trial, inputs_of, outputs_of
from lvlm_radapt.towers import find_tower

NAMES = ("filter", "anchor", "taken out again")


@torch.no_grad()
def check_defence(trial: Trial) -> Iterator[Check]:
    """Of the model's own defence, or of the usual one, which is put in for this and taken out again."""
    model, own = trial.model, is_injected(trial.model.hf)
    with model.undefended():
        before = model.features(trial.batch)
    with nullcontext() if own else defended(model, RAdaptConfig()):
        config, limit = model.radapt or RAdaptConfig(), tolerance(model.dtype)
        yield _filter(trial, config, limit)
        yield _anchor(trial, config, limit)
        with model.undefended():
            asleep = model.features(trial.batch)
    after = asleep if own else model.features(trial.batch)
    off = float((after - before).abs().max())
    how = "switched off" if own else "removed"
    yield checked(
        "taken out again", off == 0, f"with the defence {how}, features differ by {off:g} from before", largest=off
    )


def _filter(trial: Trial, config: RAdaptConfig, limit: float) -> Check:
    """What the tower takes in, against the image times the response in Fourier space."""
    if config.cutoff is None:
        return Check("filter", "skipped", "the model's own defence has none")
    tower = find_tower(trial.model.hf)
    with inputs_of(tower.module) as seen:
        trial.model.features(trial.batch)
    args, kwargs = seen[-1]
    found = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.is_floating_point())
    values = trial.model.pixel_values(trial.batch)
    if values.ndim >= 4:  # images; the other families take rows of patches
        expected = fourier_filtered(values, config)
    else:
        expected = trial.model.pixel_values(trial.batch.replace(fourier_filtered(trial.batch.x, config)))
    off = apart(found.reshape(expected.shape), expected)
    said = f"what the vision tower is given is {off:.2g} of its spread from the plain product in Fourier space"
    return checked("filter", off <= limit, said, relative=off, cutoff=config.cutoff)


def _anchor(trial: Trial, config: RAdaptConfig, limit: float) -> Check:
    """The first attention's output after the mix, against the formula over what it was before."""
    if config.alpha == 0:
        return Check("anchor", "skipped", "the model's own defence has none")
    tower = find_tower(trial.model.hf)
    with (
        inputs_of(tower.module) as seen,
        outputs_of(tower.first_attention, first=True) as plain,
        outputs_of(tower.first_attention, first=False) as mixed,
    ):
        trial.model.features(trial.batch)
    args, kwargs = seen[-1]
    high, wide = tower.grid(args, kwargs)

    def rows(output: Tensor) -> Tensor:
        """Without padding, which nothing reads."""
        return output[:, : tower.prefix_tokens + high * wide] if output.ndim == 3 else output

    r = rows(plain[-1]).double()
    if config.anchor == "white":
        with trial.model.undefended(), outputs_of(tower.first_attention, first=True) as white:
            trial.model.features(trial.batch.replace(torch.ones_like(trial.batch.x)))
        a = rows(white[-1]).double()
    else:
        anchor = injected_anchor(trial.model.hf)
        if anchor is None:
            raise Skipped("the defence keeps no anchor")
        placed = anchor.resized((high, wide)).values.to(r)
        order = tower.order(args, kwargs)
        a = placed if order is None or len(placed) == 1 else placed[order.to(placed.device)]
    expected = config.alpha * a + (r if config.mix == "add" else (1 - config.alpha) * r)
    off = apart(rows(mixed[-1]), expected)
    kind = f"{config.anchor} anchor, alpha {config.alpha:g}"
    said = f"the first attention's output is {off:.2g} of its spread from the formula ({kind}, {config.mix})"
    return checked("anchor", off <= limit, said, relative=off, alpha=config.alpha)


def fourier_filtered(images: Tensor, config: RAdaptConfig) -> Tensor:
    """Images [..., H, W] low-passed as the paper writes it: each axis continued past its edge, transformed, multiplied
    by exp(-D^2 / (2 cutoff^2)), and transformed back."""
    if config.cutoff is None:
        return images
    out = images.double()
    for axis in (-2, -1):
        size = out.shape[axis]
        whole = out
        if config.boundary == "reflect" and size > 1:
            whole = torch.cat([out, out.narrow(axis, 1, max(size - 2, 0)).flip(axis)], axis)
        distance = torch.fft.fftfreq(whole.shape[axis], device=out.device, dtype=torch.float64)
        distance = distance * (224 if config.cutoff_unit == "px224" else size)
        shape = [1] * out.ndim
        shape[axis] = -1
        response = torch.exp(-(distance**2) / (2 * config.cutoff**2)).reshape(shape)
        out = torch.fft.ifft(torch.fft.fft(whole, dim=axis) * response, dim=axis).real.narrow(axis, 0, size)
    return out.to(images.dtype)
