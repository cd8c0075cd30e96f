"""lmms-eval's own models over folders that need trust_remote_code: exports, and folded weights that filter.

lmms-eval opens its models by their stock classes, which refuse such a folder. Here everything but that one step is its
own code, so that scores can be compared with those of the stock model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import transformers
from lmms_eval.models.simple import llava_hf, qwen2_5_vl


class _Trusted:
    """A class of transformers that runs the code in the folder."""

    def __init__(self, auto: Any) -> None:
        self._auto = auto

    def from_pretrained(self, *args: Any, **settings: Any) -> Any:
        return self._auto.from_pretrained(*args, **settings | {"trust_remote_code": True})


_MODEL = _Trusted(transformers.AutoModelForImageTextToText)


class RAdaptLlava(llava_hf.LlavaHf):
    """`llava_hf` over an export or folded weights of LLaVA-1.5, LLaVA-NeXT or LLaVA-OneVision."""

    def __init__(self, **settings: Any) -> None:
        kinds = {f"{prefix}{kind}": _MODEL for kind in llava_hf.model_map for prefix in ("", "radapt_")}
        with _replaced(llava_hf, AutoConfig=_Trusted(transformers.AutoConfig), model_map=kinds):
            super().__init__(**settings | {"trust_remote_code": True})


class RAdaptQwen(qwen2_5_vl.Qwen2_5_VL):
    """`qwen2_5_vl` over an export or folded weights of Qwen2-VL or Qwen2.5-VL."""

    def __init__(self, **settings: Any) -> None:
        openers = {name: _Trusted(getattr(transformers, name)) for name in ("AutoProcessor", "AutoTokenizer")}
        with _replaced(qwen2_5_vl, Qwen2_5_VLForConditionalGeneration=_MODEL, **openers):
            super().__init__(**settings)


@contextmanager
def _replaced(module: ModuleType, **names: Any) -> Iterator[None]:
    """Inside, these names of the module stand for something else."""
    before = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(before)
