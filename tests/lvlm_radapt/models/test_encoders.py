"""SigLIP and bare vision towers behind the pixel interface, against the library's own road."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from lvlm_radapt import RAdaptConfig, load_encoder, load_model, robustify
from lvlm_radapt.defences.radapt.anchor import white_anchor
from lvlm_radapt.defences.radapt.hooks import injected_anchor
from lvlm_radapt.loading.guides import guided_anchor, load_guide
from lvlm_radapt.loading.load import load_surrogate
from lvlm_radapt.towers import find_tower
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints, tiny_random
from tests.helpers.failures import one_line
from tests.helpers.first_attention import VIT, vit_first_attention
from tests.helpers.inputs import noise

TEXTS = ["a red pig", "what", "describe the small red circle on the left with a word and one blue square please now"]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_encoder_equals_the_library_s(kind: str, tmp_path: Path) -> None:
    is_clip = kind == "clip"
    folder = (tiny_checkpoints.save_clip if is_clip else tiny_checkpoints.save_siglip)(tmp_path)
    encoder = load_encoder(folder)
    stock_class = transformers.CLIPModel if is_clip else transformers.SiglipModel
    stock = stock_class.from_pretrained(folder, attn_implementation="eager").eval()
    images = [noise(80, 60, i) for i in range(2)]
    batch = encoder.pixels(images)
    values = encoder.image_processor(images=images, return_tensors="pt")["pixel_values"]
    hidden = [states[:, -16:] for states in stock.vision_model(values, output_hidden_states=True).hidden_states]
    assert encoder.features(batch).shape == (2, 16, 32)
    torch.testing.assert_close(encoder.features(batch), hidden[-2])
    torch.testing.assert_close(load_encoder(folder, feature_layer=-1).features(batch), hidden[-1])
    # SigLIP was trained with the padding attended to
    padding = {"padding": True} if is_clip else {"padding": "max_length", "max_length": 16, "truncation": True}
    tokens = dict(encoder.tokenizer(TEXTS, return_tensors="pt", **padding))
    mask = {"attention_mask": tokens["attention_mask"]} if is_clip else {}
    out = stock(input_ids=tokens["input_ids"], pixel_values=values, **mask)
    texts = encoder.text_features(TEXTS)
    torch.testing.assert_close(nn.functional.normalize(encoder.image_features(batch)), out.image_embeds)
    torch.testing.assert_close(nn.functional.normalize(texts), out.text_embeds)
    for i, text in enumerate(TEXTS):  # a text does not depend on its neighbours' lengths
        torch.testing.assert_close(encoder.text_features([text])[0], texts[i])
    x = batch.x.clone().requires_grad_()
    encoder.image_features(batch.replace(x)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    with pytest.raises(UserError, match="image encoder"):
        encoder.features(batch, at="projector")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_bare_tower_has_features_but_no_texts(kind: str, tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_vision(tmp_path, kind)
    encoder = load_encoder(folder)
    stock = getattr(transformers, {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}[kind])
    model = stock.from_pretrained(folder, attn_implementation="eager").eval()
    image = noise(80, 60)
    batch = encoder.pixels([image])
    values = encoder.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    out = model(values, output_hidden_states=True)
    torch.testing.assert_close(encoder.features(batch), out.hidden_states[-2][:, -16:])
    with pytest.raises(UserError, match="bare vision tower: for texts") as error:
        encoder.text_features(["a"])
    assert "\n" not in str(error.value)
    if kind == "siglip":  # its embedding is the pooling head's, which the tower holds
        torch.testing.assert_close(encoder.image_features(batch), out.pooler_output)
    else:
        with pytest.raises(UserError, match="without a projection"):
            encoder.image_features(batch)


def test_a_clip_tower_keeps_its_projection(tmp_path: Path) -> None:
    stock = tiny_random.clip_vision_with_projection()
    stock.save_pretrained(tmp_path)
    tiny_checkpoints.clip_processor(56).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "clip_vision_model"
    encoder = load_encoder(tmp_path)
    image = noise(80, 60)
    out = stock(encoder.image_processor(images=[image], return_tensors="pt")["pixel_values"], output_hidden_states=True)
    batch = encoder.pixels([image])
    torch.testing.assert_close(encoder.image_features(batch), out.image_embeds)
    torch.testing.assert_close(encoder.features(batch), out.hidden_states[-2][:, 1:])
    robustify(encoder)
    assert (encoder.image_features(batch) - out.image_embeds).abs().max() > 1e-2
    llava = load_model(tiny_checkpoints.save_llava(tmp_path / "llava"), tower=tmp_path)
    torch.testing.assert_close(llava.features(llava.pixels([image])), out.hidden_states[-2][:, 1:])
    with pytest.raises(UserError, match="bare vision tower: for texts"):
        encoder.text_features(["a"])


def test_a_siglip_tower_without_its_head_has_no_embedding(tmp_path: Path) -> None:
    encoder = load_encoder(tiny_checkpoints.save_vision(tmp_path, "siglip", vision_use_head=False))
    batch = encoder.pixels([noise(56, 56)])
    assert encoder.features(batch).shape == (1, 16, 32)
    with pytest.raises(UserError, match="no pooling head"):
        encoder.image_features(batch)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_weight_names_with_one_more_level_are_read(kind: str, tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_vision(tmp_path, kind)
    batch = load_encoder(folder).pixels([noise(56, 56)])
    expected = load_encoder(folder).features(batch)
    path = folder / "model.safetensors"
    weights = {f"vision_model.{name.removeprefix('vision_model.')}": w for name, w in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    assert torch.equal(load_encoder(folder).features(batch), expected)


def test_every_encoder_is_a_surrogate_and_no_lvlm(tmp_path: Path) -> None:
    folders = [
        tiny_checkpoints.save_clip(tmp_path / "clip"),
        tiny_checkpoints.save_siglip(tmp_path / "siglip"),
        tiny_checkpoints.save_vision(tmp_path / "clip-vision", "clip"),
        tiny_checkpoints.save_vision(tmp_path / "siglip-vision", "siglip"),
    ]
    for folder in folders:
        surrogate = load_surrogate(folder)
        assert surrogate.features(surrogate.pixels([noise(56, 56)])).shape == (1, 16, tiny_random.WIDTH)
        with pytest.raises(UserError, match="it is an image encoder"):
            load_model(folder)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_encoders_take_the_defence_with_their_own_normalisation(kind: str, tmp_path: Path) -> None:
    encoder = robustify(load_encoder(tiny_checkpoints.save_vision(tmp_path, kind)), RAdaptConfig(cutoff=20))
    batch = encoder.pixels([noise(56, 56)])
    defended = encoder.features(batch)
    anchor = injected_anchor(encoder.hf)
    assert anchor is not None
    white = white_anchor(encoder.hf, encoder.image_mean, encoder.image_std)
    assert (anchor.grid, anchor.prefix_tokens) == ((4, 4), 1 if kind == "clip" else 0)
    assert torch.equal(anchor.values, white.values)
    with encoder.undefended():
        assert (encoder.features(batch) - defended).abs().max() > 1e-2


@pytest.mark.parametrize("head", ["Model", "ForImageClassification"])
@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_a_plain_vision_transformer_is_a_surrogate_and_a_guide(kind: str, head: str, tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_vit(tmp_path / "model", kind, head=head)
    encoder = load_surrogate(folder)
    stock_class = getattr(transformers, f"{'ViT' if kind == 'vit' else 'Dinov2'}{head}")
    stock = stock_class.from_pretrained(folder, attn_implementation="eager").eval()
    images = [noise(80, 60, i) for i in range(2)]
    batch = encoder.pixels(images)
    values = encoder.image_processor(images=images, return_tensors="pt")["pixel_values"]
    assert torch.equal(encoder.pixel_values(batch), values)
    x = batch.x.clone().requires_grad_()
    found = encoder.features(batch.replace(x))
    torch.testing.assert_close(found, stock(values, output_hidden_states=True).hidden_states[-2][:, 1:])
    (gradient,) = torch.autograd.grad(found.sum(), x)
    leaf = values.clone().requires_grad_()
    stock(leaf, output_hidden_states=True).hidden_states[-2][:, 1:].sum().backward()
    assert leaf.grad is not None
    std = torch.tensor(encoder.image_std).view(3, 1, 1)
    torch.testing.assert_close(gradient, leaf.grad / std, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="without a projection"):
        load_encoder(folder).image_features(batch)
    bare = robustify(load_encoder(folder), RAdaptConfig(cutoff=20))
    if kind == "dinov2" and not hasattr(find_tower(bare.hf).first_attention, "q_proj"):  # before transformers 5.24
        with one_line("needs transformers 5.24 with DINOv2"):
            bare.features(batch)
        return
    assert (bare.features(batch) - found).abs().max() > 1e-2
    twin = load_encoder(folder)
    guided = guided_anchor(load_guide(folder, twin), twin)
    torch.testing.assert_close(guided.values, white_anchor(twin.hf, twin.image_mean, twin.image_std).values)
    robustify(twin, RAdaptConfig(cutoff=None, alpha=0.5, anchor="guided"), guided)
    assert (twin.features(batch) - found).abs().max() > 1e-2


def test_the_white_anchor_of_a_plain_vision_transformer_by_hand() -> None:
    model = tiny_random.vit()
    tower = find_tower(model)
    white = torch.tensor(tower.white()).reshape(3, 1, 1).expand(3, 56, 56)
    anchor = white_anchor(model)
    assert (anchor.grid, anchor.prefix_tokens, tuple(anchor.values.shape)) == ((4, 4), 1, (17, 32))
    assert (anchor.values - vit_first_attention(model.state_dict(), white, 14, 4, VIT)).abs().max() < 1e-5
    assert anchor.values.std(0).max() > 0.01


def test_siglip_2_of_one_size_says_siglip_and_is_read(tmp_path: Path) -> None:
    """Its releases of one image size have SigLIP's model_type; the one of any size, siglip2, is refused by name."""
    folder = tiny_checkpoints.save_siglip(tmp_path)
    assert load_encoder(folder).embeds_images
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(UserError, match=r"'siglip2' is no image encoder that is supported, only .*siglip.*vit"):
        load_encoder(folder)
