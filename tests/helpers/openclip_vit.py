"""open_clip's vision transformer in plain torch, from knowledge of its layout: the reference of the key map.

Its state dict has the names that open_clip saves under `visual.`.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        parts = [("c_fc", nn.Linear(width, hidden)), ("gelu", activation), ("c_proj", nn.Linear(hidden, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """Random weights from `seed`; every forward gives (projected embedding, hidden states from the input on)."""

    def __init__(
        self,
        *,
        width: int = 64,
        heads: int = 1,
        layers: int = 3,
        patch: int = 14,
        side: int = 56,
        embed: int = 24,
        hidden: int = 160,
        quick: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((side // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.Module()
        blocks = [Block(width, heads, hidden, QuickGELU() if quick else nn.GELU()) for _ in range(layers)]
        self.transformer.resblocks = nn.ModuleList(blocks)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = name.startswith("ln_") or ".ln_" in name
            parameter.data = 1 + 0.1 * noise if scale and name.endswith("weight") else 0.2 * noise
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        states = [self.ln_pre(x)]
        for block in self.transformer.resblocks:
            states.append(block(states[-1]))
        return self.ln_post(states[-1][:, 0]) @ self.proj, states
