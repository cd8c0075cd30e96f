"""How a checkpoint is opened: precision, place, attention, conversation; the same for every layout."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError

from attacks.auto_batch import out_of_memory
from lvlm_radapt.loading.quantised import Quantisation, mend_gradients, quantisation_config
from lvlm_radapt.models.conversations import Conversation
from lvlm_radapt.utils.errors import UserError, first_sentence

Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
DeviceMap = str | dict[str, int | str | torch.device]

_LOADING = threading.Lock()  # transformers swaps global initialisers while it builds a model


@dataclass(frozen=True)
class LoadOptions:
    """See `load_model`. UserError for a quantisation or device map that is unknown."""

    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32
    attn: Attention = "auto"
    conversation: Conversation | None = None
    quantize: Quantisation | None = None
    device_map: DeviceMap | None = None
    offload_folder: str | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        known = ("auto", "balanced", "balanced_low_0", "sequential")
        if isinstance(self.device_map, str) and self.device_map not in known:
            raise UserError(f"device map {self.device_map!r} is unknown, choose one of {', '.join(known)}")
        if self.device_map is not None and torch.device(self.device) != torch.device("cpu"):
            raise UserError(f"device {self.device} and a device map exclude each other: leave one out")

    def arguments(self, kept: Sequence[str] = ()) -> dict[str, Any]:
        """Keywords of `from_pretrained`. kept: modules that are not quantised, by their path."""
        given: dict[str, Any] = {"dtype": self.dtype}
        if self.attn != "auto":  # else transformers takes sdpa, and eager where a language model has no sdpa (Gemma 2)
            given["attn_implementation"] = self.attn
        if self.quantize is not None:
            given["quantization_config"] = quantisation_config(self.quantize, self.dtype, kept)
        if self.quantize is not None or torch.device(self.device).type != "cpu":
            given["device_map"] = {"": self.device}  # straight to where it stays, and quantised there
        if self.device_map is not None:
            given["device_map"] = self.device_map
            if self.offload_folder is not None:
                given["offload_folder"] = self.offload_folder
        return given

    @contextmanager
    def fitting(self, name: str) -> Iterator[None]:
        """Inside, memory that does not suffice for the weights of the model `name` is a UserError with advice."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            half = [] if self.dtype != torch.float32 else ["--dtype bfloat16 (half the size)"]
            less = [] if self.quantize is not None else ["--quantize 4bit"]
            spread = [] if self.device_map is not None else ["--device-map auto"]
            dtype = str(self.dtype).removeprefix("torch.")
            where = f"{self.device}" if self.device_map is None else f"device map {self.device_map}"
            advice = " or ".join([*half, *less, *spread]) or "a larger machine"
            raise UserError(
                f"{name}: out of memory, its weights in {dtype} do not fit on {where}: use {advice}"
            ) from error

    def place(self, hf: Any) -> Any:
        """The opened model where it belongs, its quantised layers fit for gradients."""
        if self.quantize is not None:
            mend_gradients(hf)
        return hf if self.quantize is not None or self.device_map is not None else hf.to(self.device)


class OpeningError(Exception):
    """What transformers, safetensors or the hub's library said while a model was opened, in one line."""


# a config.json may hold anything, and is computed with before it is checked: a size of 0, a list in a number's place
_FROM_VALUES = (ValueError, TypeError, LookupError, AttributeError, StrictDataclassError)
_FROM_FILES = (OSError, EOFError, ImportError, SafetensorError, UnpicklingError)


@contextmanager
def opening_errors() -> Iterator[None]:
    """Turns everything that a damaged or foreign checkpoint makes the libraries raise into `OpeningError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            raise  # see `LoadOptions.fitting`
        raise OpeningError(first_sentence(error)) from error
    except ArithmeticError as error:
        raise OpeningError(f"a size in config.json is impossible ({first_sentence(error)})") from error
    except (*_FROM_VALUES, *_FROM_FILES) as error:
        raise OpeningError(first_sentence(error)) from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """While transformers builds a model: one at a time, `opening_errors`, without its bar over the weights
    (downloads keep theirs, they take minutes) and without bitsandbytes' remarks on kernels and on rounding its inputs.

    What transformers logs is shown when all went well. A failure is told in one line, that of the weight whose
    size is not the config's among them, which transformers says in a table of its log alone.
    """
    library = logging.getLogger("bitsandbytes")
    library.setLevel(max(library.level, logging.ERROR))
    with _LOADING, no_loading_bar(), _log_held_back() as records:
        try:
            with opening_errors(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # an error follows
                yield
        except OpeningError as error:
            sizes = next(filter(None, (_WRONG_SIZE.search(record.getMessage()) for record in records)), None)
            records.clear()
            if sizes is None:
                raise
            key, stored, wanted = sizes.groups()
            text = f"{key} has shape ({stored}) and the config asks for ({wanted}): one of the two is of another model"
            raise OpeningError(text) from error


# a line of transformers' report on loaded weights
_WRONG_SIZE = re.compile(
    r"^(\S.*?)\s*\|\s*MISMATCH.*?ckpt: torch\.Size\(\[(.*?)\]\) vs model:\s*torch\.Size\(\[(.*?)\]\)", re.MULTILINE
)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _log_held_back() -> Iterator[list[logging.LogRecord]]:
    """transformers' log in a list, passed on at the end as far as it is still there."""
    library = logging.getLogger("transformers")
    handlers, collector = library.handlers, _Collector()
    library.handlers = [collector]
    try:
        yield collector.records
    finally:
        library.handlers = handlers
        for record in collector.records:
            library.handle(record)


@contextmanager
def no_loading_bar() -> Iterator[None]:
    bars = transformers.utils.logging
    shown, downloads = bars.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with contextlib.ExitStack() as after:
        bars.disable_progress_bar()  # and the hub's too
        if shown:
            after.callback(bars.enable_progress_bar)
        if downloads:
            enable_progress_bars()
        else:
            after.callback(disable_progress_bars)
        yield
