"""Tiny transformers models with random weights: real classes and real code paths, built in milliseconds.

The weights come from a seed and are scaled up from the library's usual 0.02, so that attention and the
nonlinearities do something that a test can see. Nothing is downloaded.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from torch import nn

WIDTH = 32
VOCAB = 96
GLM_VIDEO = 86, 87
THINK, END_THINK = 88, 89
AUDIO_TOKEN = 85
IMAGE_TOKEN = 90
VIDEO_TOKEN = 91
VISION_START = 92
VISION_END = 93
PAD_TOKEN = 0
BOS_TOKEN = 1
EOS_TOKEN = 2
PINPOINTS = [[56, 112], [112, 56], [112, 112]]  # what views of 56 px an any-resolution model may cut


def randomise(model: nn.Module, seed: int) -> Any:
    """Draws every parameter from `seed` (norm weights around 1, to which Gemma 1 to 3 add 1 themselves, the rest
    N(0, 0.2^2)); eval mode, frozen."""
    generator = torch.Generator().manual_seed(seed)
    kinds = {place: type(module).__name__ for place, module in model.named_modules()}
    from_zero = {f"{place}.weight" for place, kind in kinds.items() if re.fullmatch(r"Gemma[23]?RMSNorm", kind)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            is_norm = "norm" in name or "ln_q" in name or "layrnorm" in name
            one = 0 if name in from_zero else 1
            value = one + 0.1 * noise if is_norm and name.endswith("weight") else 0.2 * noise
            parameter.copy_(value.to(parameter.dtype))
    return model.eval().requires_grad_(False)


_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 4,
}  # of every transformer here, whatever it reads
_TEXT: dict[str, Any] = {
    **_SIZES,
    "vocab_size": VOCAB,
    "num_hidden_layers": 2,
    "bos_token_id": BOS_TOKEN,
    "eos_token_id": EOS_TOKEN,
    "pad_token_id": PAD_TOKEN,
}


def clip_vision_config(*, image_size: int = 56, patch_size: int = 14, layers: int = 3, **kwargs: Any) -> Any:
    """A CLIPVisionConfig of width 32: by default 56 px, 4 x 4 patches, 3 layers, 4 heads."""
    sizes = {"num_hidden_layers": layers, "image_size": image_size, "patch_size": patch_size}
    return transformers.CLIPVisionConfig(projection_dim=16, **_SIZES, **sizes, **kwargs)


def clip_vision(*, seed: int = 0, **config: Any) -> Any:
    """CLIPVisionModel; `config` goes to `clip_vision_config`."""
    return randomise(transformers.CLIPVisionModel(clip_vision_config(**config)), seed)


def clip_vision_with_projection(*, seed: int = 0, **config: Any) -> Any:
    """CLIPVisionModelWithProjection; `config` goes to `clip_vision_config`."""
    return randomise(transformers.CLIPVisionModelWithProjection(clip_vision_config(**config)), seed)


def clip(*, seed: int = 0, **config: Any) -> Any:
    """CLIPModel with a two-layer text side; `config` goes to `clip_vision_config`."""
    text = {**_TEXT, "max_position_embeddings": 32, "projection_dim": 16}
    vision = clip_vision_config(**config).to_dict()
    full = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return randomise(transformers.CLIPModel(full), seed)


def llava(*, seed: int = 0, **config: Any) -> Any:
    """LlavaForConditionalGeneration: the CLIP tower above under a two-layer Llama; IMAGE_TOKEN is a patch."""
    text = transformers.LlamaConfig(**_TEXT, num_key_value_heads=4, max_position_embeddings=512)
    full = transformers.LlavaConfig(
        vision_config=clip_vision_config(**config),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return randomise(transformers.LlavaForConditionalGeneration(full), seed)


def vipllava(*, seed: int = 0) -> Any:
    """VipLlavaForConditionalGeneration over the same tower and language model, which reads two layers of the tower."""
    text = transformers.LlamaConfig(**_TEXT, num_key_value_heads=4, max_position_embeddings=512)
    full = transformers.VipLlavaConfig(
        vision_config=clip_vision_config(),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layers=[-2, 1],
    )
    return randomise(transformers.VipLlavaForConditionalGeneration(full), seed)


def siglip_vision_config(*, image_size: int = 56, patch_size: int = 14, layers: int = 3, **kwargs: Any) -> Any:
    """A SiglipVisionConfig of width 32: by default 56 px, 4 x 4 patches, 3 layers, 4 heads."""
    sizes = {"num_hidden_layers": layers, "image_size": image_size, "patch_size": patch_size}
    return transformers.SiglipVisionConfig(**_SIZES, **sizes, **kwargs)


def siglip_vision(*, seed: int = 0, **config: Any) -> Any:
    """SiglipVisionModel; `config` goes to `siglip_vision_config`."""
    return randomise(transformers.SiglipVisionModel(siglip_vision_config(**config)), seed)


def vit(*, seed: int = 0, head: str = "Model") -> Any:
    """ViTModel, or with another head, of width 32 on 56 px: 4 x 4 patches, 3 layers, 4 heads."""
    config = transformers.ViTConfig(**_SIZES, num_hidden_layers=3, image_size=56, patch_size=14, num_labels=5)
    return randomise(getattr(transformers, f"ViT{head}")(config), seed)


def dinov2(*, seed: int = 0, head: str = "Model") -> Any:
    """Dinov2Model, or with another head, of width 32 with positions of 84 px: 6 x 6 patches, 3 layers, 4 heads."""
    config = transformers.Dinov2Config(**_SIZES, num_hidden_layers=3, image_size=84, patch_size=14, num_labels=5)
    return randomise(getattr(transformers, f"Dinov2{head}")(config), seed)


def siglip(*, seed: int = 0, **config: Any) -> Any:
    """SiglipModel with a two-layer text side of 16 tokens; `config` goes to `siglip_vision_config`."""
    text = {**_TEXT, "max_position_embeddings": 16, "projection_size": WIDTH}
    vision = siglip_vision_config(**config).to_dict()
    return randomise(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)), seed)


def llava_next(*, seed: int = 0, **config: Any) -> Any:
    """LlavaNextForConditionalGeneration: the CLIP tower above on views of 56 px under a two-layer Llama."""
    text = transformers.LlamaConfig(**_TEXT, num_key_value_heads=4, max_position_embeddings=512)
    full = transformers.LlavaNextConfig(
        vision_config=clip_vision_config(**config),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=PINPOINTS,
    )
    return randomise(transformers.LlavaNextForConditionalGeneration(full), seed)


def llava_onevision(*, seed: int = 0, vision_aspect_ratio: str = "anyres_max_2", **config: Any) -> Any:
    """LlavaOnevisionForConditionalGeneration: the SigLIP tower above without its head on views of 56 px under a
    two-layer Qwen2; crops of more than two views' area are shrunk."""
    text = transformers.Qwen2Config(
        **_TEXT, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False
    )
    full = transformers.LlavaOnevisionConfig(
        vision_config=siglip_vision_config(vision_use_head=False, **config),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=vision_aspect_ratio,
    )
    return randomise(transformers.LlavaOnevisionForConditionalGeneration(full), seed)


def _qwen_text() -> dict[str, Any]:
    return {
        **_TEXT,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        # sections of the rotary half (head size 8, half 4): time, height, width
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    }


def gemma3(*, seed: int = 0) -> Any:
    """Gemma3ForConditionalGeneration: the SigLIP tower above without its head, four patches averaged into a token, a
    language model of one layer with windows of 8 tokens and one that sees everything."""
    text = transformers.Gemma3TextConfig(
        **_TEXT,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=512,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    full = transformers.Gemma3Config(
        vision_config=siglip_vision_config(vision_use_head=False),
        text_config=text,
        mm_tokens_per_image=4,
        boi_token_index=VISION_START,
        eoi_token_index=VISION_END,
        image_token_index=IMAGE_TOKEN,
        bos_token_id=BOS_TOKEN,
        eos_token_id=EOS_TOKEN,
        pad_token_id=PAD_TOKEN,
    )
    return randomise(transformers.Gemma3ForConditionalGeneration(full), seed)


def paligemma(*, seed: int = 0, version: int = 1) -> Any:
    """PaliGemmaForConditionalGeneration: the SigLIP tower above without its head under a two-layer Gemma; version 2: a
    Gemma 2, whose first layer has windows of 8 tokens, with bounds on its attention and its logits."""
    sizes: dict[str, Any] = {**_TEXT, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512}
    second = {"query_pre_attn_scalar": 8, "sliding_window": 8, "final_logit_softcapping": 3.0}
    text = transformers.GemmaConfig(**sizes) if version == 1 else transformers.Gemma2Config(**sizes, **second)
    full = transformers.PaliGemmaConfig(
        vision_config=siglip_vision_config(vision_use_head=False),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vocab_size=VOCAB,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        bos_token_id=BOS_TOKEN,
        eos_token_id=EOS_TOKEN,
        pad_token_id=PAD_TOKEN,
    )
    model = randomise(transformers.PaliGemmaForConditionalGeneration(full), seed)
    model.get_input_embeddings().weight.mul_(0.2)  # tied to the head: larger ones repeat the last word
    return model


def idefics3(*, seed: int = 0, kind: str = "Idefics3") -> Any:
    """Idefics3ForConditionalGeneration, or SmolVLM's: SigLIP's layers on views of 56 px, four patches shuffled into a
    token, a two-layer Llama."""
    text = transformers.LlamaConfig(**_TEXT, num_key_value_heads=4, max_position_embeddings=512)
    full = getattr(transformers, f"{kind}Config")(
        vision_config={**_SIZES, "num_hidden_layers": 2, "image_size": 56, "patch_size": 14},
        text_config=text,
        scale_factor=2,
        image_token_id=IMAGE_TOKEN,
        pad_token_id=PAD_TOKEN,
        tie_word_embeddings=False,
    )
    return randomise(getattr(transformers, f"{kind}ForConditionalGeneration")(full), seed)


def internvl(*, seed: int = 0) -> Any:
    """InternVLForConditionalGeneration: its own tower on views of 56 px, with norms of queries and keys, four patches
    shuffled into a token, a two-layer Qwen2."""
    vision = {**_SIZES, "num_hidden_layers": 2, "image_size": [56, 56], "patch_size": [14, 14]}
    text = transformers.Qwen2Config(
        **_TEXT, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False
    )
    full = transformers.InternVLConfig(
        vision_config={**vision, "use_qk_norm": True, "attention_bias": True},
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return randomise(transformers.InternVLForConditionalGeneration(full), seed)


def aya_vision(*, seed: int = 0) -> Any:
    """AyaVisionForConditionalGeneration: the SigLIP tower above without its head on views of 56 px, four patches
    shuffled into a token, a two-layer Cohere 2 whose first layer has windows of 8 tokens."""
    text = transformers.Cohere2Config(
        **_TEXT,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    full = transformers.AyaVisionConfig(
        vision_config=siglip_vision_config(vision_use_head=False), text_config=text, image_token_index=IMAGE_TOKEN
    )
    return randomise(transformers.AyaVisionForConditionalGeneration(full), seed)


def _pixtral(kind: str, seed: int, **config: Any) -> Any:
    text = transformers.MistralConfig(
        **_TEXT, num_key_value_heads=2, head_dim=8, max_position_embeddings=512, sliding_window=None
    )
    vision = {**_SIZES, "model_type": "pixtral", "num_hidden_layers": 2, "image_size": 112, "patch_size": 14}
    full = getattr(transformers, f"{kind}Config")(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
        **config,
    )
    return randomise(getattr(transformers, f"{kind}ForConditionalGeneration")(full), seed)


def mistral3(*, seed: int = 0) -> Any:
    """Mistral3ForConditionalGeneration: two layers of Pixtral's tower, 2 x 2 patches of 14 px merged into a token, a
    two-layer Mistral."""
    return _pixtral("Mistral3", seed, spatial_merge_size=2)


def pixtral(*, seed: int = 0) -> Any:
    """LlavaForConditionalGeneration over the same tower, each patch a token."""
    return _pixtral("Llava", seed, vision_feature_select_strategy="full")


def gemma4(*, seed: int = 0, large: bool = False) -> Any:
    """Gemma4ForConditionalGeneration: two vision layers, 2 x 2 patches of 4 px averaged into a token; two language
    layers with windows of 8 tokens and two that see everything.

    As the small ones, an embedding of each token in every layer, the last two layers share keys and values, and the
    tower's numbers are bounded. As the `large` ones, tokens of an image see each other, two of four experts a token,
    values that are keys, and image tokens that are standardised.
    """
    text = {
        **_TEXT,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "sliding_window": 8,
        "max_position_embeddings": 512,
        "final_logit_softcapping": 20.0,
        "hidden_size_per_layer_input": 0,
    }
    small_text = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 2}
    large_text = {"attention_k_eq_v": True, "use_bidirectional_attention": "vision", "enable_moe_block": True}
    large_text |= {
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": WIDTH,
        "num_global_key_value_heads": 1,
    }
    sizes = {**_SIZES, "num_hidden_layers": 2, "num_key_value_heads": 4, "head_dim": 8}
    marks = dict(
        zip(("image", "video", "boi", "eoi"), (IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END), strict=True)
    )
    config = transformers.Gemma4Config(
        text_config=text | (large_text if large else small_text),
        vision_config=sizes
        | {"patch_size": 4, "pooling_kernel_size": 2, "position_embedding_size": 160}
        | {"standardize": large, "use_clipped_linears": not large},
        audio_token_id=AUDIO_TOKEN,
        tie_word_embeddings=False,
        **{f"{name}_token_id": token for name, token in marks.items()},
    )
    model = randomise(transformers.Gemma4ForConditionalGeneration(config), seed)
    # placeholders are never said, as by released ones: transformers feeds padding back in their place
    model.lm_head.weight[[IMAGE_TOKEN, VIDEO_TOKEN, AUDIO_TOKEN]] = 0
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.mul_(0.6)  # scores have no other scale: larger ones look at one token alone
    tower = model.model.vision_tower
    tower.patch_embedder.position_embedding_table.mul_(5)  # next to a patch's sum of many pixels they would not show
    for name, buffer in tower.named_buffers():
        bound = {"input_max": 6.0, "input_min": -6.0, "std_bias": 0.5, "std_scale": 0.2}.get(name.rpartition(".")[2])
        if bound is not None:
            buffer.fill_(bound)
    return model


def _qwen_tokens() -> dict[str, Any]:
    return {
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": VIDEO_TOKEN,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "tie_word_embeddings": False,
    }


def qwen2_vl(*, seed: int = 0, patch_size: int = 14, layers: int = 2) -> Any:
    """Qwen2VLForConditionalGeneration, width 32, two vision blocks, merge 2, two frames a patch."""
    vision = {
        "depth": layers,
        "embed_dim": WIDTH,
        "hidden_size": WIDTH,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = transformers.Qwen2VLConfig(text_config=_qwen_text(), vision_config=vision, **_qwen_tokens())
    return randomise(transformers.Qwen2VLForConditionalGeneration(config), seed)


def _merged_vision(layers: int, patch_size: int) -> dict[str, Any]:
    """What the vision towers of Qwen2.5-VL and Qwen3-VL share."""
    return {
        "depth": layers,
        "hidden_size": WIDTH,
        "out_hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": 4,
        "patch_size": patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def qwen2_5_vl(*, seed: int = 0, patch_size: int = 14, window_patches: int = 4, layers: int = 3) -> Any:
    """Qwen2_5_VLForConditionalGeneration, width 32: windows of 4 x 4 patches (56 px), full attention in
    the last vision block only, so that block 0 is windowed even on small grids."""
    vision = _merged_vision(layers, patch_size) | {
        "window_size": window_patches * patch_size,
        "fullatt_block_indexes": [layers - 1],
    }
    config = transformers.Qwen2_5_VLConfig(text_config=_qwen_text(), vision_config=vision, **_qwen_tokens())
    return randomise(transformers.Qwen2_5_VLForConditionalGeneration(config), seed)


def qwen3_vl(*, seed: int = 0, patch_size: int = 16, layers: int = 3) -> Any:
    """Qwen3VLForConditionalGeneration, width 32: 6 x 6 learned positions, and the outputs of the first two of
    three vision blocks added to those of the two language layers."""
    vision = _merged_vision(layers, patch_size) | {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
    text = {**_qwen_text(), "head_dim": WIDTH // 4}
    text["rope_parameters"]["mrope_interleaved"] = True
    return _positioned("Qwen3VL", text, vision, seed)


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH}


def qwen3_vl_moe(*, seed: int = 0) -> Any:
    """Qwen3VLMoeForConditionalGeneration: `qwen3_vl` with two of four experts a token in both language layers."""
    vision = _merged_vision(3, 16) | {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 1]}
    text = _qwen_text() | _EXPERTS | {"head_dim": WIDTH // 4}
    text["rope_parameters"]["mrope_interleaved"] = True
    return _positioned("Qwen3VLMoe", text, vision, seed)


def qwen3_5(*, seed: int = 0, experts: bool = False) -> Any:
    """Qwen3_5ForConditionalGeneration or, with `experts`, Qwen3_5MoeForConditionalGeneration: two vision blocks, 6 x 6
    learned positions, a recurrent language layer that remembers about ten tokens, and one of attention."""
    text = _qwen_text() | {
        "head_dim": WIDTH // 2,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    if experts:
        del text["intermediate_size"]
        text |= _EXPERTS | {"shared_expert_intermediate_size": WIDTH}
    text["rope_parameters"] |= {"mrope_interleaved": True, "partial_rotary_factor": 0.5}
    vision = _merged_vision(2, 16) | {"num_position_embeddings": 36}
    model = _positioned("Qwen3_5Moe" if experts else "Qwen3_5", text, vision, seed)
    model.model.language_model.layers[0].linear_attn.A_log.sub_(2)
    return model


def glm4v(*, seed: int = 0, kind: str = "Glm4v") -> Any:
    """Glm4vForConditionalGeneration, or Glm46V or Glm4vMoe: two vision blocks, 6 x 6 learned positions, two language
    layers; of the mixture the second one has two of four experts a token, and one for all."""
    vision = _merged_vision(2, 14) | {"image_size": 84}
    text = _qwen_text()
    if kind == "Glm4vMoe":
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH}
        text |= experts | {"n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": WIDTH // 2}
    ends = dict(zip(("image_start", "image_end"), (VISION_START, VISION_END), strict=True))
    ends |= dict(zip(("video_start", "video_end"), GLM_VIDEO, strict=True))
    tokens = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN}
    tokens |= {f"{place}_token_id": token for place, token in ends.items()}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens
    )
    return randomise(getattr(transformers, f"{kind}ForConditionalGeneration")(config), seed)


def _positioned(kind: str, text: dict[str, Any], vision: dict[str, Any], seed: int) -> Any:
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **_qwen_tokens())
    model = randomise(getattr(transformers, f"{kind}ForConditionalGeneration")(config), seed)
    model.model.visual.pos_embed.weight.mul_(20)  # next to a patch's sum of many pixels they would not show
    return model


def qwen_inputs(grids: list[tuple[int, int]], pixel_rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """One text with an image of every grid (patches high, wide; merge 2) and a few words around them.

    `pixel_rows` [sum(h*w), C*T*p*p] is passed on; the answer holds what the models' forward takes.
    """
    ids: list[int] = [BOS_TOKEN, 10, 11]
    types: list[int] = [0, 0, 0]
    for height, width in grids:
        count = (height // 2) * (width // 2)
        ids += [VISION_START] + [IMAGE_TOKEN] * count + [VISION_END, 12]
        types += [0] + [1] * count + [0, 0]
    ids += [13, 14]
    types += [0, 0]
    input_ids = torch.tensor([ids])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": torch.tensor([types]),
        "pixel_values": pixel_rows,
        "image_grid_thw": torch.tensor([[1, height, width] for height, width in grids]),
    }


def llava_inputs(pixel_values: torch.Tensor, *, patches: int = 16) -> dict[str, torch.Tensor]:
    """A batch of equal prompts with an image each: `pixel_values` [B, 3, H, W], `patches` tokens an image."""
    ids = [BOS_TOKEN, 10] + [IMAGE_TOKEN] * patches + [11, 12, 13]
    input_ids = torch.tensor([ids] * len(pixel_values))
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixel_values}


def anyres_inputs(views: torch.Tensor, *, size: tuple[int, int], tokens: int) -> dict[str, torch.Tensor]:
    """Equal prompts with an image each for LLaVA-NeXT and OneVision: `views` [B, V, 3, H, W], `size` (height,
    width) of the originals, `tokens` an image."""
    return {**llava_inputs(views, patches=tokens), "image_sizes": torch.tensor([size] * len(views))}
