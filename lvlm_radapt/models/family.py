"""A family of checkpoints as one record: the models that one class opens, and what loading and saving must know."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import transformers

from lvlm_radapt.models.speedups import last_layer
from lvlm_radapt.towers import Tower, find_tower
from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from lvlm_radapt.models.base import LVLM
    from lvlm_radapt.models.clip import CLIPEncoder


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. Its own file in `lvlm_radapt.models` holds it as FAMILY, and nothing else lists it.

    Families of other packages are found through the entry-point group `lvlm_radapt.models`, each a `Family`.
    """

    checkpoints: Mapping[str, tuple[str, ...]]
    """model_type of a config.json -> names of transformers classes. Of several, that which config.json names under
    `architectures`, else the first. A class that the installed transformers lacks is absent."""
    lvlm: type[LVLM] | None = None
    """The class that opens them as a vision-language model; its constructor takes what `build` gives it."""
    lvlm_over: Mapping[str, type[LVLM]] = field(default_factory=dict)
    """model_type of config.json's `vision_config` -> the class in place of `lvlm`, where that tower takes images
    otherwise."""
    encoder: type[CLIPEncoder] | None = None
    """The class that opens them as an image encoder, in place of `lvlm`."""
    towers: tuple[type[Tower], ...]
    """The vision towers that are found in them."""
    image_processors: tuple[str, ...]
    """What `image_processor_type` says in their files; transformers has each with `Pil` after its name too."""
    plain_layers: tuple[str, ...] = ()
    """Classes of decoder layers that end in x + mlp(post_attention_layernorm(x)), x being what attention leaves. The
    last one's MLP then runs at the answer's positions alone; other layers are run whole."""
    unquantised: tuple[str, ...] = ()
    """Modules that stay in full precision under 4 or 8 bits, by their path from the top."""

    def __post_init__(self) -> None:
        if (self.lvlm is None) == (self.encoder is None):
            raise UserError(f"the family of {', '.join(self.checkpoints)} names both or none of lvlm and encoder")

    @property
    def available(self) -> dict[str, str]:
        """model_type -> transformers class, of those that the installed transformers has."""
        found = {kind: [name for name in names if name in known_classes()] for kind, names in self.checkpoints.items()}
        return {kind: names[0] for kind, names in found.items() if names}

    def hf_class(self, config: Mapping[str, Any]) -> Any:
        """The transformers class of a checkpoint with that content of config.json."""
        names = self.checkpoints[config["model_type"]]
        told = config.get("architectures")  # which may be anything
        named = [name for name in names if isinstance(told, list) and name in told]
        return getattr(transformers, (named or [*names])[0])

    def lvlm_of(self, config: Mapping[str, Any]) -> type[LVLM] | None:
        """The class of ours for a checkpoint with that content of config.json; None for an image encoder."""
        vision = config.get("vision_config")  # which may be anything
        kind = vision.get("model_type") if isinstance(vision, Mapping) else None
        return self.lvlm_over.get(str(kind), self.lvlm)

    def build(self, hf: Any, tokenizer: Any, image_processor: Any, *, name: str, **settings: Any) -> Any:
        """The family's class around an opened transformers model.

        settings: for an LVLM `geometry`, `chat_template` and `conversation`, for an encoder `geometry` and
        `feature_layer`.

        UserError where the model holds another vision tower than the family's.
        """
        tower = find_tower(hf)
        if type(tower) not in self.towers:
            raise UserError(f"{name}: its vision tower is a {type(tower.module).__name__}, which is not read")
        model: Any = self.lvlm_of(hf.config.to_dict()) or self.encoder
        model = model(hf, tokenizer, image_processor, name=name, **settings)
        if self.lvlm is not None:
            last_layer.prepare(model.language_model, self.plain_layers)
        return model


@functools.cache
def known_classes() -> frozenset[str]:
    """The names that the installed transformers has."""
    return frozenset(dir(transformers))  # asking for a class itself would import its file
