"""FLOP of one end-to-end attack step of every family, counted on the meta device, against the sum of its parts.

Nothing is computed: tensors have shapes and no numbers, so a 106B model fits anywhere. The sum is arithmetic on the
weights' shapes: 2 FLOP a weight and token forward, 2 for the gradient of the activations, none for that of the weights.
The tower counts up to the layer that is read, the last MLP at the answer's tokens where the family's record allows it,
the head there alone. Products of activations (attention) are counted forward, and twice that for their gradient.

Run: python benchmarks/flops.py [--family qwen3_5]
"""

from __future__ import annotations

import argparse
import datetime
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import full_size
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from lvlm_radapt.models import LVLM
from lvlm_radapt.models.families import lvlm_families
from lvlm_radapt.models.family import Family
from lvlm_radapt.towers import find_tower
from lvlm_radapt.towers.parts import patch_embedding, tower_blocks

TARGET = "a red circle on the left of a blue square"
ATEN = torch.ops.aten
_QWEN3_TEXT = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
_GLM_TEXT = {
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12],
    }
}  # fmt: skip


class Released(NamedTuple):
    """A checkpoint, and what its language model, its tower and the whole have otherwise than transformers' defaults."""

    called: str
    text: Mapping[str, Any] = MappingProxyType({})
    vision: Mapping[str, Any] = MappingProxyType({})
    whole: Mapping[str, Any] = MappingProxyType({})


_SHAPE = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
RELEASED = {
    "qwen2_vl": Released(
        "Qwen2-VL-7B",
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064},
        {"hidden_size": 3584},
    ),
    "qwen3_vl": Released(
        "Qwen3-VL-8B",
        {**_QWEN3_TEXT, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
         "num_attention_heads": 32},
        {"out_hidden_size": 4096},
    ),
    "qwen3_vl_moe": Released(
        "Qwen3-VL-30B-A3B",
        {**_QWEN3_TEXT, "num_key_value_heads": 4, "hidden_size": 2048, "num_hidden_layers": 48,
         "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        {"out_hidden_size": 2048},
    ),
    "aya_vision": Released(
        "Aya-Vision-8B",
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8},
        {**_SHAPE, "image_size": 364, "patch_size": 14, "vision_use_head": False},
    ),
    "gemma3": Released(
        "Gemma-3-4B",
        {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 256},
        {**_SHAPE, "image_size": 896, "patch_size": 14},
    ),
    "gemma4": Released("gemma4, defaults", vision={"model_type": "gemma4_vision"}),
    "qwen3_5": Released("Qwen3.5-9B", vision={"out_hidden_size": 4096}),
    "qwen3_5_moe": Released("Qwen3.5-35B-A3B", vision={"out_hidden_size": 2048}),
    "glm4v": Released("GLM-4.1V-9B", _GLM_TEXT),
    "glm46v": Released("GLM-4.6V-Flash", _GLM_TEXT),
    "glm4v_moe": Released("GLM-4.5V", {**_GLM_TEXT, "head_dim": 128}),
    "idefics3": Released(
        "Idefics3-8B",
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128259},
        {**_SHAPE, "image_size": 364, "patch_size": 14},
        {"scale_factor": 2},
    ),
    "smolvlm": Released(
        "SmolVLM2-2.2B",
        {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 49280},
        {**_SHAPE, "image_size": 384, "patch_size": 14},
        {"scale_factor": 3},
    ),
    "llava over pixtral": Released(
        "Pixtral-12B",
        {"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 14336, "num_hidden_layers": 40,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072},
        {"model_type": "pixtral", "image_size": 1024, "patch_size": 16},
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    ),
}  # fmt: skip
"""By model_type; the others are counted at transformers' defaults."""
FULL_SIZE: dict[str, Callable[[Callable[[str], int]], tuple[str, Any]]] = {
    "llava": lambda ids: ("LLaVA-1.5-7B", full_size.llava(ids("<|image_pad|>"))),
    "qwen2_5_vl": lambda ids: ("Qwen2.5-VL-7B", full_size.qwen(ids)),
}
"""Those whose configuration names tokens."""


class ShapesAlone(TorchDispatchMode):
    """Runs a model on the meta device. Whole numbers and masks stay on the CPU with their values, since grids,
    positions and masks decide shapes; where they meet a tensor without numbers, they lose theirs."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        meets = any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs)))
        to_meta = str(kwargs.get("device")) == "meta"
        if to_meta and not meets and (func is ATEN.arange.start or _keeps_values(func, args, kwargs)):
            kwargs["device"] = "cpu"
        if meets:
            if func in (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default):
                args = (args[0], _places(args[1]), *args[2:])
            args, kwargs = tree_map(_bare, (args, kwargs))
        return func(*args, **kwargs)


def _keeps_values(func: Any, args: Any, kwargs: Any) -> bool:
    return func is ATEN._to_copy.default and not (kwargs.get("dtype") or args[0].dtype).is_floating_point


def _places(indices: Any) -> list[Any]:
    """Masks with values as the places where they are true."""
    found: list[Any] = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool and not index.is_meta
        found += index.nonzero(as_tuple=True) if is_mask else [index]
    return found


def _bare(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, Tensor) and not leaf.is_meta and leaf.ndim else leaf


def _triangular(a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """FLOP of solving a triangular system [..., n, n] for right-hand sides [..., n, k]."""
    return int(torch.Size(b).numel()) * int(a[-1])


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    with (
        ShapesAlone(),
        FlopCounterMode(display=False, custom_mapping={ATEN.linalg_solve_triangular: _triangular}) as counter,
    ):
        yield counter


def kinds() -> dict[str, Family]:
    """model_type -> family; where another tower makes another model of it, the tower's too."""
    found = lvlm_families()
    return found | {f"{kind} over {tower}": each for kind, each in found.items() for tower in each.lvlm_over}


def build(kind: str, family: Family) -> tuple[LVLM, str]:
    """The family's model of released size on the meta device, and what it is called."""
    tokenizer = full_size.tokenizer_of("tiny-qwen")
    turns = ["<|user|>", "<end_of_turn>", "<boi>", "<eoi>", "<end_of_utterance>", "<fake_token_around_image>"]
    around = [
        "<global-img>",
        "<img>",
        "</img>",
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "[IMG_BREAK]",
        "[IMG_END]",
        "<turn|>",
    ]
    tokenizer.add_tokens([*turns, *around], special_tokens=True)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    ids: Callable[[str], int] = tokenizer.convert_tokens_to_ids
    hf_class = family.hf_class({"model_type": kind.partition(" over ")[0]})
    if kind in FULL_SIZE:
        called, config = FULL_SIZE[kind](ids)
    else:
        released = RELEASED.get(kind, Released(f"{kind}, defaults"))
        called, parts = released.called, {"text_config": released.text, "vision_config": released.vision}
        changed = {part: changes for part, changes in parts.items() if changes}
        config = hf_class.config_class(**changed, **released.whole)
    config.image_token_id = ids("<|image_pad|>")
    for name, token in (("boi", "<boi>"), ("eoi", "<eoi>")):
        for kept in (f"{name}_token_index", f"{name}_token_id"):
            if hasattr(config, kept):
                setattr(config, kept, ids(token))
    with torch.device("meta"):
        hf = hf_class._from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    if any(map(_is_experts, hf.modules())):
        hf.set_experts_implementation("batched_mm")  # the routing has no numbers: every token its number of experts
    return family.build(hf, tokenizer, _image_processor(family, config), name=called), called


def _image_processor(family: Family, config: Any) -> Any:
    vision, ours = config.vision_config, family.lvlm_of(config.to_dict())
    name = family.image_processors[0 if ours is family.lvlm else -1]
    kind = getattr(transformers, f"{name}Pil")
    usual = dict(getattr(kind(), "size", None) or {})
    if not usual:  # a budget of patches of the usual size
        return kind()
    if ours is not None and ours.grows:
        frames = 2 if ours.counts_frames else 1
        size = {"shortest_edge": 56 * 56 * frames, "longest_edge": 448 * 448 * frames}
        return kind(size=size, patch_size=vision.patch_size)
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    square = {"height": side, "width": side}
    if "longest_edge" in usual:
        crops = {"max_image_size": {"longest_edge": side}} if hasattr(kind, "max_image_size") else {}
        return kind(size={"longest_edge": 2 * side if crops else side}, **crops)
    if "shortest_edge" in usual:
        return kind(size={"shortest_edge": side}, crop_size=square)
    return kind(size=square)


class Parts(NamedTuple):
    """FLOP of a step; those of the three parts forward and backward, as arithmetic has it, and what was counted."""

    tower: int
    projector: int
    language: int
    counted: int
    tokens: int

    @property
    def off(self) -> float:
        """How far the counted step is from the sum of its parts, as a share of the sum."""
        return self.counted / (self.tower + self.projector + self.language) - 1


def parts(model: LVLM, family: Family) -> Parts:
    """One image, one question, one answer."""
    prompts, targets = [full_size.PROMPT], [TARGET]
    with ShapesAlone():
        batch = model.pixels([Image.new("RGB", (448, 448))])
        read = len(model.text.target(prompts[0], targets[0]))
        length = len(model.prompt_ids(batch, prompts)[0]) + read
    rows: Counter[nn.Module] = Counter()
    with ExitStack() as stack:
        for module in model.hf.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
                stack.callback(module.register_forward_hook(lambda *call: rows.update({call[0]: _rows(*call)})).remove)
        mixed: list[int] = []  # what experts count, which are weights although their product looks like attention's
        with counting() as whole, torch.no_grad():
            for module in filter(_is_experts, model.hf.modules()):
                before = module.register_forward_pre_hook(lambda *_: mixed.append(-whole.get_total_flops()))
                after = module.register_forward_hook(lambda *_: mixed.append(whole.get_total_flops()))
                stack.callback(before.remove)
                stack.callback(after.remove)
            model.loss(batch, prompts, targets)
    with counting() as seen, torch.no_grad():
        model.features(batch)
    with counting() as step:
        full_size.gradient(lambda x: model.loss(batch.replace(x), prompts, targets), batch.x)

    config, language, head = model.hf.config, model.language_model, model.hf.get_output_embeddings()
    chosen = getattr(config.get_text_config(), "num_experts_per_tok", 0)
    embedding, blocks = patch_embedding(find_tower(model.hf)), tower_blocks(find_tower(model.hf))
    layer = getattr(config, "vision_feature_layer", -1)
    deepest = max(range(len(blocks) + 1)[number] for number in (layer if isinstance(layer, list) else [layer]))
    tower = rows[embedding] * (_weights([embedding]) + sum(_weights(block.modules()) for block in blocks[:deepest]))
    inside = {embedding, head, *language.modules(), *(module for block in blocks for module in block.modules())}
    projector = sum(rows[module] * _weights([module]) for module in rows.keys() - inside)
    # every token in every layer, but for what the record lets run at the answer's tokens alone
    mlp = language.layers[-1].mlp
    spared = length - read if type(language.layers[-1]).__name__ in family.plain_layers else 0
    spoken = length * sum(_weights(each.modules(), chosen) for each in language.layers)
    spoken += length * _weights(each for each in language.children() if isinstance(each, nn.Linear))
    spoken += read * _weights([head]) - spared * _weights(mlp.modules(), chosen)
    attended = _products(whole) - _products(seen) - sum(mixed)
    return Parts(
        tower=4 * tower + 3 * _products(seen),
        projector=4 * projector,
        language=4 * spoken + 3 * attended,
        counted=int(step.get_total_flops()),
        tokens=length,
    )


def _rows(module: Any, args: Any, out: Tensor) -> int:
    return out.numel() // (module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _weights(modules: Iterable[nn.Module], chosen: int = 0) -> int:
    """Numbers in the weights that one token is multiplied with; of each layer's experts it meets those chosen."""
    linear = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found = list(modules)
    plain: list[Any] = [
        each for each in found if isinstance(each, linear) or type(each).__name__.lower().endswith("router")
    ]
    return sum(int(each.weight.numel()) for each in plain) + _experts(found, chosen)


def _experts(modules: Iterable[nn.Module], chosen: int) -> int:
    kept = filter(_is_experts, modules)
    return sum(weight.numel() // len(weight) * chosen for each in kept for weight in each.parameters())


def _is_experts(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Experts")


def _products(counter: FlopCounterMode) -> int:
    """FLOP of products of activations with activations."""
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(op, 0) for op in (ATEN.bmm, ATEN.baddbmm, ATEN.linalg_solve_triangular))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=list(kinds()), action="append", help="model_type; all if left out")
    args = parser.parse_args()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {datetime.date.today()}; TFLOP")
    print("| model | tokens | tower | projector | language model | sum | counted | off |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, family in kinds().items():
        if args.family and kind not in args.family:
            continue
        model, called = build(kind, family)
        one = parts(model, family)
        of_parts = [one.tower, one.projector, one.language]
        shown = " | ".join(f"{flop / 1e12:.3f}" for flop in (*of_parts, sum(of_parts), one.counted))
        print(f"| {called} | {one.tokens:,} | {shown} | {100 * one.off:+.2f} % |", flush=True)


if __name__ == "__main__":
    main()
