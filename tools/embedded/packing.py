"""One image, many texts: caption and questions behind one image prefix, blind to each other.

Every text sees the prefix and itself only, at the positions it would have alone, so a packed step is the sum of
separate ones at the price of a single pass through the vision tower and the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lvlm_radapt.embedded.scenes import QUESTION_TYPES
from tools.embedded.pool import VARIANTS, Pool

CAPTION_PROMPT = "Provide a short caption for this image."
VQA_PROMPT = "{}\nAnswer the question using a single word or phrase."
CAPTION_SLOT, QUESTION_SLOT = 38, 24  # tokens of a slot, the longest text included
QUESTIONS = 3  # asked of a scene a step
# yes/no and reading are the hardest, so they are asked more often
ASK_WEIGHTS = np.array([1.0, 1.0, 1.0, 0.8, 0.5, 3.0, 2.2])


@dataclass
class Texts:
    """Token ids and labels (-100 outside the answer): captions [N,slot], questions [N,VARIANTS,7,slot]."""

    caption: torch.Tensor
    caption_labels: torch.Tensor
    question: torch.Tensor
    question_labels: torch.Tensor


def tokenise(pool: Pool, tokenizer: object, style: str) -> Texts:
    """`style`: "llava" ("{text} assistant : {answer} </s>") or "qwen" (chat tokens)."""
    cache: dict[str, list[int]] = {}

    def ids(text: str) -> list[int]:
        if text not in cache:
            cache[text] = tokenizer(text, add_special_tokens=False).input_ids  # type: ignore[operator]
        return cache[text]

    before, end = (" ASSISTANT:", "</s>") if style == "llava" else ("<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")

    def pair(prompt: str, answer: str, slot: int) -> tuple[list[int], list[int]]:
        head, tail = ids(prompt) + ids(before), ids(answer) + ids(end)
        pad = slot - len(head) - len(tail)
        assert pad >= 0, (prompt, answer)
        return head + tail + [0] * pad, [-100] * len(head) + tail + [-100] * pad

    captions = [pair(CAPTION_PROMPT, c, CAPTION_SLOT) for c in pool.captions]
    questions = [
        [[pair(VQA_PROMPT.format(q), a, QUESTION_SLOT) if q else ([0] * QUESTION_SLOT, [-100] * QUESTION_SLOT)
          for q, a in variant] for variant in asked]
        for asked in pool.asked
    ]  # fmt: skip
    cap = torch.tensor(np.array(captions), dtype=torch.int16)
    que = torch.tensor(np.array(questions), dtype=torch.int16)
    return Texts(cap[:, 0], cap[:, 1], que[..., 0, :], que[..., 1, :])


def sample(texts: Texts, rows: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels), each [B, CAPTION_SLOT + QUESTIONS * QUESTION_SLOT], for these scenes."""
    b = len(rows)
    has_word = (texts.question_labels[rows, 0, QUESTION_TYPES.index("word")] >= 0).any(-1).numpy()
    weights = np.tile(ASK_WEIGHTS, (b, 1))
    weights[~has_word, QUESTION_TYPES.index("word")] = 1e-9
    keys = rng.random((b, len(QUESTION_TYPES))) ** (1 / weights)
    kinds = np.argsort(-keys, 1)[:, :QUESTIONS]
    variants = rng.integers(VARIANTS, size=(b, QUESTIONS))
    pick = (rows[:, None], variants, kinds)
    ids = torch.cat([texts.caption[rows], texts.question[pick].flatten(1)], 1).long()
    labels = torch.cat([texts.caption_labels[rows], texts.question_labels[pick].flatten(1)], 1).long()
    return ids, labels


def layout(prefix: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Additive mask [1,1,T,T] and each text token's offset behind the prefix [T - prefix]."""
    slots = [CAPTION_SLOT, *[QUESTION_SLOT] * QUESTIONS]
    owner = torch.cat([torch.full((n,), i) for i, n in enumerate(slots)])
    offset = torch.cat([torch.arange(n) for n in slots])
    owner = torch.cat([torch.full((prefix,), -1), owner])
    total = len(owner)
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    allowed = causal & ((owner[None, :] == -1) | (owner[None, :] == owner[:, None]))
    mask = torch.zeros(total, total, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    return mask[None, None], offset
