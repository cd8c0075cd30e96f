"""LVLMs of full size with random weights on a GPU: robustify, attack steps, an answer; memory and speed.

The configurations are the published ones of LLaVA-1.5-7B and Qwen2.5-VL-7B, so times and memory are theirs;
the weights say nothing. Explains itself and exits 0 where there is no GPU.

Run: python benchmarks/full_size.py [--model llava-1.5-7b] [--batch-size 4] [--repeats 5]
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from attacks import embedding_loss
from lvlm_radapt import RAdaptConfig, robustify
from lvlm_radapt.embedded import scenes
from lvlm_radapt.loading.locate import embedded_models
from lvlm_radapt.models import LVLM
from lvlm_radapt.models.llava import LlavaLVLM
from lvlm_radapt.models.qwen import QwenLVLM

PROMPT = "Provide a short caption for this image."
MATRIX_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16 FLOP a second by the makers' data sheets."""


def llava(image: int) -> Any:
    """LLaVA-1.5-7B: CLIP ViT-L/14-336 and Vicuna-7B; `image`: the tokenizer's id of the placeholder."""
    return transformers.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
            "projection_dim": 768,
        },
        text_config={
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        },
        image_token_index=image, vision_feature_layer=-2, vision_feature_select_strategy="default",
        image_seq_length=576,
    )  # fmt: skip


def qwen(ids: Callable[[str], int]) -> Any:
    """Qwen2.5-VL-7B; `ids`: the tokenizer's id of a special token."""
    return transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31], "in_channels": 3,
        },
        text_config={
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": None,
            "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )  # fmt: skip


def tokenizer_of(name: str) -> Any:
    """The word-level tokenizer of an embedded model, with its chat template."""
    return transformers.AutoTokenizer.from_pretrained(embedded_models()[name])


def build_model(name: str, device: str, dtype: torch.dtype) -> LVLM:
    """The model with random weights, made where it runs; the embedded models' word-level tokenizer reads for it."""
    if name == "llava-1.5-7b":
        tokenizer = tokenizer_of("tiny-llava")
        config, hf_class = llava(tokenizer.convert_tokens_to_ids("<image>")), "LlavaForConditionalGeneration"
        processor: Any = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        )
        family: type[LlavaLVLM] | type[QwenLVLM] = LlavaLVLM
    else:
        tokenizer = tokenizer_of("tiny-qwen")
        config, hf_class = qwen(tokenizer.convert_tokens_to_ids), "Qwen2_5_VLForConditionalGeneration"
        processor = transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 448 * 448})
        family = QwenLVLM
    with torch.device(device):
        hf = getattr(transformers, hf_class)._from_config(config, attn_implementation="sdpa", dtype=dtype)
    return family(hf, tokenizer, processor, name=name, chat_template=tokenizer.chat_template)


def gradient(loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """What an attack step asks of a model: the gradient of the summed losses at x."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x).sum(), x)[0]


def measure(model: LVLM, batch_size: int, repeats: int) -> dict[str, tuple[float, float]]:
    """What is done -> (median seconds, FLOP), the defence in the model."""
    side = 448 if isinstance(model, QwenLVLM) else 336
    drawn = [scenes.sample_scene("test", 0, i, (side, side)) for i in range(batch_size)]
    batch = model.pixels([scenes.render(scene) for scene in drawn])
    prompts, captions = [PROMPT] * batch_size, [scenes.caption(scene) for scene in drawn]
    with torch.no_grad():
        clean = model.features(batch)

    def step(loss: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], object]:
        return lambda: gradient(loss, batch.x)

    distance = embedding_loss(lambda x, _index: model.features(batch.replace(x)), clean, distance="l2")
    everyone = list(range(batch_size))
    jobs: dict[str, Callable[[], object]] = {
        "embedding step": step(lambda x: distance(x, everyone)),
        "end-to-end step": step(lambda x: model.loss(batch.replace(x), prompts, captions)),
        "answer, 20 tokens": lambda: model.generate(batch, prompts, max_new_tokens=20),
    }
    measured = {}
    for name, job in jobs.items():
        with FlopCounterMode(display=False) as counter:
            job()
        seconds = []
        for _ in range(repeats):
            torch.cuda.synchronize()
            started = time.perf_counter()
            job()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        measured[name] = (statistics.median(seconds), float(counter.get_total_flops()))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("llava-1.5-7b", "qwen2.5-vl-7b"), action="append")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: 7B models in bf16 need one with 40 GB or more; nothing was measured")
        return
    card = torch.cuda.get_device_name()
    peak = next((flops for name, flops in MATRIX_PEAK.items() if name in card), None)
    print(f"{card}, torch {torch.__version__}, transformers {transformers.__version__}, {datetime.date.today()}")
    for name in args.model or ("llava-1.5-7b", "qwen2.5-vl-7b"):
        torch.cuda.reset_peak_memory_stats()
        model = robustify(build_model(name, "cuda", torch.bfloat16), RAdaptConfig())
        held = torch.cuda.memory_allocated() / 2**30
        for what, (seconds, flops) in measure(model, args.batch_size, args.repeats).items():
            share = "unknown" if peak is None else f"{100 * flops / seconds / peak:.1f} %"
            print(
                f"| {name} + R-Adapt | {what} | batch {args.batch_size}, bf16 | {seconds:.3f} s | {share} of peak | "
                f"{held:.1f} GiB held, {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most |"
            )
        del model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
