"""Tiny random checkpoints on disk, as on the Hugging Face hub: weights, tokenizer, image processor."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    GenerationConfig,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
)

from tests.helpers import tiny_random

IM_START, IM_END = 94, 95
GLM_USER = 83
_TEXT = (
    "a the what is this image describe color shape how many one two three red green blue circle square small "
    "large left right of on background and with word pig yes no user assistant system you are helpful chat "
    ". , ? ! : ' between curious an artificial intelligence gives detailed polite answers to questions s"
)
WORDS = _TEXT.split()
LLAVA_TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %} ASSISTANT:{% endfor %}"
)
QWEN_TEMPLATE = (
    "<|im_start|>system\nyou are helpful<|im_end|>\n{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\n' }}"
)
GLM_TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "<|assistant|>{{ '\n' }}"
)
ONEVISION_TEMPLATE = (
    "{% for m in messages %}<|im_start|>user {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}\n{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}<|im_start|>assistant\n"
)


GEMMA_TEMPLATE = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}<start_of_turn>model\n"
)
PALIGEMMA_TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% if not loop.last %} {% endif %}{% endfor %}"
)


IDEFICS_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize }}{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
INTERNVL_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<IMG_CONTEXT>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
AYA_TEMPLATE = (
    "{% for m in messages %}<|START_OF_TURN_TOKEN|><|{{ 'USER' if m['role'] == 'user' else 'CHATBOT' }}_TOKEN|>"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
GEMMA4_TEMPLATE = (
    "{% for m in messages %}<|turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<turn|>\n{% endfor %}<|turn>model{{ '\n' }}"
)
MISTRAL_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST]{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}[IMG]{% else %}{{ c['text'] }}{% endif %}{% endfor %}[/INST]{% else %}"
    "{{ m['content'][0]['text'] + eos_token }}{% endif %}{% endfor %}"
)


def word_tokenizer(
    special: dict[int, str], *, bos: bool, eos: str, eos_after: bool = False, names: dict[str, str] | None = None
) -> Any:
    """A word-level tokenizer over WORDS that lower-cases everything but its special tokens.

    special: id -> token; bos: whether `<s>` opens every text; eos_after: whether `eos` closes it (CLIP);
    names: role -> token, of tokenizers whose processor asks for tokens by their role.
    """
    specials = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", **special}
    vocab = {token: index for index, token in specials.items()}
    free = (i for i in range(tiny_random.VOCAB) if i not in specials)
    vocab |= {word: next(free) for word in dict.fromkeys(WORDS)}
    vocab |= {f"w{i}": i for i in free}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos or eos_after:
        parts = ["<s>"] * bos + ["$A"] + [eos] * eos_after
        tokenizer.post_processor = TemplateProcessing(
            single=" ".join(parts), special_tokens=[("<s>", 1), (eos, vocab[eos])]
        )
    extra = [AddedToken(t, special=True, normalized=False) for t in specials.values() if t != eos]
    tokenizer.add_special_tokens(extra)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>" if bos else None,
        eos_token=eos,
        unk_token="<unk>",
        **({"additional_special_tokens": extra} if names is None else {"extra_special_tokens": names}),
        clean_up_tokenization_spaces=False,
    )


def letter_tokenizer(special: dict[int, str], *, bos: bool, eos: str) -> Any:
    """A token a letter, digit or mark, as Qwen3.5's own class, in which transformers opens every tokenizer of that
    family, makes them of a vocabulary without merges."""
    from transformers import Qwen3_5Tokenizer

    specials = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", **special}
    signs = iter(f"ĠĊ{string.ascii_letters}{string.digits}{string.punctuation}")
    vocab = {specials.get(i) or next(signs): i for i in range(tiny_random.VOCAB)}
    extra = [AddedToken(t, special=True, normalized=False) for t in specials.values()]
    tokens = {"pad_token": "<pad>", "eos_token": eos, "unk_token": "<unk>", "bos_token": "<s>" if bos else None}
    return Qwen3_5Tokenizer(vocab, [], additional_special_tokens=extra, **tokens)


def clip_processor(side: int, **kwargs: Any) -> CLIPImageProcessorPil:
    """Shortest edge to `side`, centre crop `side` x `side`, CLIP's mean and std."""
    crop = {"height": side, "width": side}
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop, **kwargs)


def _save(folder: Path, model: Any, tokenizer: Any, processor: Any, chat_template: str | None = None) -> Path:
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def _save_vicuna(folder: Path, model: Any, processor: Any, chat_template: str | None) -> Path:
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    tokenizer = word_tokenizer({tiny_random.IMAGE_TOKEN: "<image>"}, bos=True, eos="</s>")
    return _save(folder, model, tokenizer, processor, chat_template)


def _save_chatml(
    folder: Path,
    model: Any,
    processor: Any,
    chat_template: str | None,
    special: dict[int, str],
    tokenizer: Callable[..., Any] = word_tokenizer,
) -> Path:
    model.generation_config = GenerationConfig(eos_token_id=[IM_END, 2], pad_token_id=0)
    special = {**special, IM_START: "<|im_start|>", IM_END: "<|im_end|>"}
    return _save(folder, model, tokenizer(special, bos=False, eos="<|im_end|>"), processor, chat_template)


def save_llava(folder: Path, *, chat_template: str | None = LLAVA_TEMPLATE, seed: int = 0, **vision: Any) -> Path:
    """tiny_random.llava with a 56 px canvas, 4 x 4 patches."""
    model = tiny_random.llava(seed=seed, **vision)
    return _save_vicuna(folder, model, clip_processor(model.config.vision_config.image_size), chat_template)


def save_vipllava(folder: Path) -> Path:
    """tiny_random.vipllava, a family that this package does not have."""
    model = tiny_random.vipllava()
    return _save_vicuna(folder, model, clip_processor(model.config.vision_config.image_size), LLAVA_TEMPLATE)


def save_llava_next(folder: Path, *, chat_template: str | None = LLAVA_TEMPLATE, seed: int = 1, **vision: Any) -> Path:
    """tiny_random.llava_next: views of 56 px, 4 x 4 patches each, of two up to four crops."""
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=tiny_random.PINPOINTS
    )
    return _save_vicuna(folder, tiny_random.llava_next(seed=seed, **vision), processor, chat_template)


def save_onevision(
    folder: Path, *, chat_template: str | None = ONEVISION_TEMPLATE, seed: int = 0, **config: Any
) -> Path:
    """tiny_random.llava_onevision: the views of `save_llava_next`, four crops shrunk to the area of two."""
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 56, "width": 56},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        image_grid_pinpoints=tiny_random.PINPOINTS,
    )
    special = {tiny_random.IMAGE_TOKEN: "<image>", tiny_random.VIDEO_TOKEN: "<video>"}
    return _save_chatml(folder, tiny_random.llava_onevision(seed=seed, **config), processor, chat_template, special)


def save_gemma3(folder: Path, *, chat_template: str | None = GEMMA_TEMPLATE, seed: int = 0) -> Path:
    """tiny_random.gemma3 with a 56 px canvas; as released, its processor's file leaves two settings open."""
    model = tiny_random.gemma3(seed=seed)
    model.generation_config = GenerationConfig(eos_token_id=[2, IM_END], pad_token_id=0)
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    special = dict(
        zip((tiny_random.IMAGE_TOKEN, tiny_random.VISION_START, tiny_random.VISION_END), names.values(), strict=True)
    )
    special |= {IM_START: "<start_of_turn>", IM_END: "<end_of_turn>"}
    tokenizer = word_tokenizer(special, bos=True, eos="</s>", names=names)
    processor = Gemma3ImageProcessorPil(size={"height": 56, "width": 56}, do_convert_rgb=None)
    return _save(folder, model, tokenizer, processor, chat_template)


def save_paligemma(folder: Path, *, chat_template: str | None = PALIGEMMA_TEMPLATE, **config: Any) -> Path:
    """tiny_random.paligemma with a 56 px canvas; a chat template is what released ones do not have."""
    model = tiny_random.paligemma(**config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    tokenizer = word_tokenizer({tiny_random.IMAGE_TOKEN: "<image>"}, bos=True, eos="</s>")
    processor = SiglipImageProcessorPil(size={"height": 56, "width": 56}, image_seq_length=16)
    return _save(folder, model, tokenizer, processor, chat_template)


def save_idefics3(folder: Path, *, kind: str = "Idefics3", chat_template: str | None = None, seed: int = 0) -> Path:
    """tiny_random.idefics3: views of 56 px, of up to four crops and the whole image."""
    model = tiny_random.idefics3(kind=kind, seed=seed)
    model.generation_config = GenerationConfig(eos_token_id=[2, IM_END], pad_token_id=0)
    special = {tiny_random.IMAGE_TOKEN: "<image>", 91: "<fake_token_around_image>", 92: "<global-img>"}
    special |= {80 + i: f"<row_{i // 2 + 1}_col_{i % 2 + 1}>" for i in range(4)}
    special |= {IM_START: "<|im_start|>", IM_END: "<end_of_utterance>"}
    tokenizer = word_tokenizer(special, bos=kind == "Idefics3", eos="</s>")
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(
        size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
    )
    template = IDEFICS_TEMPLATE if kind == "Idefics3" else f"<|im_start|>{IDEFICS_TEMPLATE}"
    return _save(folder, model, tokenizer, processor, chat_template or template)


def save_smolvlm(folder: Path) -> Path:
    """The same as SmolVLM."""
    return save_idefics3(folder, kind="SmolVLM")


def save_internvl(folder: Path, *, chat_template: str | None = INTERNVL_TEMPLATE, seed: int = 2) -> Path:
    """tiny_random.internvl: views of 56 px, of up to four crops and the whole image."""
    model = tiny_random.internvl(seed=seed)
    model.generation_config = GenerationConfig(eos_token_id=[IM_END, 2], pad_token_id=0)
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    names["video_token"] = "<video>"
    ids = (tiny_random.VISION_START, tiny_random.VISION_END, tiny_random.IMAGE_TOKEN, tiny_random.VIDEO_TOKEN)
    special = dict(zip(ids, names.values(), strict=True)) | {IM_START: "<|im_start|>", IM_END: "<|im_end|>"}
    tokenizer = word_tokenizer(special, bos=False, eos="<|im_end|>", names=names)
    processor = transformers.GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56},
        max_patches=4,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return _save(folder, model, tokenizer, processor, chat_template)


def save_aya_vision(folder: Path, *, chat_template: str | None = AYA_TEMPLATE, seed: int = 2) -> Path:
    """tiny_random.aya_vision: views of 56 px, of up to four crops and the whole image."""
    model = tiny_random.aya_vision(seed=seed)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=IM_END, pad_token_id=0)
    names = ("START_OF_IMG", "END_OF_IMG", "IMG_PATCH", "START_OF_TURN_TOKEN", "END_OF_TURN_TOKEN")
    ids = (tiny_random.VISION_START, tiny_random.VISION_END, tiny_random.IMAGE_TOKEN, IM_START, IM_END)
    special = {token: f"<|{name}|>" for token, name in zip(ids, names, strict=True)}
    special |= {83: "<|USER_TOKEN|>", 84: "<|CHATBOT_TOKEN|>", 85: "TILE_GLOBAL"}
    special |= {85 + number: f"TILE_{number}" for number in range(1, 5)}
    tokenizer = word_tokenizer(special, bos=True, eos="<|END_OF_TURN_TOKEN|>")
    half = [0.5, 0.5, 0.5]
    processor = transformers.GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, max_patches=4, image_mean=half, image_std=half
    )
    return _save(folder, model, tokenizer, processor, chat_template)


def save_gemma4(
    folder: Path, *, chat_template: str | None = GEMMA4_TEMPLATE, seed: int = 0, large: bool = False
) -> Path:
    """tiny_random.gemma4, patches of 4 px, canvases of up to 280 of them."""
    model = tiny_random.gemma4(seed=seed, large=large)
    model.generation_config = GenerationConfig(eos_token_id=[2, IM_END], pad_token_id=0)
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>"}
    names |= {"boa_token": "<|audio>", "eoa_token": "<audio|>"}
    ids = (tiny_random.IMAGE_TOKEN, tiny_random.VISION_START, tiny_random.VISION_END, tiny_random.AUDIO_TOKEN, 86, 87)
    special = dict(zip(ids, names.values(), strict=True))
    special |= {tiny_random.VIDEO_TOKEN: "<|video|>", IM_START: "<|turn>", IM_END: "<turn|>"}
    special |= {tiny_random.THINK: "<|channel>", tiny_random.END_THINK: "<channel|>"}
    tokenizer = word_tokenizer(special, bos=True, eos="</s>", names=names)
    processor = transformers.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, pooling_kernel_size=2)
    return _save(folder, model, tokenizer, processor, chat_template)


def save_mistral3(
    folder: Path,
    *,
    chat_template: str | None = MISTRAL_TEMPLATE,
    seed: int = 0,
    make: Callable[..., Any] = tiny_random.mistral3,
) -> Path:
    """tiny_random.mistral3 or .pixtral, patches of 14 px, canvases up to 112x112; as released, its image processor's
    file knows nothing of merged patches."""
    model = make(seed=seed)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    marks = ("[SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", "[/SYSTEM_PROMPT]")
    special = dict(enumerate(marks, start=tiny_random.IMAGE_TOKEN - 1))
    processor = transformers.PixtralImageProcessorPil(
        size={"longest_edge": 112}, patch_size={"height": 14, "width": 14}
    )
    return _save(folder, model, word_tokenizer(special, bos=True, eos="</s>"), processor, chat_template)


def save_qwen(folder: Path, *, version: str = "2.5", chat_template: str | None = QWEN_TEMPLATE, seed: int = 0) -> Path:
    """tiny_random.qwen2_5_vl or .qwen2_vl, patches of 14 px, canvases from 56x56 up to 28,000 px."""
    model = (tiny_random.qwen2_5_vl if version == "2.5" else tiny_random.qwen2_vl)(seed=seed)
    size = {"shortest_edge": 56 * 56, "longest_edge": 28_000}
    return _save_qwen(folder, model, chat_template, Qwen2VLImageProcessorPil(size=size))


def save_qwen3(
    folder: Path,
    *,
    chat_template: str | None = QWEN_TEMPLATE,
    seed: int = 0,
    make: Callable[..., Any] = tiny_random.qwen3_vl,
) -> Path:
    """tiny_random.qwen3_vl, or what `make` makes, patches of 16 px, canvases from 64x64 up to 36,000 px; mean and std
    one half."""
    return _save_qwen(folder, make(seed=seed), chat_template, _qwen3_processor())


def save_qwen3_5(
    folder: Path, *, chat_template: str | None = QWEN_TEMPLATE, seed: int = 0, experts: bool = False
) -> Path:
    """tiny_random.qwen3_5 with the images of `save_qwen3` and one token a letter."""
    model = tiny_random.qwen3_5(seed=seed, experts=experts)
    return _save_qwen(folder, model, chat_template, _qwen3_processor(), tokenizer=letter_tokenizer)


def _qwen3_processor() -> Any:
    size = {"shortest_edge": 64 * 64, "longest_edge": 36_000}
    half = [0.5, 0.5, 0.5]
    return Qwen2VLImageProcessorPil(size=size, patch_size=16, image_mean=half, image_std=half)


def _save_qwen(folder: Path, model: Any, chat_template: str | None, processor: Any, **tokens: Any) -> Path:
    special = {
        tiny_random.IMAGE_TOKEN: "<|image_pad|>",
        tiny_random.VIDEO_TOKEN: "<|video_pad|>",
        tiny_random.VISION_START: "<|vision_start|>",
        tiny_random.VISION_END: "<|vision_end|>",
        tiny_random.THINK: "<think>",
        tiny_random.END_THINK: "</think>",
    }
    return _save_chatml(folder, model, processor, chat_template, special, **tokens)


def save_glm(
    folder: Path, *, chat_template: str | None = GLM_TEMPLATE, seed: int = 0, kind: str = "Glm4v", images: str = "Glm4v"
) -> Path:
    """tiny_random.glm4v, patches of 14 px, canvases from 56x56 up to 28,000 px, which its processor counts twice."""
    size = {"shortest_edge": 2 * 56 * 56, "longest_edge": 56_000}
    processor = getattr(transformers, f"{images}ImageProcessorPil")(size=size)
    model = tiny_random.glm4v(seed=seed, kind=kind)
    model.generation_config = GenerationConfig(eos_token_id=[2, GLM_USER], pad_token_id=0)
    named = {tiny_random.IMAGE_TOKEN: "image", tiny_random.VIDEO_TOKEN: "video", GLM_USER: "user", 84: "assistant"}
    named |= {tiny_random.VISION_START: "begin_of_image", tiny_random.VISION_END: "end_of_image"}
    named |= dict(zip(tiny_random.GLM_VIDEO, ("begin_of_video", "end_of_video"), strict=True))
    special = {token: f"<|{word}|>" for token, word in named.items()}
    special |= {81: "[gMASK]", 82: "<sop>", tiny_random.THINK: "<think>", tiny_random.END_THINK: "</think>"}
    return _save(folder, model, word_tokenizer(special, bos=False, eos="</s>"), processor, chat_template)


def save_clip(folder: Path, *, seed: int = 0, **vision: Any) -> Path:
    """tiny_random.clip with a 56 px canvas."""
    model = tiny_random.clip(seed=seed, **vision)
    tokenizer = word_tokenizer({}, bos=True, eos="</s>", eos_after=True)
    return _save(folder, model, tokenizer, clip_processor(model.config.vision_config.image_size))


def save_siglip(folder: Path, *, seed: int = 0, **vision: Any) -> Path:
    """tiny_random.siglip with a 56 px canvas."""
    tokenizer = word_tokenizer({}, bos=False, eos="</s>", eos_after=True)
    processor = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    return _save(folder, tiny_random.siglip(seed=seed, **vision), tokenizer, processor)


def save_vision(folder: Path, kind: str, *, seed: int = 0, **vision: Any) -> Path:
    """A bare tower without texts, `kind` clip or siglip, with a 56 px canvas."""
    is_clip = kind == "clip"
    model = (tiny_random.clip_vision if is_clip else tiny_random.siglip_vision)(seed=seed, **vision)
    model.save_pretrained(folder)
    square = {"height": 56, "width": 56}
    (clip_processor(56) if is_clip else SiglipImageProcessorPil(size=square)).save_pretrained(folder)
    return folder


def save_vit(folder: Path, kind: str = "vit", *, head: str = "Model") -> Path:
    """tiny_random.vit or .dinov2 with a 56 px canvas, and a head of that name."""
    if kind == "vit":
        processor: Any = transformers.ViTImageProcessorPil(size={"height": 56, "width": 56})
    else:
        crop = {"height": 56, "width": 56}
        processor = transformers.BitImageProcessorPil(size={"shortest_edge": 64}, crop_size=crop)
    model = (tiny_random.vit if kind == "vit" else tiny_random.dinov2)(head=head)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def words(text: str) -> list[str]:
    """What the tokenizer makes of `text`, as words; for tests that rebuild ids by hand."""
    return re.findall(r"\w+|[^\w\s]+", text.lower())
