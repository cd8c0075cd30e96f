"""The first image and the first prompt of a checkpoint, processed while it is opened: what its files make impossible is
told before any folder is begun."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from PIL import Image

from attacks.auto_batch import out_of_memory
from lvlm_radapt.models.base import LVLM, PixelModel
from lvlm_radapt.utils.errors import UserError, first_sentence

Parameters = ParamSpec("Parameters")
Model = TypeVar("Model", bound=PixelModel)


def tried(open_model: Callable[Parameters, Model]) -> Callable[Parameters, Model]:
    """The opening function, its model tried with one image, and a language model's with one question about it.

    UserError, one line, with the model's name where either cannot be processed; errors about memory stay as they are.
    """

    @wraps(open_model)
    def opened(*args: Parameters.args, **settings: Parameters.kwargs) -> Model:
        model = open_model(*args, **settings)
        check_first_input(model)
        return model

    return opened


@torch.no_grad()
def check_first_input(model: PixelModel) -> None:
    """Take an image through the vision tower; with a language model, place it in a prompt, too. The language model
    itself is not run, which would take minutes on a CPU. Errors as for `tried`."""
    image = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    name = os.fspath(model.name)
    try:
        batch = model.pixels([image])
        with model.naming_size(batch):
            if isinstance(model, LVLM):
                model.embed_prompts(batch, ["What is this?"])
            else:
                model.features(batch)
    except UserError as error:
        raise error if str(error).startswith(name) else UserError(f"{name}: {error}") from error
    except Exception as error:  # transformers' and Pillow's own, of any kind, over what the checkpoint's files say
        if out_of_memory(error):
            raise
        what = f"{type(error).__name__}: {first_sentence(error)}" if str(error) else type(error).__name__
        raise UserError(
            f"{name}: its first image and question cannot be processed ({what}): its config.json, image processor, "
            "tokenizer and weights do not fit together"
        ) from error
