"""One interface for every vision-language model: pixels, features, loss, generate.

`PixelBatch.x` is the attacker's space. Everything from there to the loss is differentiable, and on 8-bit
images the network's input is bit-equal to what transformers' PIL image processor makes of the same files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attacks.auto_batch import out_of_memory
from lvlm_radapt.defences.base import derived_seed
from lvlm_radapt.models.checks import check_finite, check_normalisation
from lvlm_radapt.models.conversations import Conversation, Prompt
from lvlm_radapt.models.language import greedy, left_pad, output_head, right_pad, target_nll, target_positions
from lvlm_radapt.models.pretrained import Pretrained
from lvlm_radapt.models.speedups import last_layer, patch_gradient, recomputed
from lvlm_radapt.models.text import PromptEncoder, renderer
from lvlm_radapt.towers import find_tower
from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from lvlm_radapt.defences.base import Defence
    from lvlm_radapt.defences.radapt.config import RAdaptConfig
    from lvlm_radapt.models.endpoint import AnswerStore

Geometry = Literal["stock", "pad"]
FeaturePoint = Literal["tower", "projector"]
EOT_DRAWS = 10
"""Draws of a random defence that an attack averages over, unless another number is given."""


@dataclass(frozen=True)
class PixelBatch:
    """Images on a model's input canvas.

    x: float32 [B, 3, H, W] in [0, 1], RGB, after resize, crop and pad, before normalisation.
    meta: one dict an image: `size` (height, width of the original), `canvas` (H, W); for Qwen `grid`
        (1, patches high, patches wide); for LLaVA-NeXT and OneVision, whose canvas is a stack of views, `crops`
        (how many high, how many wide) and `tokens` (image tokens in the text); where one was given, the `seed` of
        what a random defence draws for the image, and the PNG `file` that holds just these pixels.
    """

    x: Tensor
    meta: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or self.x.shape[1] != 3 or len(self.x) != len(self.meta):
            raise ValueError(f"x must be [B, 3, H, W] with B = {len(self.meta)}, got {tuple(self.x.shape)}")

    def __len__(self) -> int:
        return len(self.meta)

    def __getitem__(self, index: int | Sequence[int] | slice) -> PixelBatch:
        """The chosen images, in that order; a single int still gives a batch (of one)."""
        if isinstance(index, slice):
            return PixelBatch(self.x[index], self.meta[index])
        rows = [index] if isinstance(index, int) else [int(i) for i in index]
        return PixelBatch(self.x[rows], tuple(self.meta[i] for i in rows))

    def replace(self, x: Tensor) -> PixelBatch:
        """The same images with other pixels, x [B, 3, H, W] in [0, 1], which are in no file; ValueError if the shape
        differs."""
        if x.shape != self.x.shape:
            raise ValueError(f"x must keep its shape {tuple(self.x.shape)}, got {tuple(x.shape)}")
        if any("file" in meta for meta in self.meta):
            return self.with_files([None] * len(self)).replace(x)
        return dataclass_replace(self, x=x)

    def with_files(self, files: Sequence[Path | None]) -> PixelBatch:
        """The same images, each with the PNG file that holds these pixels; None for none."""
        bare = [{key: value for key, value in meta.items() if key != "file"} for meta in self.meta]
        pairs = zip(bare, files, strict=True)
        return dataclass_replace(
            self, meta=tuple(meta if file is None else {**meta, "file": file} for meta, file in pairs)
        )

    @property
    def seeds(self) -> list[int]:
        """What a random defence draws for each image comes from these; 0 where none was given."""
        return [int(meta.get("seed", 0)) for meta in self.meta]

    def with_seeds(self, seeds: Sequence[int]) -> PixelBatch:
        """The same images with these seeds, one an image."""
        meta = tuple({**meta, "seed": seed} for meta, seed in zip(self.meta, seeds, strict=True))
        return dataclass_replace(self, meta=meta)


class PixelModel(Pretrained, ABC):
    """A frozen network that sees images: what an encoder and an LVLM have in common.

    hf: the transformers model, eval mode, no parameter asks for gradients.
    geometry: `stock` as the checkpoint's image processor does, `pad` to a square with the mean colour first.
    image_backend: which image processor backend made the pixels (runs record it).
    tower_name: the encoder whose tower stands in the place of the checkpoint's own, if one does.
    revision: the hub's commit of the checkpoint, where it comes from there.
    tuned_from: the model that its weights were fine-tuned from, as that model's runs name it.
    max_pixels: the largest canvas that was asked for, in place of the checkpoint's own.
    attached: the defence that `Defence.attach` put in; R-Adapt is in the tower's hooks instead. See `defence`.
    eot_draws: over how many draws an attack averages where the defence is random.
    """

    whole_view: ClassVar[int] = 0
    """Which of an image's views shows all of it, in the order in which the tower gets them."""
    processing: Mapping[str, bool | int] = MappingProxyType({})
    """Settings that the family's processor gives its image processor, whatever the file of that one says."""
    views_apart: bool = False
    """Whether the canvas is a stack of views of one image, so that an attack changes each on its own: a superset of
    what a real image can do, which runs say."""
    answers_only: ClassVar[bool] = False
    """Whether there is nothing to be had but answers: no loss, no gradient, no features. Its images are sent as files,
    and its answers are kept as they come, since each may cost money."""

    def __init__(
        self, hf: Any, tokenizer: Any, image_processor: Any, *, name: str, geometry: Geometry = "stock"
    ) -> None:
        self.hf = hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.name = name
        self.geometry = geometry
        self.image_backend: str = image_processor.backend
        self.tower_name: str | None = None
        self.revision: str | None = None
        self.tuned_from: str | None = None
        self.max_pixels: int | None = None
        self.attached: Defence | None = None
        self.eot_draws = EOT_DRAWS
        if geometry not in ("stock", "pad"):
            raise UserError(f"{name}: geometry {geometry!r} is unknown, choose stock or pad")
        if not image_processor.do_rescale or abs(image_processor.rescale_factor * 255 - 1) > 1e-6:
            raise UserError(f"{name}: the image processor does not rescale 8-bit values by 1/255")
        check_normalisation(image_processor, name)
        check_finite(hf, name)
        patch_gradient.prepare(self.tower)

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower."""

    @abstractmethod
    def canvas(self, image: Image.Image) -> tuple[int, int]:
        """(H, W) that `pixels` would give this image, without touching its pixels."""

    @abstractmethod
    def tower_input(self, batch: PixelBatch) -> Tensor:
        """The images of `batch` as the vision tower takes them, without any defence: normalised, [B, 3, H, W] or the
        family's own rows of patches, differentiable in `batch.x`."""

    def view_height(self, batch: PixelBatch) -> int:
        """How many rows of the canvas belong to one view; all of them unless it is a stack of views."""
        return batch.x.shape[-2]

    def pixel_values(self, batch: PixelBatch) -> Tensor:
        """What the vision tower takes, behind the defence: [B, 3, H, W] or rows of patches, as `tower_input` has it."""
        return self.tower_input(self._behind_defence(batch))

    def _behind_defence(self, batch: PixelBatch) -> PixelBatch:
        if self.attached is None:
            return batch
        # every view is a picture of its own: [B, 3, V * h, W] -> [B * V, 3, h, W] and back
        views = batch.x.unflatten(2, (-1, self.view_height(batch))).transpose(1, 2)
        count = views.shape[1]
        seeds = [derived_seed(seed, view) for seed in batch.seeds for view in range(count)]
        seen = self.attached.seen(views.flatten(0, 1), seeds)
        return batch.replace(seen.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3))

    def run_tower(self, batch: PixelBatch) -> Any:
        """The tower's own output for these images, through every block, also those no language model reads."""
        return self.tower(self.pixel_values(batch).flatten(0, -4))  # views of an image are images of their own to it

    @abstractmethod
    def features(self, batch: PixelBatch, at: FeaturePoint = "tower") -> Tensor:
        """[B, T, D] patch features in raster order, without CLS, differentiable in `batch.x`."""

    def embedding(self, batch: PixelBatch) -> Tensor:
        """[B, D] one vector an image, differentiable in `batch.x`: the mean of the tower's patch tokens."""
        return self.features(batch).mean(1)

    @abstractmethod
    def _canvas_bytes(self, image: Image.Image) -> np.ndarray:
        """uint8 [3, H, W]: the image on the canvas."""

    def recompute_activations(self) -> bool:
        """Keep each layer's input alone for the backward pass, and compute the rest anew (gradient checkpointing): far
        less memory and the same gradient, for one more forward pass. False where that is on already, or the model has
        no such layers."""
        return recomputed.switch_on(self.hf)

    @property
    def members(self) -> tuple[PixelModel, ...]:
        """The models that an attack on this one looks at: itself, unless it stands for several."""
        return (self,)

    def facts(self) -> dict[str, Any]:
        """What run.json's entry `model` says in place of what all models tell there."""
        return {}

    def remarks(self) -> list[str]:
        """What a reader of the model's scores has to know."""
        return []

    def keep_answers(self, store: AnswerStore) -> None:
        """Called before a run's first question: `store` keeps answers that must not be lost. UserError where the model
        turns out to answer nothing of use."""

    def usage(self) -> dict[str, Any]:
        """What the run's answers cost; {} where they are computed here."""
        return {}

    @contextmanager
    def naming_size(self, batch: PixelBatch) -> Iterator[None]:
        """Inside, an error about memory gets a note (PEP 678) of how large the batch's images are to the model."""
        try:
            yield
        except Exception as error:
            if out_of_memory(error):
                error.add_note(self.size_words(batch))
            raise

    def size_words(self, batch: PixelBatch) -> str:
        """How large an image of the batch is to the model."""
        height, width = batch.x.shape[-2:]
        return f"a canvas of {width}x{height} px"

    def _meta(self, image: Image.Image, canvas: tuple[int, int]) -> dict[str, Any]:
        return {"size": (image.height, image.width), "canvas": canvas}

    @property
    def label(self) -> str:
        """What tells this model from others: its name, and the tower's where that is another's."""
        return self.name if self.tower_name is None else f"{self.name} with tower {self.tower_name}"

    @property
    def device(self) -> torch.device:
        """Where inputs go; of a model spread over devices its first accelerator, hooks move them on from there."""
        spread = getattr(self.hf, "hf_device_map", None)
        if spread:
            places = [torch.device(p) for p in spread.values() if p not in ("cpu", "disk")]
            return places[0] if places else torch.device("cpu")
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are computed in."""
        return self.hf.dtype

    @property
    def radapt(self) -> RAdaptConfig | None:
        """The settings of the R-Adapt defence in the tower; None where there is none."""
        from lvlm_radapt.defences.radapt.hooks import injected_config

        return injected_config(self.hf)

    @property
    def defence(self) -> Defence | None:
        """The defence of this model, whichever it is; None where it has none."""
        from lvlm_radapt.defences.radapt.defence import RAdapt

        config = self.radapt
        return self.attached if config is None or self.attached is not None else RAdapt(**config.to_dict())

    @property
    def draws(self) -> int:
        """Over how many draws an attack on this model averages: 1 unless its defence is random."""
        return self.eot_draws if self.is_random else 1

    @property
    def is_random(self) -> bool:
        """Whether the defence draws at random."""
        return self.attached is not None and self.attached.random

    @contextmanager
    def undefended(self) -> Iterator[None]:
        """Inside `with model.undefended():` the same weights run without any defence. Not per thread."""
        from lvlm_radapt.defences.radapt.hooks import disabled

        with ExitStack() as stack:
            stack.enter_context(disabled(self.hf))
            if self.attached is not None:
                stack.enter_context(self.attached.taken_out(self))
            yield

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Per-channel mean of the normalisation, in [0, 1] units; zeros where nothing is normalised."""
        return tuple(self.image_processor.image_mean) if self.image_processor.do_normalize else (0.0,) * 3

    @property
    def image_std(self) -> tuple[float, ...]:
        """Per-channel standard deviation of the normalisation; ones where nothing is normalised."""
        return tuple(self.image_processor.image_std) if self.image_processor.do_normalize else (1.0,) * 3

    def pixels(self, images: Sequence[Image.Image]) -> PixelBatch:
        """The images on their canvas, on the model's device. UserError unless all share one canvas shape.

        EXIF orientation is not applied, as in the stock processors.
        """
        if not images:
            raise UserError("no images were given: pass at least one")
        canvases = [self.canvas(image) for image in images]
        if len(set(canvases)) > 1:
            shapes = ", ".join(f"{h}x{w}" for h, w in sorted(set(canvases)))
            raise UserError(f"images of one batch must share a canvas, got {shapes} (HxW): group them by canvas()")
        values = np.stack([self._canvas_bytes(image) for image in images])
        # in double and then down to single, as the stock processor rescales
        scaled = (values.astype(np.float64) * self.image_processor.rescale_factor).astype(np.float32)
        meta = tuple(self._meta(i, c) for i, c in zip(images, canvases, strict=True))
        return PixelBatch(torch.from_numpy(scaled).to(self.device), meta)

    def on_canvas(self, x: Tensor) -> PixelBatch:
        """x float32 [B, 3, H, W] in [0, 1] as images of just that size. Not for models with `views_apart`."""
        high, wide = x.shape[-2:]
        return PixelBatch(x, (self._meta(Image.new("L", (wide, high)), (high, wide)),) * len(x))

    def adopted(self, batch: PixelBatch) -> PixelBatch | None:
        """Another model's batch as one of this model's, with the same pixels; None unless this model lays images
        of the original sizes on the same canvas and cuts them alike."""
        metas = []
        for theirs in batch.meta:
            height, width = theirs["size"]
            blank = Image.new("L", (width, height))
            mine = self._meta(blank, self.canvas(blank))
            if mine["canvas"] != tuple(batch.x.shape[-2:]) or mine.get("crops") != theirs.get("crops"):
                return None
            metas.append(mine | ({"seed": theirs["seed"]} if "seed" in theirs else {}))
        return PixelBatch(batch.x, tuple(metas))

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std per channel, in x's precision but at least float32. x: [B, 3, H, W]."""
        x = x.to(device=self.device, dtype=torch.promote_types(x.dtype, torch.float32))
        mean = torch.tensor(self.image_mean, dtype=x.dtype, device=x.device).view(3, 1, 1)
        std = torch.tensor(self.image_std, dtype=x.dtype, device=x.device).view(3, 1, 1)
        return (x - mean) / std


class LVLM(PixelModel):
    """A frozen vision-language model. Prompts are the user's raw text: the model adds its own template. Given as a
    tuple, a prompt is a conversation: the user's words and the model's in turn, the user's first and last.

    A prompt or target that spells one of the model's image or video placeholders is refused with a UserError,
    so that no text can pose as an image.
    """

    default_conversation: ClassVar[Conversation]
    """The conversation of a checkpoint without a chat template."""
    prompt_end: ClassVar[str] = ""
    """What the family's processor adds to every rendered prompt."""
    grows: ClassVar[bool] = False
    """Whether the canvas grows with the image, so that `max_pixels` limits it. Image processors are then sized by
    numbers of pixels, in place of sides."""
    counts_frames: ClassVar[bool] = False
    """Whether the image processor's numbers of pixels count a pixel once for each frame of a patch."""
    unpadded: ClassVar[str | None] = "geometry pad is for LLaVA-1.5: use stock"
    """Why images are not padded to a square (`geometry="pad"`); None for a model whose images may be."""
    processor_class: ClassVar[str | None] = None
    """The name of its processor in transformers, where its model_type tells another."""

    @classmethod
    def check_config(cls, config: Any, name: str) -> None:
        """UserError, with the model's `name`, for a checkpoint's config that this class cannot serve."""

    @classmethod
    def limited(cls, image_processor: Any, max_pixels: int | None, name: str) -> Any:
        """The image processor, with canvases of at most `max_pixels` where that is given and the canvas grows.

        UserError, with the model's `name`, for settings or a limit that no canvas can have.
        """
        return image_processor

    def __init__(
        self,
        hf: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        name: str,
        geometry: Geometry = "stock",
        chat_template: Any = None,
        conversation: Conversation | None = None,
    ) -> None:
        """chat_template: the checkpoint's own. conversation: one in its place; without either, the family's usual one.

        UserError where the template does not render one image and a question.
        """
        if geometry == "pad" and self.unpadded is not None:
            raise UserError(f"{name}: {self.unpadded}")
        super().__init__(hf, tokenizer, image_processor, name=name, geometry=geometry)
        if conversation is None and chat_template is None:
            conversation = self.default_conversation
        image_id, mark = int(hf.config.image_token_id), self.image_mark(hf.config, tokenizer)
        render = renderer(tokenizer, conversation, image_token=mark, chat_template=chat_template, model=name)
        reserved = [mark, *map(tokenizer.convert_ids_to_tokens, (image_id, *self._reserved_ids()))]
        self.text = PromptEncoder(
            tokenizer,
            render,
            image_id=image_id,
            mark=mark,
            image_text=self.image_text({}),
            prompt_end=self.prompt_end,
            end_id=self._end_id(),
            target_prefix=self._target_prefix(render("") + self.prompt_end),
            placeholders=[token for token in reserved if token],
            conversation=conversation,
        )

    @property
    def language_model(self) -> Any:
        """The language model without its head: embeddings in, hidden states out."""
        return self.hf.model.language_model

    @property
    def image_run(self) -> int | None:
        """How many image tokens a run of `image_text` has, where it is the same for all images."""
        return None

    def processor_values(self) -> dict[str, Any]:
        """Settings of transformers' processor that follow from the model, by their names there; a processor that does
        not take one is not given it."""
        config = self.hf.config
        patch_size: Any = getattr(config.vision_config, "patch_size", None)
        side = getattr(config.vision_config, "image_size", None)
        return {
            "patch_size": patch_size,
            "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
            "num_additional_image_tokens": find_tower(self.hf).prefix_tokens,
            "num_image_tokens": (side // patch_size) ** 2 if isinstance(side, int) else None,
            "vision_aspect_ratio": getattr(config, "vision_aspect_ratio", None),
            "image_seq_length": self.image_run,
            "image_seq_len": self.image_run,
        }

    @classmethod
    def image_mark(cls, config: Any, tokenizer: Any) -> str:
        """What a chat template of this family writes for an image; text that no user may write."""
        return tokenizer.convert_ids_to_tokens(config.image_token_id)

    def image_text(self, meta: Mapping[str, Any]) -> str:
        """What takes the place of `image_mark`, for an image with that entry of `PixelBatch.meta` (which is empty where
        there is no image yet): an image token for each run of them, and what stands around."""
        return self.image_mark(self.hf.config, self.tokenizer)

    def _reserved_ids(self) -> list[int]:
        """Tokens, besides the image's, that no user's text may spell."""
        video = getattr(self.hf.config, "video_token_id", None)
        return [] if video is None else [video]

    def _end_id(self) -> int:
        """The token that ends an answer; UserError where the tokenizer names none."""
        if self.tokenizer.eos_token_id is None:
            raise UserError(f"{self.name}: its tokenizer names no eos_token: add it to tokenizer_config.json")
        return int(self.tokenizer.eos_token_id)

    def _target_prefix(self, opening: str) -> str:
        """What stands between `opening`, a rendered prompt, and the answer."""
        return "" if opening.endswith("\n") else " "

    @abstractmethod
    def image_embeds(self, batch: PixelBatch) -> Tensor:
        """[..., D], one row an image token, image after image, in the order of the tokens in the text."""

    @abstractmethod
    def image_tokens(self, batch: PixelBatch) -> list[int]:
        """How many image tokens each image of the batch takes in the text."""

    @abstractmethod
    def _positions(self, ids: Tensor, mask: Tensor, batch: PixelBatch) -> Tensor:
        """Position ids of padded token ids [B, L]: [B, L], or [3, B, L] for multi-axis rotary embeddings."""

    def conversation_settings(self) -> dict[str, Any] | None:
        """The conversation as run.json has it; None for the checkpoint's own chat template."""
        conversation = self.text.conversation
        return None if conversation is None else conversation.settings()

    def check_texts(self, prompt: Prompt, targets: Iterable[str]) -> None:
        """UserError where the model cannot be given this prompt, or one of these as an answer to it."""
        self.text.prompt(prompt, 1)
        for target in targets:
            self.text.target(prompt, target)

    def count_tokens(self, prompt: Prompt, target: str) -> int | None:
        """How many tokens an answer has, without its end; None where nobody knows."""
        return len(self.text.target(prompt, target)) - 1

    def size_words(self, batch: PixelBatch) -> str:
        return f"{super().size_words(batch)}, {max(self.image_tokens(batch)):,} image tokens"

    def loss(self, batch: PixelBatch, prompts: Sequence[Prompt], targets: Sequence[str]) -> Tensor:
        """[B] mean negative log-likelihood (nats a token) of each target with its end token, in float32.

        Differentiable in `batch.x`. The i-th prompt and target belong to the i-th image; the result does not
        depend on what else is in the batch beyond rounding.
        """
        self._check_count(batch, prompts=prompts, targets=targets)
        questions = self.prompt_ids(batch, prompts)
        answers = [self.text.target(p, t) for p, t in zip(prompts, targets, strict=True)]
        ids, mask = right_pad([q + a for q, a in zip(questions, answers, strict=True)], self.text.pad_id)
        prompt = torch.arange(ids.shape[1]) < torch.tensor([len(q) for q in questions])[:, None]
        ids, mask, embeds, positions, extra = self._inputs(batch, ids, mask, prompt)
        if positions.ndim == 2:  # those of padding repeat, which without a mask would look like several packed texts
            positions = positions[:, :1] + torch.arange(ids.shape[1], device=ids.device)
        read, labels = target_positions([len(q) for q in questions], answers)
        states = last_layer.final_states(
            self.language_model,
            read,
            inputs_embeds=embeds,
            # No mask: padding comes last, where causal attention never looks, and kernels that take none can be used.
            **{"attention_mask": None, **extra},
            position_ids=positions,
            use_cache=False,
        )
        return target_nll(states, output_head(self.hf), labels)

    @torch.no_grad()
    def generate(
        self,
        batch: PixelBatch,
        prompts: Sequence[Prompt],
        max_new_tokens: int = 20,
        on_text: Callable[[list[str]], None] | None = None,
    ) -> list[str]:
        """Greedy answers, special tokens and outer whitespace removed.

        on_text: gets the answers as far as they go, after every token; the last time, those returned.

        A checkpoint's own `repetition_penalty` (Qwen2.5-VL ships 1.05) is applied, as transformers' greedy
        search does; every other sampling setting of its generation config is ignored. Raises UserError unless there
        is a prompt an image, and for `max_new_tokens` under 1.
        """
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        ids, mask, embeds, positions, extra = self.embed_prompts(batch, prompts)
        answers = greedy(
            self.hf,
            self.language_model,
            ids=ids,
            mask=mask,
            embeds=embeds,
            positions=positions,
            max_new_tokens=max_new_tokens,
            end_ids=self.text.end_ids(self.hf.generation_config),
            first=extra,
            each=self.token_inputs,
            on_tokens=None if on_text is None else lambda so_far: on_text(self._texts(so_far)),
        )
        return self._texts(answers)

    def embed_prompts(
        self, batch: PixelBatch, prompts: Sequence[Prompt]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """What the language model takes: ids and mask, both long [B, L], padded on the left; embeddings [B, L, D], the
        images in place; position ids; keywords of the pass over the prompt, an attention mask in place of that one
        where the family needs it. UserError unless there is a prompt an image."""
        self._check_count(batch, prompts=prompts)
        ids, mask = left_pad(self.prompt_ids(batch, prompts), self.text.pad_id)
        return self._inputs(batch, ids, mask, mask.bool())

    def _texts(self, answers: Sequence[Sequence[int]]) -> list[str]:
        return [t.strip() for t in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    def prompt_ids(self, batch: PixelBatch, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The tokens of each prompt, those of its image in place."""
        texts, counts = map(self.image_text, batch.meta), self.image_tokens(batch)
        return [self.text.prompt(*one) for one in zip(prompts, counts, texts, strict=True)]

    def _visual_inputs(self, batch: PixelBatch, is_image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """`image_embeds`, and what else of the images the language model takes by keyword, on the pass over the
        prompt alone. is_image: bool [B, L], where the image tokens are."""
        return self.image_embeds(batch), {}

    def token_inputs(self, ids: Tensor) -> dict[str, Any]:
        """What the language model takes of token ids [B, L] beside their embeddings, as keywords of that pass."""
        return {}

    def _attention(
        self, ids: Tensor, mask: Tensor, prompt: Tensor, embeds: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        """The keyword `attention_mask` of a pass over whole texts, where causal attention is not what the family does.
        prompt: bool [B, L], which tokens are no answer's. mask: 1 for each that is no padding."""
        return {}

    def _inputs(
        self, batch: PixelBatch, ids: Tensor, mask: Tensor, prompt: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """ids, mask, embeddings with the images in place, positions, all on the model's device; extra keywords."""
        positions = self._positions(ids, mask, batch).to(self.device)
        ids, mask, prompt = ids.to(self.device), mask.to(self.device), prompt.to(self.device)
        embeds = self.hf.get_input_embeddings()(ids)
        is_image = ids == self.text.image_id
        image, extra = self._visual_inputs(batch, is_image)
        is_image = is_image.to(embeds.device)
        embeds = embeds.masked_scatter(is_image.unsqueeze(-1), image.to(embeds.device, embeds.dtype))
        extra |= self.token_inputs(ids) | self._attention(ids, mask, prompt, embeds, positions)
        return ids, mask, embeds, positions, extra

    @staticmethod
    def _check_count(batch: PixelBatch, **texts: Sequence[Prompt]) -> None:
        for what, values in texts.items():
            if isinstance(values, str) or len(values) != len(batch):
                got = "one string" if isinstance(values, str) else str(len(values))
                raise UserError(f"{len(batch)} images need {len(batch)} {what}, got {got}")
