"""Hidden states of a tower that is run no further than needed: transformers' own, and no block above them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lvlm_radapt import load_encoder, load_model, robustify
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.models.speedups import hidden_states


@pytest.fixture(scope="module")
def tower():
    return load_encoder("tiny-clip").tower


@pytest.fixture(scope="module")
def pixels(tower):
    side = tower.config.image_size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def blocks_run(tower, function):
    seen = []
    handles = [
        block.register_forward_pre_hook(lambda _module, _args, n=n: seen.append(n))
        for n, block in enumerate(tower.encoder.layers, start=1)
    ]
    try:
        return function(), seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("layers", [[-2], [-1], [1], [0], [2, -2], [-2, 1, 0]], ids=str)
def test_states_are_transformers_own_and_no_block_above_is_run(tower, pixels, layers):
    own = tower(pixels, output_hidden_states=True).hidden_states
    states, run = blocks_run(tower, lambda: hidden_states.read(tower, pixels, layers))
    assert all(torch.equal(state, own[layer]) for state, layer in zip(states, layers, strict=True))
    # what the first block gets is no block's output: for that alone the whole tower runs
    deepest = len(own) - 1 if 0 in layers else max(range(len(own))[layer] for layer in layers)
    assert run == list(range(1, deepest + 1))


def test_the_tower_itself_stays_whole(tower, pixels):
    own = tower(pixels)
    hidden_states.read(tower, pixels, [1])
    after, run = blocks_run(tower, lambda: tower(pixels))
    assert torch.equal(after.pooler_output, own.pooler_output)
    assert run == list(range(1, len(tower.encoder.layers) + 1))


def test_an_error_inside_leaves_nothing_behind(tower, pixels):
    with pytest.raises(ValueError, match="doesn't match model"):
        hidden_states.read(tower, pixels[:, :, :-14], [1])
    assert len(tower(pixels, output_hidden_states=True).hidden_states) == len(tower.encoder.layers) + 1
    with pytest.raises(IndexError):
        hidden_states.read(tower, pixels, [len(tower.encoder.layers) + 1])


def test_threads_share_a_tower(tower, pixels):
    own = tower(pixels, output_hidden_states=True).hidden_states
    layers = [1, -2, -1, 2] * 6
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda layer: hidden_states.read(tower, pixels, [layer])[0], layers))
    for layer, state in zip(layers, found, strict=True):
        torch.testing.assert_close(state, own[layer], rtol=1e-5, atol=1e-5)


def test_a_defended_model_is_read_once_per_block_and_prepared_once(pixels):
    model = load_model("tiny-llava")
    blocks = model.tower.encoder.layers
    hooks = [len(block._forward_hooks) for block in blocks]
    hidden_states.prepare(model.tower)
    assert [len(block._forward_hooks) for block in blocks] == hooks
    stock = hidden_states.read(model.tower, pixels, [-2])[0]
    robustify(model, RAdaptConfig())
    defended = hidden_states.read(model.tower, pixels, [-2])[0]
    assert not torch.equal(stock, defended)
    assert torch.equal(defended, model.tower(pixels, output_hidden_states=True).hidden_states[-2])
