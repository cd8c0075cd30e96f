"""The model of a row, opened; what has to be trained for it is trained once and kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from attacks.eps import eps_text
from eval_tasks.config.presets import Protocol, load_recipe
from lvlm_radapt.comparison.preset import Comparison, Finetune, Learn, RowSpec, slug
from lvlm_radapt.defences.radapt.anchor import Anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import injected_anchor, injected_config
from lvlm_radapt.embedded.dataset import CLASSES, IMAGES, write_scenes
from lvlm_radapt.loading.guides import guide_origin, guided_anchor, load_guide
from lvlm_radapt.loading.load import is_encoder, load_any
from lvlm_radapt.loading.open_clip import is_open_clip
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.models.robustify import robustify
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.training.finetune import FinetuneSettings, finetune
from lvlm_radapt.training.images import image_files
from lvlm_radapt.training.labelled import TrainingImages
from lvlm_radapt.training.learned_anchor import LearnSettings, learn_anchor, notes_of
from lvlm_radapt.training.objectives import Features
from lvlm_radapt.training.robust_twin import save_twin
from lvlm_radapt.utils.budget import parse_eps
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.leftovers import state_of
from lvlm_radapt.utils.progress import Announce

KEPT = ("anchor", "weights")  # what is trained for a row
CLASSES_OF_A_SPLIT = 32  # the fewest: of training scenes


def _kept_name(row: str, what: str, base: str) -> str:
    return f"{slug(row)}-{what}-{slug(base)}"


class Workshop:
    """Makes the models of a comparison's rows in its folder: `models/` holds what was trained, `data/` the scenes."""

    def __init__(self, comparison: Comparison, protocol: Protocol, out: Path, announce: Announce, **place: Any) -> None:
        self._comparison = comparison
        self._protocol = protocol
        self._out = out
        self._announce = announce
        self._place = place

    def check(self) -> None:
        """UserError, naming the row, where a model, tower or guide that one needs is not there to be opened."""
        for row in self._comparison.rows:
            for needed in (row.tower, row.guide):
                self._need(f"row {row.name}", needed)
            if row.learn is not None:
                self._need(f"row {row.name}", row.learn.model)
            if row.finetune is not None:
                load_recipe(row.finetune.recipe)
        for column in self._comparison.columns:
            self._need(f"column {column.title}", column.model)

    def data(self, name: str) -> Path:
        """The scenes of a set, drawn where they are not there yet."""
        folder, wanted = self._out / "data" / name, self._comparison.sets[name]
        if not folder.exists():
            scenes, singles = self._sizes(name)
            write_scenes(
                folder,
                count=scenes,
                seed=wanted.seed,
                mixed=wanted.mixed,
                split=wanted.split,
                per_class=-(-singles // CLASSES_OF_A_SPLIT),
            )
        return folder

    def open(self, row: RowSpec, base: str) -> PixelModel:
        """The row's model on the base model of a column, with its defence in it."""
        model = self._undefended(row, base)
        if row.radapt is None:
            return model
        config = RAdaptConfig.from_dict(row.radapt)
        if row.guide is not None:
            guide = load_guide(row.guide, model)
            return robustify(
                model, replace(config, anchor_from=guide_origin(row.guide, guide)), guided_anchor(guide, model)
            )
        if row.learn is not None:
            return robustify(model, *self._learned(row, row.learn, config, row.learn.model or base))
        return robustify(model, config)

    def _undefended(self, row: RowSpec, base: str) -> PixelModel:
        if row.finetune is not None:
            return self._load(str(self._finetuned(row.finetune, base)))
        if row.tower is None:
            return self._load(base)
        return self._load(row.tower) if is_encoder(base) else self._load(base, tower=row.tower)

    def _learned(self, row: RowSpec, how: Learn, config: RAdaptConfig, source: str) -> tuple[RAdaptConfig, Anchor]:
        """The row's settings and anchor, learned on its own model over `source`; from the adapter kept of that."""
        folder = self.kept(row, source, "anchor")
        state = state_of(folder, "learning")
        if not folder.exists():
            given = {"steps": how.steps, "batch": how.batch, "eps": None if how.eps is None else parse_eps(how.eps)}
            settings = LearnSettings(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
            images = self.data(how.set) / (CLASSES if how.classes else IMAGES)
            files = image_files(images, limit=how.images, seed=settings.seed)
            model = self._undefended(row, source)
            found = learn_anchor(model, files, config, settings, state=state, resume=True, announce=self._announce)
            origin = (
                f"{source}, {found.images} images ({found.digest[:8]}), eps {eps_text(settings.eps)}, "
                f"{settings.steps} steps, seed {settings.seed}"
            )
            own = replace(config, alpha=found.alpha, anchor_from=origin)
            notes = {"learned.json": notes_of(found, settings)}
            save_adapter(robustify(model, own, found.anchor), folder, notes=notes)
        state.unlink(missing_ok=True)
        kept = load_any(folder, **self._place)
        learned, anchor = injected_config(kept.hf), injected_anchor(kept.hf)
        if learned is None or anchor is None:
            raise UserError(f"{folder} holds no learned anchor: remove it and run again")
        return learned, anchor

    def _finetuned(self, how: Finetune, base: str) -> Path:
        # once for all rows that differ in nothing but the defence on top
        first = next(one for one in self._comparison.rows if one.finetune == how)
        folder = self.kept(first, base, "weights")
        state = state_of(folder, "training")
        if not folder.exists():
            recipe = load_recipe(how.recipe).changed(
                eps=None if how.eps is None else parse_eps(how.eps), steps=how.steps, batch_size=how.batch, lr=how.lr
            )
            model = load_any(base, **self._place)
            features: Features = "cls" if is_encoder(base) else "tokens"
            settings = FinetuneSettings(how.method, recipe, how.scope, features, how.seed, rank=how.rank)
            images = TrainingImages.of(self.data(how.set) / IMAGES, limit=how.images, seed=settings.seed, classes=False)
            log = finetune(model, images, settings, state=state, resume=True, announce=self._announce)
            save_twin(model, log, settings, images, folder)
        state.unlink(missing_ok=True)
        return folder

    def _load(self, name: str, tower: str | None = None) -> PixelModel:
        return load_any(
            name,
            tower=tower,
            **self._protocol.opening(),
            **self._place,
        )

    def kept(self, row: RowSpec, base: str, what: str) -> Path:
        """A folder of its own for each row and base model: where names would meet, as of `m_a` and `m-a`, they get a
        part of their hash."""
        bases = {column.model for column in self._comparison.columns}
        bases |= {one.learn.model for one in self._comparison.rows if one.learn is not None and one.learn.model}
        wanted = (row.name, what, base)
        every = {(one.name, kind, name) for one in self._comparison.rows for kind in KEPT for name in bases}
        name = _kept_name(*wanted)
        if any(_kept_name(*other) == name for other in every - {wanted}):
            name += "-" + hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:8]
        return self._out / "models" / name

    def _sizes(self, name: str) -> tuple[int, int]:
        """How many scenes of a set are needed, and how many images of single things."""
        scenes, singles = 2, 0
        for column in self._comparison.columns:
            if column.set == name and column.task == "imagefolder":
                singles = max(singles, self._comparison.samples)
            elif column.set == name:
                scenes = max(scenes, self._comparison.samples)
        for row in self._comparison.rows:
            for source in (row.learn, row.finetune):
                if source is None or source.set != name:
                    continue
                if isinstance(source, Learn) and source.classes:
                    singles = max(singles, source.images)
                else:
                    scenes = max(scenes, source.images)
        return scenes, singles

    def _need(self, who: str, name: str | None) -> None:
        if name is None:
            return
        try:
            is_encoder(name)
            if is_open_clip(name) and not Path(name).expanduser().is_file():
                raise UserError("no such file")
        except UserError as error:
            raise UserError(f"{who} needs {name}, which cannot be opened: {error}") from error
