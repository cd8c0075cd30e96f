"""What a defence is: something put into a frozen model that can be taken out again, and that runs name.

Most defences change the images before the vision tower: they override `pixels`. One that works inside the network
overrides `put_in` and `take_out`. Both are attacked through, and both are in every score.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from torch import Tensor

from attacks.straight_through import identity_backward
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.plugins import origin

if TYPE_CHECKING:
    from lvlm_radapt.models.base import PixelModel

Gradient = Literal["exact", "bpda"]


@dataclass(frozen=True)
class Defence:
    """Base of all defences. A subclass is a frozen dataclass whose fields are its settings, plain JSON values.

    UserError from the constructor for a setting out of range.
    """

    name: ClassVar[str]
    """What runs and tables call it; the class's own name if left out."""
    gradient: ClassVar[Gradient] = "exact"
    """`exact`: autograd sees through it. `bpda`: it is not differentiable, so the gradient of its output is taken for
    that of its input (Athalye et al. 2018, arXiv 1802.00420)."""
    random: ClassVar[bool] = False
    """Whether `pixels` draws from its seeds: an attack then raises the mean over several draws (EOT)."""

    def __init_subclass__(cls) -> None:
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def pixels(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """The images that the tower gets in place of x.

        x: float32 [B, 3, H, W] in [0, 1], each row an image, or one view of an image that the model cuts into views.
        seeds: one for each row, the only source of randomness. A row's result depends on that row and its seed alone.
        The result has x's shape.
        """
        return x

    def put_in(self, model: PixelModel) -> None:
        """Change `model` itself, by hooks for example. No weight may change."""

    def take_out(self, model: PixelModel) -> None:
        """Undo `put_in`."""

    def attach(self, model: PixelModel) -> None:
        """Put the defence into `model`, in place. UserError where there is one already, or where `to_dict` does not
        tell all settings."""
        self.check_free(model)
        self._check_recorded()
        self.put_in(model)
        model.attached = self

    def detach(self, model: PixelModel) -> None:
        """Take the defence out of `model` again. UserError where it is not in."""
        if model.attached is not self:
            raise UserError(f"{model.name} does not have this defence {self.name}: there is nothing to detach")
        self.take_out(model)
        model.attached = None

    @contextmanager
    def taken_out(self, model: PixelModel) -> Iterator[None]:
        """Inside, `model` runs without the defence that it has. Not per thread."""
        self.detach(model)
        try:
            yield
        finally:
            self.put_in(model)
            model.attached = self

    def seen(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """`pixels(x, seeds)` with the gradient that this defence has. UserError where the shape is another."""
        if self.gradient == "bpda":
            made = identity_backward(lambda images: self.pixels(images, seeds), x)
        else:
            made = self.pixels(x, seeds)
        if made.shape != x.shape:
            raise UserError(
                f"defence {self.name} made images {tuple(made.shape)} of {tuple(x.shape)}: it must keep the shape"
            )
        return made

    def describe(self) -> str:
        """Name and settings in words."""
        settings = ", ".join(f"{key} {value}" for key, value in self.to_dict().items())
        return f"{self.name} ({settings})" if settings else self.name

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values; `from_dict` takes them back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The defence with these settings. UserError for one that it does not know."""
        known = inspect.signature(cls).parameters
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise UserError(f"defence {cls.name} has no setting {', '.join(unknown)}: known are {', '.join(known)}")
        return cls(**settings)

    def check_free(self, model: PixelModel) -> None:
        """UserError where `model` has a defence already, or runs elsewhere."""
        if model.answers_only:
            raise UserError(f"{model.name} runs elsewhere: serve it with the defence {self.name} inside")
        if model.defence is not None:
            raise UserError(
                f"{model.name} has the defence {model.defence.name} already: take that out first, or evaluate it alone"
            )

    def _check_recorded(self) -> None:
        told = self.to_dict()
        lost = [name for name in inspect.signature(type(self)).parameters if name not in told]
        if lost:
            raise UserError(
                f"defence {self.name}: to_dict leaves out {', '.join(lost)}: make it a frozen dataclass, or tell all"
            )
        try:
            json.dumps(told, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(f"defence {self.name}: its settings are no plain JSON values: {error}") from error


def attach(model: PixelModel, defence: Defence | None, draws: int | None = None) -> None:
    """Put the defence, if any, into `model`. draws: over how many an attack averages; None for the model's own number.
    UserError as for `Defence.attach`."""
    if defence is not None:
        defence.attach(model)
    if draws is not None:
        model.eot_draws = draws


def refuse_attached(model: PixelModel, work: str) -> None:
    """UserError for a model with a defence that is code around it, which `work` ("fine-tuning it") does not know."""
    if model.attached is not None:
        raise UserError(f"{model.name} has the defence {model.attached.name} around it: detach it before {work}")


def defence_document(model: PixelModel) -> dict[str, Any]:
    """`{"defence": ...}`, what run.json and audit.json say of the model's defence. {} without one, and for R-Adapt,
    which they have under `radapt`."""
    defence = model.attached
    if defence is None:
        return {}
    told = {
        "name": defence.name,
        "settings": defence.to_dict(),
        "gradient": defence.gradient,
        "random": defence.random,
        "draws": model.draws if defence.random else None,
        "plugin": origin(defence),
    }
    return {"defence": told}


def defence_remarks(model: PixelModel) -> list[str]:
    """What a reader of scores has to know of the model's defence: how it is attacked, and whose code it is."""
    defence = model.attached
    if defence is None:
        return []
    said = []
    if defence.gradient == "bpda":
        said.append(
            f"the defence {defence.name} is not differentiable: attacks take the gradient of its output for that of "
            "its input (BPDA)"
        )
    if defence.random:
        said.append(
            f"the defence {defence.name} is random: attacks raise the mean over {model.draws} draws (EOT), and scores "
            "come from a draw of their own"
        )
    plugin = origin(defence)
    if plugin is not None:
        package = "of no installed package" if plugin["version"] is None else f"version {plugin['version']}"
        said.append(f"the defence is a plug-in: {plugin['name']}, {package}, SHA-256 of its file {plugin['sha256']}")
    return said


def derived_seed(seed: int, *numbers: int) -> int:
    """The seed of a draw or a view, by its numbers, of an image whose own seed is `seed`: below 2**63, and its own."""
    digest = hashlib.sha256("/".join(map(str, (seed, *numbers))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
