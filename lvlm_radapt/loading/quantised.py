"""A language model in 4 or 8 bits (bitsandbytes), the tower and the projector as they are.

The attack's gradients flow through the quantised layers, so they have to be right: see `mend_gradients`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers.utils import is_bitsandbytes_available

from lvlm_radapt.utils.errors import UserError

Quantisation = Literal["4bit", "8bit"]
KINDS: tuple[Quantisation, ...] = ("4bit", "8bit")

_REPACKING = "support_avx512bf16_for_cpu"


def quantisation_config(kind: Quantisation, dtype: torch.dtype, kept: Sequence[str]) -> Any:
    """The `BitsAndBytesConfig` of `kind`: NF4 computed in `dtype`, or LLM.int8.

    kept: modules that stay as they are, by their path from the top: "vision_tower" alone would match nothing. They
    replace the library's defaults, so the head must be among them.

    UserError for an unknown kind, or without bitsandbytes.
    """
    if kind not in KINDS:
        raise UserError(f"quantize {kind!r} is unknown, choose 4bit or 8bit")
    if not is_bitsandbytes_available():
        raise UserError("--quantize needs bitsandbytes: pip install lvlm-radapt[quant]")
    if kind == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(kept))
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=list(kept)
    )


def mend_gradients(hf: nn.Module) -> None:
    """Make the gradients of 4-bit layers right on CPUs with AVX512-BF16.

    There bitsandbytes repacks a layer's weights in the first forward without gradients, and the backward pass
    then reads them in the old order: gradients with cosine 0.2 to the right ones, hence an attack that fails
    and a model that looks robust. The repacking is switched off.
    """
    for module in hf.modules():
        if hasattr(module, _REPACKING):
            setattr(module, _REPACKING, False)


def quantisation_of(hf: Any) -> Quantisation | None:
    """In how many bits bitsandbytes holds layers of the model; None where it holds none."""
    if getattr(hf, "is_loaded_in_4bit", False):
        return "4bit"
    return "8bit" if getattr(hf, "is_loaded_in_8bit", False) else None
