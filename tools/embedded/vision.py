"""The towers as the trainer runs them: whole batches of one canvas, nothing the language model does not read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from tools.embedded import build, packing

Frame = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # mask, positions, ids before, ids after


def penultimate(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """[B, 1 + patches, D] hidden layer -2 of a CLIP tower, the one that LLaVA reads. pixels: normalised
    [B, 3, H, W]."""
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return hidden


class LlavaVision(nn.Module):
    """(patches [B,N,D], CLS [B,D], image tokens [B,N,D]) up to the layer the LM reads."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.held = [model]  # not a submodule: the optimiser sees the model once

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        model = self.held[0].model
        hidden = penultimate(model.vision_tower, x)
        patches = hidden[:, 1:]
        return patches, hidden[:, 0], model.multi_modal_projector(patches)

    def frame(self, tokenizer: PreTrainedTokenizerFast) -> Frame:
        before = torch.tensor([tokenizer("USER:").input_ids])
        prefix = before.shape[1] + (112 // build.PATCH) ** 2
        mask, offset = packing.layout(prefix, torch.bfloat16)
        position = torch.cat([torch.arange(prefix), prefix + offset])[None]
        return mask, position, before, torch.zeros(1, 0, dtype=torch.long)


class QwenVision(nn.Module):
    """The same for tiny-qwen at one canvas: window order inside, raster order outside, CLS None."""

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.held = [model]
        self.grid = (size[0] // build.PATCH, size[1] // build.PATCH)
        visual = model.model.visual
        seen: dict[int, dict[str, Any]] = {}
        hooks = [
            block.register_forward_pre_hook(
                lambda _m, args, kwargs, i=i: seen.__setitem__(i, {"hidden": args[0], **kwargs}), with_kwargs=True
            )
            for i, block in enumerate(visual.blocks)
        ]
        rows, cols = self.grid
        n = rows * cols
        embed_hook = visual.patch_embed.register_forward_hook(
            # a ramp instead of features, so that block 0 shows which row the tower put where
            lambda _m, _a, out: torch.arange(n, dtype=out.dtype)[:, None].expand_as(out)
        )
        with torch.no_grad():
            visual(torch.zeros(n, 3 * 2 * build.PATCH**2), grid_thw=torch.tensor([[1, rows, cols]]))
        for hook in (*hooks, embed_hook):
            hook.remove()
        self.window = seen[0]["hidden"][:, 0].long()  # tower row -> processor row
        merge = (
            torch.arange(n).view(rows // 2, 2, cols // 2, 2).permute(0, 2, 1, 3).flatten()
        )  # processor row -> raster
        self.raster = merge[self.window]  # tower row -> raster patch
        self.back = torch.argsort(self.raster)
        cos, sin = seen[0]["position_embeddings"]
        self.cos, self.sin = cos[:, None].float(), sin[:, None].float()
        self.lengths = [seen[i]["cu_seqlens"].diff().tolist() for i in range(len(visual.blocks))]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        visual = self.held[0].model.visual
        b, p = len(x), build.PATCH
        rows, cols = self.grid
        patches = x.view(b, 3, rows, p, cols, p).permute(0, 2, 4, 1, 3, 5).reshape(b, rows * cols, 3, 1, p * p)
        flat = patches[:, self.raster].expand(-1, -1, -1, 2, -1).reshape(b, rows * cols, -1)
        hidden = F.linear(flat, visual.patch_embed.proj.weight.flatten(1))
        for block, lengths in zip(visual.blocks, self.lengths, strict=True):
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), lengths)
            hidden = hidden + block.mlp(block.norm2(hidden))
        raster = hidden[:, self.back]
        merged = visual.merger(hidden.reshape(-1, hidden.shape[-1])).view(b, -1, build.WIDTH)
        order = torch.argsort(self.window[::4] // 4)  # tower's merge blocks -> processor's, which are raster
        return raster, None, merged[:, order]

    def _attend(self, attn: Any, hidden: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        b, n, d = hidden.shape
        q, k, v = attn.qkv(hidden).view(b, n, 3, attn.num_heads, -1).unbind(2)

        def turn(t: torch.Tensor) -> torch.Tensor:
            half = t.shape[-1] // 2
            rotated = torch.cat([-t[..., half:], t[..., :half]], -1)
            return (t.float() * self.cos + rotated.float() * self.sin).to(t.dtype)

        q, k = turn(q), turn(k)
        outs = []
        for qs, ks, vs in zip(q.split(lengths, 1), k.split(lengths, 1), v.split(lengths, 1), strict=True):
            out = F.scaled_dot_product_attention(qs.transpose(1, 2), ks.transpose(1, 2), vs.transpose(1, 2))
            outs.append(out.transpose(1, 2))
        return attn.proj(torch.cat(outs, 1).reshape(b, n, d))

    def frame(self, tokenizer: PreTrainedTokenizerFast) -> Frame:
        model = self.held[0]
        before = tokenizer("<|im_start|>user\n<|vision_start|>").input_ids
        rows, cols = self.grid
        tokens = rows * cols // 4
        ids = [*before, *[model.config.image_token_id] * tokens, *tokenizer("<|vision_end|>").input_ids]
        kinds = [int(i == model.config.image_token_id) for i in ids]
        position, _ = model.model.get_rope_index(
            torch.tensor([ids]), image_grid_thw=torch.tensor([[1, rows, cols]]), attention_mask=torch.ones(1, len(ids)),
            mm_token_type_ids=torch.tensor([kinds]),
        )  # fmt: skip
        mask, offset = packing.layout(len(ids), torch.bfloat16)
        after = position.max() + 1 + offset
        position = torch.cat([position, after.expand(3, 1, -1)], 2)
        return mask, position, torch.tensor([before]), torch.tensor([tokenizer("<|vision_end|>").input_ids])
