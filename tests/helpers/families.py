"""The table of supported LVLM families: how the tests make a checkpoint of each, and the library's own road
through it, for one image and one question. A new family is one entry of FAMILIES."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import is_torchvision_available

from lvlm_radapt import load_model
from lvlm_radapt.models import LVLM, family
from lvlm_radapt.models.families import lvlm_families
from tests.helpers import tiny_checkpoints, tiny_random
from tests.helpers.slow import slow

if not is_torchvision_available():  # the processor's file takes one function of there, which the PIL file has too
    sys.modules["transformers.models.pixtral.image_processing_pixtral"] = image_processing_pil_pixtral
PixtralProcessor: Any = import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor
Inputs = dict[str, Tensor]
# a package that spells the number of a video's frames
processing_smolvlm.num2words = processing_smolvlm.num2words or str


@dataclass(frozen=True)
class Family:
    """save: writes a tiny random checkpoint; stock: the transformers class; inputs: what the stock processor
    gives for one image and one question (Qwen's needs torchvision: by hand); end: what closes an answer; processor: its
    processor's class, if AutoProcessor needs torchvision for it; release: the family in `released` whose small files it
    shares, if it has none of its own there; prefix: whether token types tell the
    answer from what stands before it, in place of the image from the text; question: what its processor is
    given for one; variant: another row runs the same code of ours; `make test` runs that one alone; pil: its image
    processor, if transformers 5.17 has it with torchvision alone: where that lacks, there is no such row."""

    name: str
    save: Callable[[Path], Path]
    stock: str
    inputs: Callable[[LVLM, Image.Image, str], Inputs]
    image_token: str
    end: str
    processor: str = ""
    release: str = ""
    prefix: bool = False
    question: str = "USER: <image>\n{} ASSISTANT:"
    variant: bool = False
    pil: str = ""

    @property
    def openable(self) -> bool:
        """Whether the installed packages open it, and its processor's file."""
        try:
            getattr(transformers, self.processor or self.stock)
        except ImportError:  # of Gemma 4 in transformers 5.17, without torchvision
            return False
        return not getattr(getattr(transformers, self.pil, None), "is_dummy", False)

    @property
    def record(self) -> family.Family:
        """The package's record of it."""
        return next(each for each in lvlm_families().values() if self.stock in each.available.values())

    def open_stock(self, folder: Path) -> Any:
        """The checkpoint as transformers alone opens it."""
        return getattr(transformers, self.stock).from_pretrained(folder, attn_implementation="eager").eval()


@dataclass(frozen=True)
class Case:
    """A model under test, and the same checkpoint as transformers alone opens it."""

    family: Family
    ours: LVLM
    stock: Any
    folder: Path

    def inputs(self, image: Image.Image, prompt: str) -> Inputs:
        return self.family.inputs(self.ours, image, prompt)

    def stock_loss(self, image: Image.Image, prompt: str, target: str, **changes: Tensor) -> Tensor:
        """The library's own loss over the target's tokens; `changes` replace inputs."""
        inputs = {**self.inputs(image, prompt), **changes}
        text = target + self.family.end
        answer = self.ours.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        before = inputs["input_ids"]
        labels = torch.cat([torch.full_like(before, -100), answer], 1)
        inputs["input_ids"] = torch.cat([before, answer], 1)
        inputs["attention_mask"] = torch.ones_like(labels)
        return self.stock(**self.typed(inputs, answer), labels=labels).loss

    def typed(self, inputs: Inputs, answer: Tensor) -> Inputs:
        """`inputs` with the token types of their ids, if they have any, the last of which are those of `answer`."""
        ids = inputs["input_ids"]
        types = ids == tiny_random.IMAGE_TOKEN
        if self.family.prefix:
            types = torch.arange(ids.shape[1]).expand_as(ids) >= ids.shape[1] - answer.shape[1]
        return inputs | {key: types.int() for key in inputs if key.endswith("token_type_ids")}

    def stock_answer(self, image: Image.Image, prompt: str, tokens: int, **kwargs: Any) -> str:
        inputs = self.inputs(image, prompt)
        out = self.stock.generate(**inputs, max_new_tokens=tokens, do_sample=False, num_beams=1, **kwargs)
        return self.ours.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def _processed_by(kind: str) -> Callable[[LVLM, Image.Image, str], Inputs]:
    """The inputs that LLaVA's or LLaVA-NeXT's own processor makes."""

    def inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
        processor = getattr(transformers, kind)(
            model.image_processor,
            model.tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
        return dict(processor(images=[image], text=[Family.question.format(prompt)], return_tensors="pt"))

    return inputs


def onevision_inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
    # the processor itself wants a video processor: only its count of image tokens is asked
    counter: Any = transformers.LlavaOnevisionProcessor.__new__(transformers.LlavaOnevisionProcessor)
    counter.image_processor, counter.num_image_tokens = model.image_processor, 16
    counter.vision_aspect_ratio = model.hf.config.vision_aspect_ratio
    vision = dict(model.image_processor(images=[image], return_tensors="pt"))
    count = counter._get_number_of_features(image.height, image.width, 56, 56)
    text = f"<|im_start|>user {'<image>' * count}\n{prompt}<|im_end|><|im_start|>assistant\n"
    del vision["batch_num_images"]
    return {**vision, **model.tokenizer([text], return_tensors="pt")}


def qwen_inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
    vision = model.image_processor(images=[image], return_tensors="pt")
    count = int(vision["image_grid_thw"].prod()) // 4
    text = (
        "<|im_start|>system\nyou are helpful<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * count
        + f"<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = model.tokenizer([text], return_tensors="pt")
    return {
        **vision,
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "mm_token_type_ids": (tokens["input_ids"] == tiny_random.IMAGE_TOKEN).int(),
    }


_GEMMA = "<start_of_turn>user\n<start_of_image>{}<end_of_turn>\n<start_of_turn>model\n"


def gemma3_inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
    processor = transformers.Gemma3Processor(model.image_processor, model.tokenizer, image_seq_length=4)
    return dict(processor(images=[image], text=[_GEMMA.format(prompt)], return_tensors="pt"))


def paligemma_inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
    # of a copy: the processor adds tokens to the tokenizer
    processor = transformers.PaliGemmaProcessor(model.image_processor, copy.deepcopy(model.tokenizer))
    inputs = dict(processor(images=[image], text=[f"<image>{prompt}"], return_tensors="pt"))
    del inputs["labels"]
    return inputs


def glm_inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
    vision = model.image_processor(images=[image], return_tensors="pt")
    placed = "<|image|>" * (int(vision["image_grid_thw"].prod()) // 4)
    text = f"[gMASK]<sop><|user|>\n<|begin_of_image|>{placed}<|end_of_image|>{prompt}<|assistant|>\n"
    tokens = model.tokenizer([text], return_tensors="pt")
    types = (tokens["input_ids"] == tiny_random.IMAGE_TOKEN).int()
    ids = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    return {**vision, **ids, "mm_token_type_ids": types}


_IDEFICS = "User:<image>{}<end_of_utterance>\nAssistant:"


def idefics3_inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
    # of a copy: the processor adds tokens to the tokenizer
    processor = transformers.Idefics3Processor(model.image_processor, copy.deepcopy(model.tokenizer), image_seq_len=4)
    return dict(processor(images=[image], text=[_IDEFICS.format(prompt)], return_tensors="pt"))


def smolvlm_inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
    processor = without_videos(transformers.SmolVLMProcessor, model.image_processor, model.tokenizer, image_seq_len=4)
    return dict(processor(images=[image], text=[f"<|im_start|>{_IDEFICS}".format(prompt)], return_tensors="pt"))


_INTERNVL = "<|im_start|>user\n<IMG_CONTEXT>\n{}<|im_end|>\n<|im_start|>assistant\n"


def internvl_inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
    processor = without_videos(
        transformers.InternVLProcessor, model.image_processor, model.tokenizer, image_seq_length=4
    )
    return dict(processor(images=[image], text=[_INTERNVL.format(prompt)], return_tensors="pt"))


_AYA = "<|START_OF_TURN_TOKEN|><|USER_TOKEN|><image>{}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"


def aya_inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
    processor = transformers.AyaVisionProcessor(model.image_processor, model.tokenizer, patch_size=28, img_size=56)
    return dict(processor(images=[image], text=[_AYA.format(prompt)], return_tensors="pt"))


_MISTRAL = "[INST][IMG]{}[/INST]"


def _pixtral_inputs(merge: int) -> Callable[[LVLM, Image.Image, str], Inputs]:
    """What Mistral 3's or Pixtral's own processor makes."""

    def inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
        processor = PixtralProcessor(model.image_processor, model.tokenizer, patch_size=14, spatial_merge_size=merge)
        return dict(processor(images=[image], text=[_MISTRAL.format(prompt)], return_tensors="pt"))

    return inputs


_GEMMA4 = "<|turn>user\n<|image|>{}<turn|>\n<|turn>model\n"


def gemma4_inputs(model: LVLM, image: Image.Image, prompt: str) -> Inputs:
    processor = without_videos(
        transformers.Gemma4Processor,
        model.image_processor,
        copy.deepcopy(model.tokenizer),  # the processor adds a token to it
        feature_extractor=None,
    )
    return dict(processor(images=[image], text=[_GEMMA4.format(prompt)], return_tensors="pt"))


def without_videos(kind: Any, image_processor: Any, tokenizer: Any, **settings: Any) -> Any:
    """That processor of transformers', without the video processor that wants torchvision."""
    bare = type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda *_: None})
    return bare(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=SimpleNamespace(num_frames=None, fps=None),
        **settings,
    )


def _glm(name: str, kind: str, images: str, **more: Any) -> Family:
    save = partial(tiny_checkpoints.save_glm, kind=kind, images=images)
    stock = f"{kind}ForConditionalGeneration"
    return Family(name, save, stock, glm_inputs, "<|image|>", "<|user|>", f"{images}Processor", **more)


def _qwen(name: str, save: Callable[[Path], Path], kind: str, processor: str = "", **more: Any) -> Family:
    stock = f"{kind}ForConditionalGeneration"
    processor = f"{processor or kind}Processor"
    return Family(name, save, stock, qwen_inputs, "<|image_pad|>", "<|im_end|>", processor, **more)


TABLE = [
    Family(
        "llava",
        tiny_checkpoints.save_llava,
        "LlavaForConditionalGeneration",
        _processed_by("LlavaProcessor"),
        "<image>",
        "</s>",
    ),
    Family(
        "llava-next",
        tiny_checkpoints.save_llava_next,
        "LlavaNextForConditionalGeneration",
        _processed_by("LlavaNextProcessor"),
        "<image>",
        "</s>",
    ),
    Family(
        "onevision",
        tiny_checkpoints.save_onevision,
        "LlavaOnevisionForConditionalGeneration",
        onevision_inputs,
        "<image>",
        "<|im_end|>",
        "LlavaOnevisionProcessor",
    ),
    _qwen("qwen2", partial(tiny_checkpoints.save_qwen, version="2"), "Qwen2VL"),
    _qwen("qwen2.5", tiny_checkpoints.save_qwen, "Qwen2_5_VL"),
    _qwen("qwen3", tiny_checkpoints.save_qwen3, "Qwen3VL"),
    _qwen(
        "qwen3-moe",
        partial(tiny_checkpoints.save_qwen3, make=tiny_random.qwen3_vl_moe),
        "Qwen3VLMoe",
        "Qwen3VL",
        release="qwen3",
        variant=True,
    ),
    _qwen("qwen3.5", tiny_checkpoints.save_qwen3_5, "Qwen3_5", "Qwen3VL", variant=True),
    _qwen(
        "qwen3.5-moe", partial(tiny_checkpoints.save_qwen3_5, experts=True), "Qwen3_5Moe", "Qwen3VL", release="qwen3.5"
    ),
    _glm("glm", "Glm4v", "Glm4v"),
    _glm("glm4.6", "Glm46V", "Glm46V", release="glm", variant=True),
    _glm("glm-moe", "Glm4vMoe", "Glm4v", release="glm", variant=True),
]
TABLE += [
    Family(
        "gemma3",
        tiny_checkpoints.save_gemma3,
        "Gemma3ForConditionalGeneration",
        gemma3_inputs,
        "<start_of_image>",
        "<end_of_turn>",
        question=_GEMMA,
    ),
    Family(
        "paligemma",
        tiny_checkpoints.save_paligemma,
        "PaliGemmaForConditionalGeneration",
        paligemma_inputs,
        "<image>",
        "</s>",
        prefix=True,
        question="<image>{}",
    ),
    Family(
        "idefics3",
        tiny_checkpoints.save_idefics3,
        "Idefics3ForConditionalGeneration",
        idefics3_inputs,
        "<image>",
        "<end_of_utterance>",
        question=_IDEFICS,
        pil="Idefics3ImageProcessorPil",
    ),
    Family(
        "smolvlm",
        tiny_checkpoints.save_smolvlm,
        "SmolVLMForConditionalGeneration",
        smolvlm_inputs,
        "<image>",
        "<end_of_utterance>",
        "SmolVLMProcessor",
        question=f"<|im_start|>{_IDEFICS}",
        variant=True,
        pil="SmolVLMImageProcessorPil",
    ),
    Family(
        "internvl",
        tiny_checkpoints.save_internvl,
        "InternVLForConditionalGeneration",
        internvl_inputs,
        "<IMG_CONTEXT>",
        "<|im_end|>",
        "InternVLProcessor",
        question=_INTERNVL,
    ),
    Family(
        "aya",
        tiny_checkpoints.save_aya_vision,
        "AyaVisionForConditionalGeneration",
        aya_inputs,
        "<image>",
        "<|END_OF_TURN_TOKEN|>",
        question=_AYA,
    ),
]
TABLE += [
    Family(
        "mistral3",
        tiny_checkpoints.save_mistral3,
        "Mistral3ForConditionalGeneration",
        _pixtral_inputs(2),
        "[IMG]",
        "</s>",
        "PixtralProcessor",
        question=_MISTRAL,
    ),
    Family(
        "pixtral",
        partial(tiny_checkpoints.save_mistral3, make=tiny_random.pixtral, seed=1),
        "LlavaForConditionalGeneration",
        _pixtral_inputs(1),
        "[IMG]",
        "</s>",
        "PixtralProcessor",
        question=_MISTRAL,
        variant=True,
    ),
]
TABLE += [
    Family(
        name,
        partial(tiny_checkpoints.save_gemma4, large=large, seed=4 if large else 3),
        "Gemma4ForConditionalGeneration",
        gemma4_inputs,
        "<|image|>",
        "<turn|>",
        "Gemma4Processor",
        question=_GEMMA4,
        release="gemma4" if large else "",
    )
    for name, large in (("gemma4", False), ("gemma4-large", True))
]
FAMILIES = {family.name: family for family in TABLE if family.openable}
"""Those of the table that the installed packages open."""
NAMES = [slow(name) if family.variant else name for name, family in FAMILIES.items()]
"""For a test that every family runs."""
CORE = ("llava", "qwen2.5", "gemma3")
"""A fixed canvas with CLS, rows of patches of any shape, and SigLIP's pooled patches."""
FEW = [name if name in CORE else slow(name) for name in FAMILIES]
"""For what shared code does, whatever the family: `make test` runs the core alone."""


def open_case(name: str, folder: Path) -> Case:
    """The family's checkpoint written to `folder` and opened both ways."""
    family = FAMILIES[name]
    family.save(folder)
    return Case(family, load_model(folder), family.open_stock(folder), folder)
