"""A subject made of a zero-shot classifier, samples of a task and an attack, by the evaluation's own functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from attacks.classification import ce_loss, likely_wrong, targeted_dlr_loss
from attacks.losses import LossFn
from eval_tasks.audit.build import subject_of
from eval_tasks.audit.subject import Subject
from eval_tasks.crafting.classifier import attack_classifier
from eval_tasks.crafting.craft import AttackPlan, craft_unasked, embedding_distance, sample_seed
from eval_tasks.crafting.source_model import Attacker
from eval_tasks.data import Sample, chunks, image_key
from lvlm_radapt.models.base import PixelBatch
from lvlm_radapt.models.zero_shot import ZeroShot

_AIMED = ("apgd-t", "fab", "standard")  # members that try wrong classes in turn themselves
_NEAREST = ("fab", "standard")  # members whose points keep as near to the clean image as they can


def classifier_subject(
    classifier: ZeroShot,
    batch: PixelBatch,
    samples: Sequence[Sample],
    plan: AttackPlan,
    *,
    seed: int,
    batch_size: int,
    made: Tensor | None = None,
) -> Subject:
    """The subject of a white-box attack on `classifier`; the samples belong to the rows of `batch`.

    The loss is the cross entropy of the true class, whichever line attacks, or the distance of the image tokens in an
    embedding attack. The audit's own attacks are APGD with the line's settings, or the usual ones where it has no APGD.
    """
    encoder, line = classifier.encoder, plan.config.line or []
    attacker = Attacker(encoder, batch)
    names = [s.references[0] for s in samples]
    labels = torch.tensor([classifier.class_names.index(name) for name in names], device=batch.x.device)
    seeds = [sample_seed(seed, s.id) for s in samples]

    def logits(x: Tensor, index: list[int]) -> Tensor:
        # an encoder reads nothing but the pixels: the first image's particulars do for all
        return classifier.logits(attacker.seen(x, [0] * len(x)))

    def attack_loss() -> LossFn:
        return ce_loss(logits, labels) if line else embedding_distance(attacker, plan, batch_size)

    def answers(x: Tensor, index: list[int]) -> list[str]:
        return classifier.predict(attacker.seen(x, [0] * len(x)))

    def score(said: Sequence[str], index: list[int]) -> list[float]:
        return [100.0 * (name == names[i]) for name, i in zip(said, index, strict=True)]

    def craft(eps: float, steps: int) -> Tensor:
        if not line:
            own = replace(plan, eps=eps, steps=steps)
            return craft_unasked(encoder, batch, own, seeds=seeds, batch_size=batch_size).pixels
        return attack_classifier(
            classifier, batch, names, plan.config, eps=eps, steps=None if plan.steps is None else steps, seeds=seeds,
            batch_size=batch_size,
        ).pixels  # fmt: skip

    @cache
    def wrong() -> Tensor:
        with torch.no_grad():
            parts = [logits(batch.x[rows], rows) for rows in chunks(range(len(batch)), batch_size)]
        return likely_wrong(torch.cat(parts), labels)

    def towards(rank: int) -> LossFn:
        return lambda x, index: targeted_dlr_loss(logits, labels, wrong()[:, rank])(x, index)

    aims = line and len(classifier.class_names) >= 4 and not set(_AIMED) & set(line)
    return subject_of(
        encoder,
        batch.x,
        plan,
        attack_loss,
        targeted={"the likeliest wrong class": towards(0), "the next": towards(1)} if aims else {},
        answers=answers,
        score=score,
        logits=logits,
        labels=labels,
        craft=craft,
        spares=bool(line),
        nearest=keeps_near(plan),
        made=made,
        images=[image_key(s.image) for s in samples],
        seeds=seeds,
        batch_size=batch_size,
    )


def keeps_near(plan: AttackPlan) -> bool:
    """Whether some of the attack's images use as little of the budget as they can."""
    return any(member in _NEAREST for member in plan.config.line or [])
