"""The parts of every family's encoder, and one encoder's parts in another's place."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import inject
from lvlm_radapt.towers import Tower, find_tower
from lvlm_radapt.towers.parts import replace_parts, tower_parts
from tests.helpers import tiny_random
from tests.helpers.failures import one_line

ENCODERS: dict[str, Callable[..., Any]] = {
    "clip": tiny_random.clip_vision,
    "siglip": tiny_random.siglip_vision,
    "llava": tiny_random.llava,
    "onevision": tiny_random.llava_onevision,
    "qwen2": tiny_random.qwen2_vl,
    "qwen2.5": tiny_random.qwen2_5_vl,
    "qwen3": tiny_random.qwen3_vl,
}


def clip_with(**changes: Any) -> Any:
    config = tiny_random.clip_vision_config()
    for key, value in changes.items():
        setattr(config, key, value)
    return transformers.CLIPVisionModel(config)


def run(tower: Tower, seed: int = 5) -> list[torch.Tensor]:
    """What the encoder gives, and what the first block gets and gives, on seeded noise."""
    args, kwargs = tower.uniform_input(torch.zeros(3))
    (name,) = {"pixel_values", "hidden_states"} & kwargs.keys()
    generator = torch.Generator().manual_seed(seed)
    kwargs[name] = torch.randn(kwargs[name].shape, generator=generator)
    module: Any = tower.module
    block = module.blocks[0] if tower.family == "qwen" else module.encoder.layers[0]
    seen: list[torch.Tensor] = []

    def keep(_module: Any, inputs: Any, named: Any, output: Any) -> None:
        seen.append(inputs[0] if inputs else named["hidden_states"])
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            out = module(*args, **kwargs)
    finally:
        handle.remove()
    return [*seen, *(value for value in out.values() if isinstance(value, torch.Tensor))]


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_weight_of_a_tower_is_in_one_part(kind: str) -> None:
    tower = find_tower(ENCODERS[kind]())
    parts = tower_parts(tower)
    depth = sum(name.startswith("block") for name in parts)
    assert list(parts) == ["embedding", "attention1", *(f"block{n + 1}" for n in range(depth)), "head"]
    module: Any = tower.module
    assert depth == len(module.blocks if tower.family == "qwen" else module.encoder.layers)
    assert all(parts.values())
    assert set(parts["attention1"]) < set(parts["block1"])
    rest = [name for part, names in parts.items() if part != "attention1" for name in names]
    assert sorted(rest) == sorted(name for name, _ in tower.module.named_parameters())
    attention = {id(p) for p in tower.first_attention.parameters()}
    named = dict(tower.module.named_parameters())
    extra = [name for name in parts["attention1"] if id(named[name]) not in attention]
    assert extra
    assert all("norm1" in name for name in extra)
    assert len(attention) + len(extra) == len(parts["attention1"])


@pytest.mark.parametrize("kind", ENCODERS)
def test_all_parts_of_the_guide_make_the_guide_and_the_first_ones_its_first_block(kind: str) -> None:
    make = ENCODERS[kind]
    mine, guide = find_tower(make(seed=0)), find_tower(make(seed=1))
    replace_parts(mine, guide, list(tower_parts(mine)))
    assert all(torch.equal(a, b) for a, b in zip(run(mine), run(guide), strict=True))

    own = find_tower(make(seed=0))
    mine = find_tower(make(seed=0))
    replace_parts(mine, guide, ["embedding"])
    assert torch.equal(run(mine)[0], run(guide)[0])
    assert not torch.equal(run(mine)[1], run(guide)[1])
    replace_parts(mine, guide, ["block1"])
    assert torch.equal(run(mine)[1], run(guide)[1])
    assert not torch.equal(run(mine)[-1], run(guide)[-1])
    weights = mine.module.state_dict()
    later = {name for part in ("block2", "head") for name in tower_parts(own)[part]}
    assert all(torch.equal(weights[name], value) for name, value in own.module.state_dict().items() if name in later)


def test_the_first_attention_comes_with_its_norm_and_nothing_else() -> None:
    mine, guide = find_tower(tiny_random.clip_vision(seed=0)), find_tower(tiny_random.clip_vision(seed=1))
    before = {name: value.clone() for name, value in mine.module.state_dict().items()}
    replace_parts(mine, guide, ["attention1"])
    its = guide.module.state_dict()
    changed = {name for name, value in mine.module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(tower_parts(mine)["attention1"])
    assert all(torch.equal(mine.module.state_dict()[name], its[name]) for name in changed)


def test_positions_of_another_image_size_are_interpolated() -> None:
    mine = find_tower(tiny_random.clip_vision(image_size=84))
    guide = find_tower(tiny_random.clip_vision(seed=1, image_size=56))
    replace_parts(mine, guide, ["embedding"])
    name = "embeddings.position_embedding.weight"
    new, theirs = mine.module.state_dict()[name], guide.module.state_dict()[name]
    assert torch.equal(new[0], theirs[0])
    for channel in (0, 7, 31):
        image = Image.fromarray(theirs[1:, channel].reshape(4, 4).numpy())
        wanted = torch.from_numpy(np.array(image.resize((6, 6), Image.Resampling.BICUBIC)))
        assert torch.allclose(new[1:, channel].reshape(6, 6), wanted, atol=1e-5)


def test_the_precision_stays_the_towers_own() -> None:
    mine, guide = find_tower(tiny_random.clip_vision().bfloat16()), find_tower(tiny_random.clip_vision(seed=1))
    replace_parts(mine, guide, ["block1"])
    weight = mine.module.encoder.layers[0].mlp.fc1.weight  # type: ignore[union-attr,index]
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, guide.module.encoder.layers[0].mlp.fc1.weight.bfloat16())  # type: ignore[union-attr,index]


@pytest.mark.parametrize(
    ("guide", "part", "message"),
    [
        (
            tiny_random.clip_vision(),
            "attention",
            "part 'attention' is unknown: choose of embedding, attention1 to attention3, block1",
        ),
        (tiny_random.siglip_vision(), "embedding", "the guide is a siglip_vision_model, this encoder a clip"),
        (tiny_random.qwen2_vl(), "block1", "the guide is a qwen2_vl"),
        (clip_with(hidden_size=48), "embedding", "the guide is 48 wide, this encoder 32"),
        (clip_with(num_attention_heads=8), "block1", "the guide has 8 attention heads, this encoder"),
        (clip_with(hidden_act="gelu"), "block1", "the guide has gelu as activation, this encoder"),
        (tiny_random.clip_vision(patch_size=28), "embedding", "the guide has 28 px a patch, this encoder 14"),
        (tiny_random.clip_vision(layers=2), "block3", "the guide has no encoder.layers.2"),
        (clip_with(intermediate_size=40), "block1", "fc1.weight is 40x32, this encoder's"),
    ],
)
def test_what_cannot_be_replaced_is_told_and_changes_nothing(guide: Any, part: str, message: str) -> None:
    tower = find_tower(tiny_random.clip_vision(seed=3))
    before = {name: value.clone() for name, value in tower.module.state_dict().items()}
    with one_line(message):
        replace_parts(tower, find_tower(guide), [part])
    assert all(torch.equal(value, before[name]) for name, value in tower.module.state_dict().items())


def test_no_parts_and_a_defended_tower_are_refused() -> None:
    plain, other = tiny_random.clip_vision(), tiny_random.clip_vision(seed=1)
    with one_line("no part is named"):
        replace_parts(find_tower(plain), find_tower(other), [])
    inject(other, RAdaptConfig())
    with one_line("R-Adapt is in one of the two encoders"):
        replace_parts(find_tower(plain), find_tower(other), ["embedding"])
