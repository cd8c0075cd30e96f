"""Captions that are wrong about a scene in exactly one thing: what tells seeing from guessing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lvlm_radapt.embedded import scenes
from lvlm_radapt.embedded.scenes import Scene

KINDS = ("colour", "shape", "size", "background", "word", "order")


def describe(scene: Scene, wording: int | None) -> str:
    """The canonical caption, or the paraphrase number `wording` (0, 1, ...)."""
    return scenes.caption(scene) if wording is None else scenes.paraphrases(scene, wording + 1)[wording]


def altered_captions(
    scene: Scene, count: int, rng: np.random.Generator, *, wording: int | None = None, held_out: bool = True
) -> list[str]:
    """`count` (15 at most) distinct captions in that wording, each false about `scene` in one attribute.

    The kinds of change come equally often where the scene allows them; an order is only changed in the
    canonical wording (not every paraphrase tells one). A sign put into a scene without one may bring another
    paraphrase of the rest with it. held_out: False keeps out captions with a pair of
    colour and shape that no training scene has: a text encoder would learn that such a pair is always wrong.
    """
    kinds = [k for k in KINDS if k != "order" or (wording is None and len(scene.things) > 1)]
    found = [describe(scene, wording)]
    while len(found) <= count:
        other = _altered(scene, kinds[int(rng.integers(len(kinds)))], rng)
        if other.held_out and not held_out:
            continue
        text = describe(other, wording)
        if text not in found:
            found.append(text)
    return found[1:]


def _altered(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    def other(values: Any, current: str | None) -> str:
        left = [v for v in values if v != current]
        return left[int(rng.integers(len(left)))]

    if kind == "background":
        return replace(scene, background=other(scenes.BACKGROUNDS, scene.background))
    if kind == "word":
        return replace(scene, word=other(scenes.WORDS, scene.word))
    things = list(scene.things)
    if kind == "order":
        return replace(scene, things=tuple(things[i] for i in rng.permutation(len(things))))
    at = int(rng.integers(len(things)))
    thing = things[at]
    if kind == "colour":
        things[at] = replace(thing, colour=other(scenes.COLOURS, thing.colour))
    elif kind == "shape":
        things[at] = replace(thing, shape=other(scenes.SHAPES, thing.shape))
    else:
        things[at] = replace(thing, size=other(scenes.SIZES, thing.size))
    return replace(scene, things=tuple(things))
