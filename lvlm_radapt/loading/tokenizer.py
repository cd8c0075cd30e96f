"""A checkpoint's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from lvlm_radapt.loading.load_options import OpeningError, opening_errors
from lvlm_radapt.loading.weights import checkpoint_file
from lvlm_radapt.models.text import renders_image
from lvlm_radapt.utils.errors import UserError


def open_tokenizer(source: str, name: str, **given: Any) -> Any:
    """The checkpoint's tokenizer; `given` goes to transformers. UserError, one line, which names the extra to install
    where packages for SentencePiece's format are all it lacks."""
    packages = is_sentencepiece_available() and is_protobuf_available()
    lacking = UserError(
        f"{name}: its tokenizer needs two packages, sentencepiece and protobuf: pip install 'lvlm-radapt[original]'"
    )
    slow_only = checkpoint_file(source, "tokenizer.json") is None and any(
        checkpoint_file(source, file) is not None for file in ("tokenizer.model", "spiece.model")
    )
    if slow_only and not packages:
        raise lacking
    try:
        with opening_errors():
            return transformers.AutoTokenizer.from_pretrained(source, **given)
    except OpeningError as error:
        cause = error.__cause__
        if not packages and isinstance(cause, ImportError) and "sentencepiece" in str(cause).lower():
            raise lacking from error
        raise UserError(f"{name}: cannot load its tokenizer: {error}") from error


def chat_template_of(source: str, name: str, tokenizer: Any, image_token: str) -> str | None:
    """The template that transformers' AutoProcessor takes: the processor's own, whichever file holds it. Many released
    tokenizers have a text-only one beside it, so theirs counts only where the processor has none and it renders an
    image. None where there is neither."""
    try:
        with opening_errors():
            config, _ = transformers.ProcessorMixin.get_processor_dict(source)
    except OpeningError as error:
        raise UserError(f"{name}: cannot read its chat template: {error}") from error
    own = _default_template(config.get("chat_template"))
    if own is not None:
        return own
    template = _default_template(tokenizer.chat_template)
    return template if template is not None and renders_image(tokenizer, template, image_token) else None


def _default_template(templates: Any) -> Any:
    """Of several named templates the default one, as transformers takes it."""
    return templates.get("default") if isinstance(templates, Mapping) else templates
