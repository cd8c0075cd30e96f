"""The low-rank change of tiny-llava that the demo puts in."""

import json

import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from lvlm_radapt import load_model
from lvlm_radapt.embedded import scenes
from lvlm_radapt.embedded.hardened import CHANGE, shipped, write_low_rank
from lvlm_radapt.training.learned_anchor import read_features
from tools.embedded.hardened import pack

RANK = 16


def test_the_shipped_change_is_of_low_rank_in_the_tower_alone_and_holds_its_features(tmp_path):
    write_low_rank(tmp_path / "made")
    base, made = load_model("tiny-llava"), load_model(tmp_path / "made")
    assert made.tuned_from == "tiny-llava"
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path / "made", dtype=torch.float32).state_dict()
    was = base.hf.state_dict()
    moved = {name: stock[name] - was[name] for name in was if not torch.equal(stock[name], was[name])}
    assert len(moved) > 20
    for name, change in moved.items():
        assert name.startswith("model.vision_tower."), name
        assert torch.linalg.matrix_rank(change.flatten(1), rtol=1e-3) <= RANK, name
    # what it was trained for, on scenes of another split: features move less under an attack of its own
    drawn = [scenes.render(scenes.sample_scene("validation", 3, i)) for i in range(8)]

    def shift(model):
        batch = model.pixels(drawn)
        x = batch.x.clone().requires_grad_()
        clean = read_features(base, batch).detach()
        start = read_features(model, batch.replace(x + 1e-3 * torch.randn_like(x)))
        (slope,) = torch.autograd.grad((start - clean).square().sum(), x)
        attacked = (batch.x + 4 / 255 * slope.sign()).clamp(0, 1)
        return (read_features(model, batch.replace(attacked)) - clean).square().mean().item()

    assert shift(made) < shift(base) / 2


def test_packing_the_merged_weights_gives_the_change_again(tmp_path):
    write_low_rank(tmp_path / "made")
    pack(tmp_path / "made", tmp_path / "packed")
    one, other = load_file(shipped() / CHANGE), load_file(tmp_path / "packed" / CHANGE)
    assert one.keys() == other.keys()
    for name in (name.removesuffix(".up") for name in one if name.endswith(".up")):
        ours, again = (change[f"{name}.up"].float() @ change[f"{name}.down"].float() for change in (one, other))
        torch.testing.assert_close(again, ours, rtol=0, atol=2e-3 * ours.abs().max().item())
    log = json.loads((tmp_path / "packed" / "training.json").read_bytes())
    assert (log["base"], log["settings"]["rank"], log["settings"]["method"]) == ("tiny-llava", RANK, "fare")
