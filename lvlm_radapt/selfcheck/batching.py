"""Several images at once against one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lvlm_radapt.models.base import LVLM
from lvlm_radapt.selfcheck.result import Check, Skipped, apart, checked, tolerance
from lvlm_radapt.selfcheck.trial import MOST_TOKENS, QUESTION, WRONG, Trial

NAMES = ("batch", "answers in a batch")
_PROMPTS = (QUESTION, "Describe the image.", f"Look at the picture again. {QUESTION}")  # of other lengths
_TARGETS = (WRONG, "a small blue circle", "yes")


@torch.no_grad()
def check_batch(trial: Trial) -> Iterator[Check]:
    model, batch, limit = trial.model, trial.three, tolerance(trial.model.dtype)
    if not isinstance(model, LVLM):
        together = model.features(batch)
        alone = torch.cat([model.features(batch[i]) for i in range(len(batch))])
        yield _compared("features", apart(together, alone), limit)
        raise Skipped("an image encoder gives no answers")
    together = model.loss(batch, _PROMPTS, _TARGETS)
    alone = torch.cat([model.loss(batch[i], [_PROMPTS[i]], [_TARGETS[i]]) for i in range(len(batch))])
    off = float(((together - alone).abs() / alone.abs().clamp(min=1)).max())
    yield _compared("losses", off, limit)
    answers = model.generate(batch, _PROMPTS, MOST_TOKENS)
    single = [model.generate(batch[i], [_PROMPTS[i]], MOST_TOKENS)[0] for i in range(len(batch))]
    equal = sum(a == b for a, b in zip(answers, single, strict=True))
    said = f"{equal} of {len(batch)} answers are those that the images get alone"
    if equal < len(batch) and model.dtype != torch.float32:
        raise Skipped(f"{said}, which half precision may do: --dtype float32 tells")
    yield checked("answers in a batch", equal == len(batch), said, equal=equal, of=len(batch))


def _compared(what: str, off: float, limit: float) -> Check:
    return checked("batch", off <= limit, f"{what} in a batch are {off:.2g} from those of single images", relative=off)
