"""The entry point that lmms-eval reads: which models there are, by name."""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """`radapt_llava_hf` and `radapt_qwen2_5_vl`. Their module is imported when one of them is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    classes = {"radapt_llava_hf": "RAdaptLlava", "radapt_qwen2_5_vl": "RAdaptQwen"}
    return [
        ModelManifest(name, simple_class_path=f"lvlm_radapt.harnesses.lmms_eval_models.{own}")
        for name, own in classes.items()
    ]
