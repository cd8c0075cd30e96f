"""The texts that photo-clip reads: a photo's class name, and a general word for it, in CLIP's templates."""

from __future__ import annotations

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

from eval_tasks.data.set_config import set_config
from tools.embedded.build import clip_tokenizer

GENERAL: dict[str, tuple[str, ...]] = {
    "fish": ("goldfish",),
    "frog": ("bullfrog",),
    "bird": ("black stork", "albatross"),
    "dog": ("Chihuahua", "golden retriever", "German shepherd"),
    "cat": ("tabby", "Egyptian cat"),
    "insect": ("ladybug", "bee", "walking stick", "mantis", "monarch"),
    "bovid": ("bison", "gazelle"),
    "primate": ("orangutan", "baboon"),
    "automobile": ("beach wagon", "convertible", "limousine"),
    "bus": ("trolleybus",),
    "boat": ("gondola",),
    "bridge": ("steel arch bridge", "viaduct"),
    "garment": ("academic gown", "apron", "bikini", "kimono", "miniskirt", "poncho", "swimming trunks"),
    "furniture": ("dining table", "rocking chair"),
    "vessel": ("beaker", "bucket", "pill bottle", "teapot", "water jug"),
    "pan": ("frying pan", "wok"),
    "fruit": ("orange", "banana"),
    "dish": ("guacamole", "mashed potato", "meat loaf", "potpie"),
    "landscape": ("alp", "coral reef", "seashore"),
}
"""General word -> the class names it is true of; WordNet has each word above its names. Five are CIFAR-10's."""
LENGTH = 32  # tokens at most
WORDS = re.compile(r"\w+|[^\w\s]")


def templates() -> list[str]:
    """CLIP's templates for Tiny-ImageNet and for CIFAR-10, each once."""
    return list(dict.fromkeys([*set_config("tiny-imagenet").templates, *set_config("cifar10").templates]))


def general_of(names: Iterable[str]) -> tuple[list[str], list[int]]:
    """The general words that are true of one of `names`, and for each name its word's number, -1 without one."""
    names = list(names)
    words = [word for word, under in GENERAL.items() if set(under) & set(names)]
    return words, [next((i for i, word in enumerate(words) if name in GENERAL[word]), -1) for name in names]


def photo_tokenizer(names: Iterable[str]) -> PreTrainedTokenizerFast:
    """Word-level over the templates, `names` and `GENERAL`; a word that no training text has is `<unk>`."""
    known = WORDS.findall(" ".join([*names, *GENERAL, *templates()]).replace("{}", "").lower())
    return clip_tokenizer(dict.fromkeys(known), LENGTH)
