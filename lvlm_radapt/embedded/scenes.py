"""Procedural scenes: what the embedded models see, describe and answer questions about.

A scene is one to three coloured shapes of two sizes on a textured background, sometimes with a sign that shows
a word. A `Scene` is plain data; `render` draws it, `caption`, `paraphrases` and `questions` say what is in it.
Everything is a pure function of the scene (and a seed), so a data set is repeated from its seed alone.

Splits are disjoint by content: a scene's words (background, shapes left to right, sign) hash to exactly one of
train, validation and test. Some (colour, shape) pairs never occur in a training scene at all (`HELD_OUT`). Shifted
scenes are unlike all that the embedded models were trained on: each has a held-out pair, on a background of `PATTERNS`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from PIL import Image, ImageFont

Split = Literal["train", "validation", "test"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (244, 208, 40),
    "purple": (138, 54, 176),
    "orange": (242, 128, 30),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (236, 236, 236),
    "gray": (140, 140, 140),
    "black": (28, 28, 28),
    "brown": (112, 76, 48),
    "pink": (244, 170, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES: dict[str, tuple[float, float]] = {"small": (8.5, 10.5), "large": (16.0, 19.0)}  # radius in pixels
WORDS = (
    "pig", "dog", "cat", "sun", "car", "bus", "hat", "cup", "key", "map", "box", "fox",
    "owl", "bee", "ant", "jam", "pen", "web", "zoo", "ice", "gym", "oak", "van", "yak",
)  # fmt: skip
HELD_OUT = frozenset({("red", "star"), ("blue", "ring"), ("yellow", "square"), ("purple", "triangle")})
PATTERNS = ("stripes", "checks", "dots", "grid")
"""Textures that no training scene has; all others are soft waves."""
SQUARE = (112, 112)
MIXED = ((112, 112), (112, 168), (140, 112))  # (height, width); multiples of 28, so Qwen's grids are exact
QUESTION_TYPES = ("shape", "colour", "count", "size", "background", "word", "yesno")

_SIGN = (46, 26)  # width, height in pixels
_MIN_DX = 10  # between the centres of neighbours, so that "left of" is never a matter of taste


@dataclass(frozen=True)
class Thing:
    """One shape; `x`, `y` is its centre and `radius` its size, in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """`things` are sorted left to right; `sign` is the top left corner of the sign, if there is a word."""

    height: int
    width: int
    background: str
    things: tuple[Thing, ...]
    word: str | None
    sign: tuple[int, int] | None
    texture: int
    pattern: str = "waves"

    @property
    def content(self) -> str:
        """What the scene shows, without where exactly: scenes of equal content are in the same split."""
        return caption(self)

    @property
    def held_out(self) -> bool:
        """True if a (colour, shape) pair occurs that no training scene has."""
        return any((t.colour, t.shape) in HELD_OUT for t in self.things)


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str

    @property
    def is_word(self) -> bool:
        """Whether a sign is to be read."""
        return self.kind == "word"


def split_of(scene: Scene) -> Split:
    """The split a scene belongs to: 80 % train, 10 % validation, 10 % test, by a hash of its content."""
    bucket = int.from_bytes(hashlib.sha256(scene.content.encode()).digest()[:4], "big") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def sample_scene(
    split: Split, seed: int, index: int, size: tuple[int, int] = SQUARE, *, shifted: bool = False
) -> Scene:
    """Scene number `index` of a split at `size` = (height, width); the same arguments give the same scene.

    shifted: one with a held-out pair, on a background of `PATTERNS`; ValueError for the training split.
    """
    if shifted and split == "train":
        raise ValueError("no training scene is shifted: held-out pairs are kept from them")
    rng = _generator(f"{split}/{seed}/{index}", shifted)
    while True:
        scene = _draw_scene(rng, *size)
        if split_of(scene) != split or (split == "train" and scene.held_out):
            continue
        if not shifted:
            return scene
        if scene.held_out:
            return replace(scene, pattern=str(rng.choice(PATTERNS)))


def sample_single(split: Split, seed: int, index: int, colour: str, shape: str, *, shifted: bool = False) -> Scene:
    """Scene number `index` of a split that shows one large thing, of this colour and shape, on a square canvas.

    shifted: on a background of `PATTERNS`, whatever the pair.
    """
    rng = _generator(f"{split}/{seed}/{colour} {shape}/{index}", shifted)
    while True:
        word = str(rng.choice(WORDS)) if rng.random() < 0.5 else None
        background = str(rng.choice(list(BACKGROUNDS)))
        layout = _draw_layout(rng, *SQUARE, ["large"], word is not None)
        if layout is None:
            continue
        ((x, y, radius),), sign = layout
        thing = Thing(shape, colour, "large", x, y, radius)
        scene = Scene(*SQUARE, background, (thing,), word, sign, int(rng.integers(2**31)))
        if split_of(scene) == split:
            return replace(scene, pattern=str(rng.choice(PATTERNS))) if shifted else scene


def _generator(key: str, shifted: bool) -> np.random.Generator:
    digest = hashlib.sha256((f"shifted/{key}" if shifted else key).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _draw_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """One scene; what is in it is drawn before the layout is tried, so that crowded scenes are not rarer."""
    word = str(rng.choice(WORDS)) if rng.random() < 0.5 else None
    count = int(rng.integers(1, 4))
    shapes = [str(s) for s in rng.choice(SHAPES, count, replace=False)]
    colours = [str(c) for c in rng.choice(list(COLOURS), count, replace=False)]
    sizes = ["large" if rng.random() < 0.5 else "small" for _ in range(count)]
    background = str(rng.choice(list(BACKGROUNDS)))
    while True:
        layout = _draw_layout(rng, height, width, sizes, word is not None)
        if layout is None:
            continue
        spots, sign = layout
        things = [
            Thing(*what, *spot) for what, spot in zip(zip(shapes, colours, sizes, strict=True), spots, strict=True)
        ]
        things.sort(key=lambda t: t.x)
        return Scene(height, width, background, tuple(things), word, sign, int(rng.integers(2**31)))


def _draw_layout(
    rng: np.random.Generator, height: int, width: int, sizes: list[str], with_sign: bool
) -> tuple[list[tuple[float, float, float]], tuple[int, int] | None] | None:
    """Places (x, y, radius) without overlaps and the sign's corner; None when this try does not fit."""
    boxes: list[tuple[float, float, float, float]] = []  # centre x, y and half width, half height

    def place(half_w: float, half_h: float) -> tuple[float, float] | None:
        for _ in range(20):
            x = rng.uniform(half_w + 3, width - half_w - 3)
            y = rng.uniform(half_h + 3, height - half_h - 3)
            if all(abs(x - bx) > half_w + bw + 3 or abs(y - by) > half_h + bh + 3 for bx, by, bw, bh in boxes):
                boxes.append((x, y, half_w, half_h))
                return x, y
        return None

    sign = None
    if with_sign:
        corner = place(_SIGN[0] / 2, _SIGN[1] / 2)
        if corner is None:
            return None
        sign = (round(corner[0] - _SIGN[0] / 2), round(corner[1] - _SIGN[1] / 2))
    spots = []
    for size in sizes:
        radius = float(rng.uniform(*SIZES[size]))
        spot = place(radius, radius)
        if spot is None:
            return None
        spots.append((*spot, radius))
    xs = sorted(x for x, _, _ in spots)
    if any(right - left < _MIN_DX for left, right in pairwise(xs)):
        return None
    return spots, sign


# ---------------------------------------------------------------- drawing


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image of (scene.width, scene.height) pixels."""
    rng = np.random.Generator(np.random.PCG64(scene.texture))
    h, w = scene.height, scene.width
    ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
    base = np.array(BACKGROUNDS[scene.background], np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    fx, fy = rng.uniform(-0.25, 0.25, (2, 3))
    waves = sum(rng.uniform(1, 5) * np.sin(fx[i] * xs + fy[i] * ys + rng.uniform(0, 6.28)) for i in range(3))
    canvas = base + np.asarray(waves, np.float32)[..., None] + rng.normal(0, 3, (h, w, 1)).astype(np.float32)
    if scene.pattern != "waves":
        canvas += _relief(scene.pattern, xs, ys, rng)[..., None]
    for thing in scene.things:
        _paint(canvas, thing, rng)
    if scene.word is not None and scene.sign is not None:
        _paint_sign(canvas, scene.word, scene.sign, rng)
    return Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))


def _relief(pattern: str, xs: np.ndarray, ys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W]: a hard-edged pattern of `PATTERNS`, 12 to 20 levels up and down, its share of either equal."""
    period = float(rng.uniform(8, 16))
    depth = float(rng.uniform(12, 20))
    angle = float(rng.uniform(0, np.pi))
    u = (np.cos(angle) * xs + np.sin(angle) * ys) / period + rng.uniform()
    v = (-np.sin(angle) * xs + np.cos(angle) * ys) / period + rng.uniform()
    if pattern == "stripes":
        up = u % 1 < 0.5
    elif pattern == "checks":
        up = (u % 1 < 0.5) ^ (v % 1 < 0.5)
    elif pattern == "dots":
        up = np.hypot(u % 1 - 0.5, v % 1 - 0.5) < np.sqrt(0.5 / np.pi)  # a disc of half the cell's area
    else:  # grid: lines of half the area
        line = 1 - np.sqrt(0.5)
        up = (u % 1 < line) | (v % 1 < line)
    return np.where(up, depth, -depth).astype(np.float32)


def _paint(canvas: np.ndarray, thing: Thing, rng: np.random.Generator) -> None:
    h, w, _ = canvas.shape
    r = thing.radius + 2
    x0, x1 = max(0, int(thing.x - r)), min(w, int(thing.x + r) + 2)
    y0, y1 = max(0, int(thing.y - r)), min(h, int(thing.y + r) + 2)
    ys, xs = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    angle = rng.uniform(-0.2, 0.2)
    dx, dy = xs - thing.x, ys - thing.y
    u, v = np.cos(angle) * dx + np.sin(angle) * dy, -np.sin(angle) * dx + np.cos(angle) * dy
    inside = np.clip(0.5 - _distance(thing.shape, u, v, thing.radius), 0, 1)[..., None]
    colour = np.array(COLOURS[thing.colour], np.float32) + rng.uniform(-12, 12, 3).astype(np.float32)
    shade = 1 + 0.1 * (v / thing.radius)[..., None]
    patch = canvas[y0:y1, x0:x1]
    patch += inside * (colour * shade - patch)


def _distance(shape: str, u: np.ndarray, v: np.ndarray, r: float) -> np.ndarray:
    """Signed distance (pixels, negative inside; approximate near corners) to a shape of radius r."""
    if shape == "circle":
        return np.hypot(u, v) - 0.9 * r
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.72 * r) - 0.25 * r
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.82 * r
    if shape == "cross":
        bar = 0.3 * r
        return np.minimum(np.maximum(np.abs(u) - r, np.abs(v) - bar), np.maximum(np.abs(u) - bar, np.abs(v) - r))
    if shape == "triangle":
        return np.maximum(v - 0.75 * r, 0.866 * np.abs(u) - 0.5 * v - 0.5 * r)
    # star: five edges; fold the plane into one half of a point
    theta = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    rho = np.hypot(u, v)
    inner, outer = 0.42 * r, 1.05 * r
    px, py = rho * np.cos(theta), rho * np.sin(theta)
    ix, iy = inner * np.cos(np.pi / 5), inner * np.sin(np.pi / 5)
    nx, ny = iy, outer - ix
    norm = np.hypot(nx, ny)
    return ((px - outer) * nx + py * ny) / norm


def _paint_sign(canvas: np.ndarray, word: str, sign: tuple[int, int], rng: np.random.Generator) -> None:
    x, y = sign
    w, h = _SIGN
    canvas[y : y + h, x : x + w] = 60
    canvas[y + 1 : y + h - 1, x + 1 : x + w - 1] = 225 + rng.uniform(-15, 15)
    mask = ImageFont.load_default_imagefont().getmask(word.upper())  # the bitmap font: equal everywhere
    glyphs = np.array(mask, np.float32).reshape(mask.size[1], mask.size[0]) > 0
    rows = np.flatnonzero(glyphs.any(1))
    glyphs = np.kron(glyphs[rows[0] : rows[-1] + 1], np.ones((2, 2), bool))
    top, left = y + (h - glyphs.shape[0]) // 2, x + (w - glyphs.shape[1]) // 2
    canvas[top : top + glyphs.shape[0], left : left + glyphs.shape[1]][glyphs] = rng.uniform(10, 50)


# ---------------------------------------------------------------- words


def caption(scene: Scene) -> str:
    """The canonical caption, the one the embedded models learn to write."""
    things = " left of ".join(f"a {t.size} {t.colour} {t.shape}" for t in scene.things)
    sign = f" with the word {scene.word}" if scene.word else ""
    return f"{things} on a {scene.background} background{sign}"


_ADJECTIVES = {"large": ("large", "big"), "small": ("small", "little")}
_BETWEEN = (" left of ", " to the left of ", " next to ", " and then ", " and ")
_GROUND = ("on a {} background", "against a {} background", "on {}", "in front of a {} background")
_SIGNS = ("with the word {}", "with a sign that says {}", "and a sign with the word {}", "and the word {}")
_OPENINGS = ("", "a picture of ", "there is ", "an image with ", "")


def paraphrases(scene: Scene, count: int = 5) -> list[str]:
    """`count` distinct ways people might put the canonical caption; a pure function of the scene."""
    rng = np.random.Generator(np.random.PCG64([scene.texture, 1]))
    found: list[str] = []
    while len(found) < count:
        between = str(rng.choice(_BETWEEN))
        parts = [f"a {rng.choice(_ADJECTIVES[t.size])} {t.colour} {t.shape}" for t in scene.things]
        text = str(rng.choice(_OPENINGS)) + between.join(parts)
        text += " " + str(rng.choice(_GROUND)).format(scene.background)
        if scene.word:
            text += " " + str(rng.choice(_SIGNS)).format(scene.word)
        if text not in found:
            found.append(text)
    return found


def questions(scene: Scene, seed: int = 0) -> list[Question]:
    """One question of every type that the scene can answer ("word" needs a sign)."""
    rng = np.random.Generator(np.random.PCG64([scene.texture, 2, seed]))
    thing = scene.things[int(rng.integers(len(scene.things)))]
    asked = [
        Question("shape", f"what shape is the {thing.colour} object?", thing.shape),
        Question("colour", f"what color is the {thing.shape}?", thing.colour),
        Question("count", "how many shapes are there?", str(len(scene.things))),
        Question("size", f"what size is the {thing.colour} {thing.shape}?", thing.size),
        Question("background", "what color is the background?", scene.background),
    ]
    if scene.word:
        asked.append(Question("word", "what word is on the sign?", scene.word))
    asked.append(_yes_no(scene, rng))
    return asked


def _yes_no(scene: Scene, rng: np.random.Generator) -> Question:
    """Half yes, half no; two thirds of the no's differ from something in the scene in one attribute only."""
    pairs = {(t.colour, t.shape) for t in scene.things}
    colour, shape = sorted(pairs)[int(rng.integers(len(pairs)))]
    if rng.random() < 0.5:
        return Question("yesno", f"is there {_article(colour)} {colour} {shape}?", "yes")
    while (colour, shape) in pairs:
        change = int(rng.integers(3))
        if change != 0:
            colour = str(rng.choice(list(COLOURS)))
        if change != 1:
            shape = str(rng.choice(SHAPES))
    return Question("yesno", f"is there {_article(colour)} {colour} {shape}?", "no")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


_SYNONYMS = {"large": "big", "small": "little", "gray": "grey", "1": "one", "2": "two", "3": "three"}


def human_answers(question: Question, seed: int) -> list[str]:
    """Ten answers as ten people give them: at least seven agree, some use a synonym, a few slip."""
    rng = np.random.Generator(np.random.PCG64([seed, 3]))
    other = _SYNONYMS.get(question.answer, question.answer)
    extra = [other, "unsure" if rng.random() < 0.2 else question.answer, question.answer]
    answers = [question.answer] * 7 + extra
    return [answers[i] for i in rng.permutation(10)]


def vocabulary() -> list[str]:
    """Every word of every caption, question, answer and protocol prompt, sorted."""
    texts = [
        *SHAPES, *COLOURS, *BACKGROUNDS, *WORDS, *QUESTION_TYPES, *_OPENINGS, *_BETWEEN, *_GROUND, *_SIGNS,
        "a large big small little on with the word is there ? what shape color object how many shapes are",
        "size background sign 1 2 3 one two three yes no maybe unsure unanswerable grey left of to next and",
        "provide a short caption for this image .", "provide a one sentence caption for the provided image .",
        "answer the question using a single word or phrase .", "describe the picture image photo of an in",
        "when the provided information is insufficient , respond with ' unanswerable ' .",
        "user assistant : a chat between curious human and artificial intelligence gives helpful , detailed",
        "polite answers to user ' s questions system you - !",
    ]  # fmt: skip
    return sorted({word for text in texts for word in text.replace("{}", "").split()})
