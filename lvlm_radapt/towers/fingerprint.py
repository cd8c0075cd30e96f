"""Which weights a vision tower has, in one line of hexadecimal digits."""

from __future__ import annotations

import hashlib

import torch
from accelerate.utils import align_module_device
from torch import nn

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The precisions that a tower can be fingerprinted in, by name."""


def tower_fingerprints(tower: nn.Module, dtypes: list[str]) -> dict[str, str]:
    """dtype -> sha256 over every parameter's name, shape and values rounded to it, as float32 bytes.

    So a float32 tower also tells what it is when opened in half precision. Buffers do not count.
    """
    digests = {name: hashlib.sha256() for name in dtypes}
    for key in sorted(name for name, _ in tower.named_parameters()):
        place, _, own = key.rpartition(".")
        module = tower.get_submodule(place)
        with align_module_device(module):  # parameters that are offloaded come in for this long
            values = getattr(module, own).detach().cpu()
        head = f"{key}{list(values.shape)}".encode()
        for name, digest in digests.items():
            digest.update(head)
            digest.update(values.to(DTYPES[name]).to(torch.float32).contiguous().numpy().tobytes())
    return {name: digest.hexdigest() for name, digest in digests.items()}
