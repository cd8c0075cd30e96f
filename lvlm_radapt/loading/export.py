"""Exported folders opened again: the stock class with the weights, the defence put in by this package."""

from __future__ import annotations

import os
from pathlib import Path

from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import inject
from lvlm_radapt.loading.export_files import export_settings, stored_anchor, stored_defence
from lvlm_radapt.loading.load_options import LoadOptions
from lvlm_radapt.loading.stock import load_stock
from lvlm_radapt.models.base import LVLM, Geometry
from lvlm_radapt.utils.errors import UserError


def load_export(
    folder: str | os.PathLike[str], *, geometry: Geometry | None = None, options: LoadOptions | None = None
) -> LVLM:
    """The robustified model that `export_model` wrote to `folder`: the stock class with the weights, the defence put
    in by this package. Code that lies in the folder is not run.

    geometry: None for the one it was saved with. The model's name is the folder's. UserError, one line, when a file
    is missing, damaged or of an unknown version.
    """
    root = Path(folder).expanduser()
    settings, (_, defence) = export_settings(root), stored_defence(root)
    try:
        config = RAdaptConfig.from_dict(defence.config)
    except UserError as error:
        raise UserError(f"{root / 'config.json'}: {error}") from error
    anchor = stored_anchor(root, defence)
    if config.alpha != 0 and (anchor is None) == (defence.white is None):
        raise UserError(f"{root / 'config.json'} is damaged: alpha is {config.alpha:g} and there is no one anchor")
    model = load_stock(
        folder, geometry=settings.geometry if geometry is None else geometry, options=options or LoadOptions()
    )
    inject(model.hf, config, anchor, white=defence.white)
    return model
