"""tiny-clip: tiny-llava's own vision tower, locked, with a last block and a text encoder that match texts.

Everything the language model of tiny-llava reads (up to hidden layer -2) is bit-identical in both, as LLaVA's
tower is in the CLIP it came from: what is learnt from one serves the other.

Called by `python -m tools.embedded.train tiny-clip`; steps, seeds and resuming as there.
"""

from __future__ import annotations

import argparse
import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from lvlm_radapt.embedded import scenes
from lvlm_radapt.loading.locate import embedded_models
from lvlm_radapt.utils.errors import UserError
from tools.embedded import build
from tools.embedded.altered import altered_captions, describe
from tools.embedded.pool import augment, cached
from tools.embedded.training_run import Run, save_whole
from tools.embedded.vision import penultimate

SCENES = 20_000  # of the pool; they are seen with one augmentation each
NEGATIVES = 7  # altered captions of every scene, a step
PARAPHRASES = 5
TEXTS_A_PASS = 64
LEARNING_RATE = 1e-3


def train_clip(args: argparse.Namespace) -> nn.Module:
    """The trained CLIPModel; `args` are those of `train` (its joint steps are the steps here)."""
    torch.manual_seed(args.seed)
    folder = args.llava or embedded_models()["tiny-llava"]
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no tiny-llava there: train it first, or name its folder with --llava")
    llava: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model: Any = build.clip().train()
    lock(model, llava)
    hidden = _states(args, model)
    drawn = [scenes.sample_scene("train", args.seed, i) for i in range(len(hidden))]
    tokenizer = build.clip_tokenizer()

    run = Run(args, "clip", {"model": model}, args.joint_steps, LEARNING_RATE)
    check_locked(model, llava)  # a checkpoint of a run on another tiny-llava is found out at once
    while run.step < run.steps:
        rng = np.random.Generator(np.random.PCG64([args.seed + 2, run.step]))
        rows = rng.choice(len(hidden), args.batch, replace=False)
        texts = draw_texts([drawn[i] for i in rows], rng)
        same = _same([scenes.caption(drawn[i]) for i in rows])
        with torch.autocast("cpu", torch.bfloat16):
            images = embed_image(model, hidden[rows].float())
            words = embed_texts(model, tokenizer, texts)
        scale = model.logit_scale.exp().clamp(max=100)
        run.update(contrastive(images.float(), words.float(), scale, same))
    check_locked(model, llava)
    return model


def lock(model: Any, llava: Any) -> None:
    """Takes tiny-llava's tower over and freezes all of it that tiny-llava's language model reads."""
    tower = model.vision_model
    tower.load_state_dict(llava.model.vision_tower.state_dict())
    tower.requires_grad_(False)
    for part in (tower.encoder.layers[-1], tower.post_layernorm):
        part.requires_grad_(True)


def check_locked(model: Any, llava: Any) -> None:
    """RuntimeError unless every frozen weight equals tiny-llava's bit for bit in fp16, as stored."""
    theirs = dict(llava.model.vision_tower.named_parameters())
    for name, ours in model.vision_model.named_parameters():
        if not ours.requires_grad and not torch.equal(ours.half(), theirs[name].half()):
            raise RuntimeError(f"{name} is not tiny-llava's: was training resumed on another one?")


def embed_image(model: Any, hidden: Tensor) -> Tensor:
    """[B, P] image embeddings from `penultimate`'s states: the last block for the CLS token alone."""
    block = model.vision_model.encoder.layers[-1]
    attention = block.self_attn
    normed = block.layer_norm1(hidden)

    def heads(states: Tensor) -> Tensor:
        return states.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    seen = F.scaled_dot_product_attention(
        heads(attention.q_proj(normed[:, :1])), heads(attention.k_proj(normed)), heads(attention.v_proj(normed))
    )
    cls = hidden[:, :1] + attention.out_proj(seen.transpose(1, 2).flatten(2))
    cls = cls + block.mlp(block.layer_norm2(cls))
    return model.visual_projection(model.vision_model.post_layernorm(cls[:, 0]))


def embed_texts(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """[N, P] text embeddings; short and long texts apart, for padding would be half of the work."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].split()))
    parts = []
    for start in range(0, len(order), TEXTS_A_PASS):
        chosen = [texts[i] for i in order[start : start + TEXTS_A_PASS]]
        tokens = tokenizer(chosen, padding=True, return_tensors="pt")
        out = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        parts.append(model.text_projection(out.pooler_output))
    return torch.cat(parts)[torch.argsort(torch.tensor(order))]


def contrastive(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """The symmetric contrastive loss with hard negatives, a mean over images.

    images [B, P]; texts [B (1 + K), P]: the B true captions, then K altered ones an image. An image chooses
    among all texts, a true caption among all images. same: bool [B, B], other scenes that the caption of row
    i is as true of: they are no wrong answers.
    """
    b = len(images)
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    ignored = torch.cat([same, same.new_zeros(b, len(texts) - b)], 1)
    logits = logits.masked_fill(ignored, -torch.inf)
    target = torch.arange(b)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :b].T, target))


def _same(captions: list[str]) -> Tensor:
    words = np.array(captions)
    return torch.from_numpy((words[:, None] == words[None]) & ~np.eye(len(words), dtype=bool))


def draw_texts(batch: list[scenes.Scene], rng: np.random.Generator) -> list[str]:
    """True captions, half of them canonical and half paraphrased, then each scene's altered ones."""
    true, false = [], []
    for scene in batch:
        wording = int(rng.integers(PARAPHRASES)) if rng.random() < 0.5 else None
        true.append(describe(scene, wording))
        false += altered_captions(scene, NEGATIVES, rng, wording=wording, held_out=False)
    return true + false


def _states(args: argparse.Namespace, model: Any) -> Tensor:
    """fp16 [N, 65, D] penultimate states of the pool's first scenes, each augmented once; kept on disk."""
    frozen = [p for p in model.vision_model.parameters() if not p.requires_grad]
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in frozen)).hexdigest()[:12]
    path = args.work / f"clip-states-{args.scenes}-{args.seed}-{digest}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    pool = cached(args.scenes, args.seed, scenes.SQUARE, args.workers, args.work)
    parts = []
    for start in range(0, min(len(pool), SCENES), 500):
        rng = np.random.Generator(np.random.PCG64([args.seed + 3, start]))
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + start)
        x = augment(pool.images[start : min(start + 500, SCENES)], generator, rng)
        with torch.no_grad():
            parts.append(penultimate(model.vision_model, x).to(torch.float16))
        print(f"states {start + len(x)}/{min(len(pool), SCENES)}", flush=True)
    states = torch.cat(parts)
    save_whole(states, path)
    return states
