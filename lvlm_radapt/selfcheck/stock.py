"""The same checkpoint by transformers' own road, AutoProcessor and AutoModel: prompt tokens, logits, answers."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from lvlm_radapt.loading.load_options import LoadOptions, quiet_loading
from lvlm_radapt.models.base import LVLM
from lvlm_radapt.models.clip import CLIPEncoder
from lvlm_radapt.models.families import encoder_families, lvlm_families
from lvlm_radapt.models.language import output_head
from lvlm_radapt.models.template_sandbox import NO_THOUGHTS
from lvlm_radapt.selfcheck.pixels import pil_processor
from lvlm_radapt.selfcheck.result import Check, Skipped, apart, checked, tolerance
from lvlm_radapt.selfcheck.trial import MOST_TOKENS, QUESTION, Trial
from lvlm_radapt.utils.errors import first_sentence

PROMPT = ("prompt tokens",)
TEXT = ("logits", "answers")
EMBEDDINGS = ("features", "embeddings")


@dataclass
class Kept:
    """What stays when this package's model is gone, made without a defence and with transformers' own inputs.

    source: as for `Trial`. found: by name, tensors to be compared. None: it did not come to that.
    """

    source: str | None = None
    inputs: dict[str, Tensor] | None = None
    answer: str = ""
    found: dict[str, Tensor] = field(default_factory=dict)
    unquantised: tuple[str, ...] = ()
    layer: int = 0
    prefix: int = 0


@torch.no_grad()
def _answer(model: LVLM, trial: Trial, kept: Kept) -> None:
    with model.undefended():
        _, mask, embeds, positions, extra = model.embed_prompts(trial.batch, [QUESTION])
        states = model.language_model(
            inputs_embeds=embeds, position_ids=positions, use_cache=False, **{"attention_mask": mask, **extra}
        ).last_hidden_state
        kept.found["logits"] = output_head(model.hf)(states[:, -1])[0].float().cpu()
        kept.answer = model.generate(trial.batch, [QUESTION], MOST_TOKENS)[0]


@torch.no_grad()
def keep_features(model: CLIPEncoder, trial: Trial, kept: Kept) -> None:
    """Patch features of an encoder, and its image embedding where it has one."""
    kept.source, kept.layer, kept.prefix = trial.source, model.feature_layer, model.prefix_tokens
    if trial.source is None:
        return
    with contextlib.suppress(Skipped):  # the check of the pixels says why
        kept.inputs = dict(pil_processor(trial)(images=[trial.image], return_tensors="pt"))
    if kept.inputs is None:
        return
    with model.undefended():
        kept.found["features"] = model.features(trial.batch).cpu()
        if model.embeds_images:
            kept.found["embeddings"] = model.image_features(trial.batch).cpu()


def check_prompt(model: LVLM, trial: Trial, kept: Kept) -> Iterator[Check]:
    kept.source, kept.inputs = trial.source, _stock_inputs(model, trial)
    kept.unquantised = lvlm_families()[model.hf.config.model_type].unquantised
    _answer(model, trial, kept)
    ids = kept.inputs["input_ids"][0].tolist()
    (ours,) = model.prompt_ids(trial.batch, [QUESTION])
    said = f"ours and AutoProcessor's are equal, {len(ours)} of them"
    if ours != ids:
        first = next((i for i, pair in enumerate(zip(ours, ids, strict=False)) if pair[0] != pair[1]), len(ours))
        said = f"{len(ours)} of ours and {len(ids)} of AutoProcessor's, which differ from token {first} on"
    yield checked(PROMPT[0], ours == ids, said, ours=len(ours), theirs=len(ids))


def _stock_inputs(model: LVLM, trial: Trial) -> dict[str, Tensor]:
    """What AutoProcessor makes of the image and the question. Skipped where it is not meant to make the same."""
    if trial.source is None:
        raise Skipped(trial.no_source)
    if model.text.conversation is not None:
        raise Skipped(f"asked in the conversation {model.text.conversation.name}, not in its own chat template")
    content = [{"type": "image", "image": trial.image}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    made = _processor(model, trial).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **NO_THOUGHTS
    )
    return dict(made)


def _processor(model: LVLM, trial: Trial) -> Any:
    """AutoProcessor's, with its PIL image processor; where it opens none without torchvision, put together from the
    same files without its processors of videos and sounds."""
    images = pil_processor(trial)
    try:
        family: Any = getattr(transformers, PROCESSOR_MAPPING_NAMES[model.hf.config.model_type])
        # a video processor wants torchvision
        if transformers.utils.is_torchvision_available() or "video_processor" not in family.get_attributes():
            processor = transformers.AutoProcessor.from_pretrained(trial.source)
            processor.image_processor = images
            return _completed(processor, model.hf.config)
        stored, _ = family.get_processor_dict(trial.source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(trial.source)
        takes = inspect.signature(family.__init__).parameters.keys() & stored.keys() - {"chat_template"}
        template = stored.get("chat_template") or tokenizer.chat_template
        parts = dict.fromkeys(family.get_attributes(), _Absent()) | {"image_processor": images, "tokenizer": tokenizer}
        bare: Any = type(family.__name__, (family,), {"check_argument_for_proper_class": lambda *_: None})
        return bare(**parts, chat_template=template, **{key: stored[key] for key in takes if key not in parts})
    except ImportError as error:
        raise Skipped(f"this transformers opens no processor here: {first_sentence(error)}") from error


class _Absent:
    """In the place of a processor of videos or sounds that is never asked."""

    num_frames = fps = None


def _completed(processor: Any, config: Any) -> Any:
    """The first releases of LLaVA tell their processor nothing of the model, and it cannot count image tokens then."""
    own = {
        "patch_size": getattr(config.vision_config, "patch_size", None),
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        "num_additional_image_tokens": int(config.vision_config.model_type == "clip_vision_model"),
    }
    if hasattr(processor, "patch_size") and processor.patch_size is None:
        for key, value in own.items():
            setattr(processor, key, value)
    return processor


@torch.no_grad()
def check_text(kept: Kept, options: LoadOptions) -> Iterator[Check]:
    """Logits of the answer's first token and the greedy answer, of AutoModel on the same files."""
    if kept.inputs is None or not kept.found:
        raise Skipped("there is no prompt of AutoProcessor's to ask transformers' model with")
    with quiet_loading():
        stock = transformers.AutoModelForImageTextToText.from_pretrained(
            kept.source, **options.arguments(kept.unquantised)
        )
        stock = options.place(stock).eval()
    inputs = {name: value.to(stock.device) for name, value in kept.inputs.items()}
    ours, theirs = kept.found["logits"], stock(**inputs).logits[0, -1].float().cpu()
    off, same = apart(ours, theirs), int(ours.argmax()) == int(theirs.argmax())
    likeliest = f"the likeliest token is {'' if same else 'not '}the same"
    said = f"ours are {off:.2g} of their spread from AutoModel's, {likeliest}"
    yield checked("logits", off <= tolerance(options.dtype), said, relative=off, likeliest_equal=same)
    out = stock.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False, num_beams=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(kept.source)
    answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    if answer != kept.answer and options.dtype != torch.float32:
        raise Skipped(f"{kept.answer!r} and {answer!r}, which half precision may do: --dtype float32 tells")
    said = f"both are {answer!r}" if answer == kept.answer else f"ours is {kept.answer!r}, AutoModel's {answer!r}"
    yield checked("answers", answer == kept.answer, said, ours=kept.answer, theirs=answer)


@torch.no_grad()
def check_encoder(kept: Kept, options: LoadOptions) -> Iterator[Check]:
    """Patch features and image embeddings, of transformers' class on the same files."""
    if kept.inputs is None:
        raise Skipped("transformers does not open it as it is here")
    config, _ = transformers.PretrainedConfig.get_config_dict(kept.source)
    with quiet_loading():
        stock = (
            encoder_families()[config["model_type"]]
            .hf_class(config)
            .from_pretrained(kept.source, **options.arguments())
        )
        stock = options.place(stock).eval()
    values = kept.inputs["pixel_values"].to(stock.device)
    tower, limit = getattr(stock, "vision_model", stock), tolerance(options.dtype)
    theirs = tower(values, output_hidden_states=True).hidden_states[kept.layer][:, kept.prefix :]
    off = apart(kept.found["features"], theirs)
    said = f"those of layer {kept.layer} are {off:.2g} of their spread from transformers' own"
    yield checked("features", off <= limit, said, relative=off)
    if "embeddings" not in kept.found or not hasattr(stock, "get_image_features"):
        raise Skipped("a bare vision tower has none")
    found = stock.get_image_features(pixel_values=values)
    off = apart(kept.found["embeddings"], getattr(found, "pooler_output", found))
    yield checked("embeddings", off <= limit, f"{off:.2g} of their spread from transformers' own", relative=off)
