"""The anchor that `robustify` is asked for: checked before a model is opened, made once it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_radapt.cli.app import console, progress_console
from lvlm_radapt.cli.resuming import command_line, progress, resumable
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.leftovers import state_of

if TYPE_CHECKING:
    from lvlm_radapt.defences.radapt.anchor import Anchor
    from lvlm_radapt.defences.radapt.config import RAdaptConfig
    from lvlm_radapt.models.base import PixelModel
    from lvlm_radapt.training.learned_anchor import LearnedAnchor, LearnSettings


IMAGES = 2000  # as many as the paper learns from


@dataclass(frozen=True)
class AnchorChoice:
    """What the flags say. learning: those of `LearnSettings` that were given, `eps` as written.

    UserError for flags that do not go together.
    """

    config: RAdaptConfig
    out: Path
    guide: str | None
    images: Path | None
    count: int | None
    learning: Mapping[str, Any]
    resume: bool

    def __post_init__(self) -> None:
        kind = self.config.anchor
        if kind != "white" and self.config.alpha == 0:
            raise UserError(f"--alpha 0 leaves the anchor out: leave --anchor {kind} out too, or give another alpha")
        if (kind == "guided") != (self.guide is not None):
            raise UserError("--anchor guided and --guide ENCODER go together: give both or neither")
        if kind == "learned" and self.images is None:
            raise UserError("--anchor learned needs images to learn from: add --images DIR")
        given = {f"--learn-{name.removeprefix('learn_')}": True for name in self.learning if name != "seed"}
        given |= {"--images": self.images is not None, "--learn-images": self.count is not None}
        given |= {"--seed": "seed" in self.learning, "--resume": self.resume}
        unused = [name for name, there in given.items() if there]
        if kind != "learned" and unused:
            raise UserError(f"{unused[0]} is for --anchor learned: add that, or leave {unused[0]} out")
        if kind == "learned":
            self.settings()
            if self.images is not None and not self.images.expanduser().is_dir():
                raise UserError(f"{self.images} is no folder: name one with images in it")

    def settings(self) -> LearnSettings:
        """How to learn; UserError for what is out of range."""
        from lvlm_radapt.training.learned_anchor import LearnSettings
        from lvlm_radapt.utils.budget import parse_eps

        given = dict(self.learning)
        return LearnSettings(**(given | {"eps": parse_eps(given["eps"])} if "eps" in given else given))

    @property
    def state(self) -> Path:
        """Where learning saves itself until the folder is written."""
        return state_of(self.out.expanduser(), "learning")


@dataclass(frozen=True)
class MadeAnchor:
    """config: with what was learned, and where the anchor comes from. notes: files to lay beside it, by name."""

    config: RAdaptConfig
    anchor: Anchor | None
    notes: Mapping[str, str]


@contextmanager
def made_anchor(choice: AnchorChoice, model: PixelModel) -> Iterator[MadeAnchor]:
    """The anchor for `model`. Inside, it is written; then what learning has saved of itself goes."""
    if choice.config.anchor == "guided":
        yield _guided(choice, model)
    elif choice.config.anchor == "learned":
        made, state = _learned(choice, model), choice.state
        with resumable(command_line("--resume"), lambda: _saved(state)):
            yield made
        state.unlink(missing_ok=True)
    else:
        yield MadeAnchor(choice.config, None, {})


def _guided(choice: AnchorChoice, model: PixelModel) -> MadeAnchor:
    from lvlm_radapt.loading.guides import guide_origin, guided_anchor, load_guide

    assert choice.guide is not None
    guide = load_guide(choice.guide, model)
    config = dataclasses.replace(choice.config, anchor_from=guide_origin(choice.guide, guide))
    return MadeAnchor(config, guided_anchor(guide, model), {})


def _learned(choice: AnchorChoice, model: PixelModel) -> MadeAnchor:
    from lvlm_radapt.training.images import image_files
    from lvlm_radapt.training.learned_anchor import LEARNED, learn_anchor, notes_of, origin_of

    assert choice.images is not None
    settings = choice.settings()
    with resumable(command_line("--resume"), lambda: _saved(choice.state)), progress() as announce:
        files = image_files(choice.images, limit=choice.count or IMAGES, seed=settings.seed, tell=progress_console.tell)
        found = learn_anchor(
            model, files, choice.config, settings, state=choice.state, resume=choice.resume, announce=announce
        )
    _report(found, settings)
    config = dataclasses.replace(choice.config, alpha=found.alpha, anchor_from=origin_of(found, settings))
    return MadeAnchor(config, found.anchor, {LEARNED: notes_of(found, settings)})


def _report(found: LearnedAnchor, settings: LearnSettings) -> None:
    first, last = found.probes[0], found.probes[-1]
    console.tell(
        f"learned in {settings.steps} steps; distance of held-back images to the undefended model's clean features "
        f"(1: as far as their mean): clean {first.clean:.3f} -> {last.clean:.3f}, "
        f"attacked {first.robust:.3f} -> {last.robust:.3f}, attacked without any defence {found.undefended:.3f}"
        + ("" if last.robust <= first.robust else "; it got WORSE: lower --learn-rate, or give more --learn-steps")
    )


def _saved(state: Path) -> str:
    return f"what is done is saved in {state}" if state.exists() else "nothing is saved yet"
