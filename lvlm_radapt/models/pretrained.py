"""What users of transformers and peft look for on a model: saved, opened and pushed by methods of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import lvlm_radapt
from lvlm_radapt.utils.errors import UserError

if TYPE_CHECKING:
    from eval_tasks.run.records import Run
    from lvlm_radapt.models.base import PixelModel


class Pretrained:
    """The methods of a robust model. Each is a function of the package, which has the details."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the defence in this model to the new folder, as an adapter: `save_adapter`. UserError as for it."""
        lvlm_radapt.save_adapter(cast("PixelModel", self), folder)

    @classmethod
    def from_pretrained(cls, name: str | Path, **how: Any) -> Self:
        """Open a folder, a name or a hub id, with its defence: `load_pretrained`. UserError as for it, and where the
        model is of another class."""
        found = lvlm_radapt.load_pretrained(name, **how)
        if not isinstance(found, cls):
            raise UserError(f"{name} is a {type(found).__name__}, no {cls.__name__}: use load_pretrained")
        return found

    def push_to_hub(self, repo_id: str, runs: Sequence[Run] = (), **how: Any) -> str:
        """Upload the defence in this model as an adapter with a card that holds the scores of `runs`: `push_to_hub`
        of the package, whose keywords `how` are. The address. UserError as for it and for `save_adapter`."""
        with tempfile.TemporaryDirectory(prefix="lvlm-radapt-") as place:
            self.save_pretrained(Path(place) / "adapter")
            return lvlm_radapt.push_to_hub(Path(place) / "adapter", repo_id, runs, **how)
