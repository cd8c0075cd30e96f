"""transformers' own server over a model folder, exports among them: its classes learn what an export's config names."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from lvlm_radapt.loading.adapter_files import is_adapter
from lvlm_radapt.loading.export_files import is_export
from lvlm_radapt.loading.image_processor import filters_images
from lvlm_radapt.loading.locate import embedded_models, locate, read_config
from lvlm_radapt.utils.errors import UserError


def serve(
    model: str, *, host: str, port: int, device: str, dtype: str, tell: Callable[[str], None] = lambda text: None
) -> None:
    """Answer at http://HOST:PORT/v1 as OpenAI's chat completions do, until the process is stopped.

    tell: told in a line where, once nothing stands in the way. Of an export the Python files in its folder run, and of
    folded weights the image processor that filters.
    UserError for an adapter, for a name that stands for nothing, for missing libraries, and for a port that is taken.
    """
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise UserError("serve needs fastapi, uvicorn and openai: pip install 'transformers[serving]'")
    if model not in embedded_models() and is_adapter(model):
        raise UserError(
            f"{model} is an adapter, no whole model: write one with `lvlm-radapt robustify {model} --out DIR --export`"
        )
    source, name = locate(model)
    _check_port(host, port)
    export = Path(source).is_dir() and is_export(source)
    trusted = export or filters_images(Path(source))
    if export:
        _teach(read_config(source, name)["model_type"])
    from transformers.cli.serve import Serve

    tell(f"{name} answers at http://{host}:{port}/v1; Ctrl-C ends it")
    Serve(force_model=source, trust_remote_code=trusted, device=device, dtype=dtype, host=host, port=port)


def _teach(model_type: str) -> None:
    """Let the server find an export's class: it looks in transformers' own names, never in the folder's `auto_map`."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    name = "RAdaptForConditionalGeneration"
    setattr(transformers, name, transformers.AutoModelForImageTextToText)
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type] = name


def _check_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise UserError(f"cannot listen at {host}:{port}: {error.strerror or error}; choose another --port") from error
