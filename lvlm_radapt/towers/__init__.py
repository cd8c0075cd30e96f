"""Vision encoders: an adapter a family, found from the transformers model that holds the encoder.

Every file here is imported, so that a new tower is known as soon as its file is there.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from lvlm_radapt.towers.base import Tower, find_tower

__all__ = ["Tower", "find_tower"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
