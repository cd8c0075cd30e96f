"""The models of a comparison's rows; what has to be trained for one is trained once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval_tasks.config.presets import FinetuneRecipe, Protocol, load_recipe
from eval_tasks.data import Sample, open_image
from lvlm_radapt.defences.radapt.anchor import Anchor
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.defences.radapt.hooks import injected_anchor, injected_config
from lvlm_radapt.defences.registry import find_defence
from lvlm_radapt.embedded.dataset import CLASSES, IMAGES, write_scenes
from lvlm_radapt.experiments.compare.preset import Comparison, OwnSet, SceneSet
from lvlm_radapt.experiments.models import ModelFactory, attached, defended
from lvlm_radapt.experiments.rows import Finetune, Learn, RowSpec, slug
from lvlm_radapt.loading.guides import guide_origin, guided_anchor, load_guide
from lvlm_radapt.loading.load import is_encoder, load_any
from lvlm_radapt.loading.open_clip import is_open_clip
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.models.robustify import robustify
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.training.finetune import FinetuneSettings, finetune
from lvlm_radapt.training.images import image_files
from lvlm_radapt.training.labelled import TrainingImages
from lvlm_radapt.training.learned_anchor import LEARNED, LearnSettings, learn_anchor, notes_of, origin_of
from lvlm_radapt.training.objectives import Features
from lvlm_radapt.training.robust_twin import save_twin
from lvlm_radapt.utils.budget import parse_eps
from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.leftovers import state_of
from lvlm_radapt.utils.progress import Announce

CLASSES_OF_A_SPLIT = 32  # the fewest: of training scenes


class RowModels:
    """Opens the models of a comparison's rows. In its folder `models/` holds what was trained, `data/` the scenes.

    place: keywords of `load_any`: device and precision.
    """

    def __init__(self, comparison: Comparison, protocol: Protocol, out: Path, announce: Announce, **place: Any) -> None:
        self.bases = tuple(dict.fromkeys(column.model for column in comparison.columns))
        self._comparison = comparison
        self._protocol = protocol
        self._factory = ModelFactory(**protocol.opening(), **place)
        self._out = out
        self._announce = announce
        self._place = place

    def check(self) -> None:
        """UserError, naming the row, where a model, tower or guide that one needs cannot be opened."""
        for row in self._comparison.rows:
            for needed in (row.tower, row.guide, row.model, None if row.learn is None else row.learn.model):
                _check_there(f"row {row.name}", needed)
            if row.finetune is not None and isinstance(self._comparison.sets[row.finetune.set], OwnSet):
                self._training(row.finetune)
            elif row.finetune is not None:
                load_recipe(row.finetune.recipe)
        for column in self._comparison.columns:
            _check_there(f"column {column.title}", column.model)

    def check_fit(self, asked: Mapping[str, Sequence[Sample]]) -> None:
        """UserError, before hours of work, for a row's `model` that is no kin of a base model, and for a `defence` that
        does not go around one.

        Each is opened once. asked: by column title, samples whose images are to lie on one canvas in both.
        """
        for row in self._comparison.rows:
            for base in self.bases if row.defence is not None else ():
                with attached(self._factory.kept(base), find_defence(str(row.defence))):
                    pass
            for column in self._comparison.columns if row.model is not None else ():
                model, other = self._factory.kept(column.model), self._undefended(row, column.model)
                if type(model) is not type(other):
                    kinds = [one.hf.config.model_type for one in (other, model)]
                    raise UserError(f"row {row.name} is of another family: a {kinds[0]}, {column.model} a {kinds[1]}")
                for sample in asked.get(column.title, ())[:1]:
                    sizes = ["x".join(map(str, one.canvas(open_image(sample.image)))) for one in (other, model)]
                    if sizes[0] != sizes[1]:
                        raise UserError(
                            f"row {row.name} sees images as {sizes[0]}, {column.model} as {sizes[1]}: transfer images "
                            "fit one canvas only"
                        )

    def undefended(self) -> dict[str, PixelModel]:
        """The base models by name, which stay open."""
        return {base: self._factory.kept(base) for base in self.bases}

    @contextmanager
    def opened(self, row: RowSpec) -> Iterator[dict[str, PixelModel]]:
        """The row's models by base, each with its defence in it; what is trained for them is trained first."""
        with ExitStack() as stack:
            yield {base: stack.enter_context(self._defended(row, base)) for base in self.bases}

    def data(self, name: str) -> Path:
        """The folder of a set; scenes are drawn where they are not there yet."""
        folder, wanted = folder_of(self._comparison, name, self._out), self._comparison.sets[name]
        if isinstance(wanted, SceneSet) and not folder.exists():
            scenes, singles = self._comparison.sizes(name)
            write_scenes(
                folder,
                count=scenes,
                seed=wanted.seed,
                mixed=wanted.mixed,
                split=wanted.split,
                per_class=-(-singles // CLASSES_OF_A_SPLIT),
            )
        return folder

    def _images(self, name: str, part: str) -> Path:
        """The folder of images to train on: of scenes one part, of the user's own all."""
        return self.data(name) / part if isinstance(self._comparison.sets[name], SceneSet) else self.data(name)

    @contextmanager
    def _defended(self, row: RowSpec, base: str) -> Iterator[PixelModel]:
        model = self._undefended(row, base) if row.own_weights else self._factory.kept(base)
        if row.defence is not None:
            with attached(model, find_defence(row.defence)):
                yield model
        elif row.radapt is None:
            yield model
        else:
            with defended(model, *self._defence(row, RAdaptConfig.from_dict(row.radapt), model, base)):
                yield model

    def _undefended(self, row: RowSpec, base: str) -> PixelModel:
        """The row's model before R-Adapt, opened for the row alone."""
        if row.finetune is not None:
            return self._factory.open(str(self._finetuned(row.finetune, base)))
        return self._factory.open(row.model or base, row.tower)

    def _defence(
        self, row: RowSpec, config: RAdaptConfig, model: PixelModel, base: str
    ) -> tuple[RAdaptConfig, Anchor | None]:
        if row.guide is not None:
            guide = load_guide(row.guide, model)
            return replace(config, anchor_from=guide_origin(row.guide, guide)), guided_anchor(guide, model)
        if row.learn is not None:
            return self._learned(row, row.learn, config, row.learn.model or base)
        return config, None

    def _learned(self, row: RowSpec, how: Learn, config: RAdaptConfig, source: str) -> tuple[RAdaptConfig, Anchor]:
        """The row's settings and anchor, learned on its own model over `source`; from the adapter kept of that."""
        folder = self.kept(row, source, "anchor")
        state = state_of(folder, "learning")
        if not folder.exists():
            given = {"steps": how.steps, "batch": how.batch, "eps": None if how.eps is None else parse_eps(how.eps)}
            settings = LearnSettings(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
            images = self._images(how.set, CLASSES if how.classes else IMAGES)
            files = image_files(images, limit=how.images, seed=settings.seed)
            model = self._undefended(row, source)
            found = learn_anchor(model, files, config, settings, state=state, resume=True, announce=self._announce)
            own = replace(config, alpha=found.alpha, anchor_from=f"{source}, {origin_of(found, settings)}")
            save_adapter(robustify(model, own, found.anchor), folder, notes={LEARNED: notes_of(found, settings)})
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
            recipe, images = self._training(how)
            model = load_any(base, **self._place)
            features: Features = "cls" if is_encoder(base) else "tokens"
            settings = FinetuneSettings(how.method, recipe, how.scope, features, how.seed, rank=how.rank)
            log = finetune(model, images, settings, state=state, resume=True, announce=self._announce)
            save_twin(self._tuned(model, base), log, settings, images, folder)
        state.unlink(missing_ok=True)
        return folder

    @contextmanager
    def writable(self, row: RowSpec, base: str, model: PixelModel) -> Iterator[PixelModel]:
        """`model`, the row's as it is open; where that is quantised or spread over devices, the same on the CPU."""
        if self._in_one_piece:
            yield model
        else:
            whole = RowModels(self._comparison, self._protocol, self._out, self._announce, dtype=self._place["dtype"])
            with whole.opened(row) as opened:
                yield opened[base]

    @property
    def _in_one_piece(self) -> bool:
        return self._place.get("quantize") is None and self._place.get("device_map") is None

    def _tuned(self, model: PixelModel, base: str) -> PixelModel:
        """`model`, whose tower was trained; where it is not in one piece, the whole of `base` with that tower."""
        if self._in_one_piece:
            return model
        whole = load_any(base, dtype=self._place["dtype"])
        whole.tower.load_state_dict(model.tower.state_dict())
        return whole

    def _training(self, how: Finetune) -> tuple[FinetuneRecipe, TrainingImages]:
        """How weights are trained, and on what. UserError where the images are too few."""
        recipe = load_recipe(how.recipe).changed(
            eps=None if how.eps is None else parse_eps(how.eps), steps=how.steps, batch_size=how.batch, lr=how.lr
        )
        folder = self._images(how.set, IMAGES)
        images = TrainingImages.of(folder, limit=how.images, seed=how.seed, classes=False)
        if len(images.files) < recipe.batch_size:
            there = f"{len(images.files)} images to train on (more are held back)"
            raise UserError(f"{folder} has {there}, a batch takes {recipe.batch_size}: give more")
        return recipe, images

    def kept(self, row: RowSpec, base: str, what: str) -> Path:
        """A folder of its own for each row and base model. Where two names would meet, as of `m_a` and `m-a`, each gets
        a part of its hash."""

        def name_of(row: str, what: str, base: str) -> str:
            return f"{slug(row)}-{what}-{slug(base)}"

        learned = {one.learn.model for one in self._comparison.rows if one.learn is not None and one.learn.model}
        every = {
            (one.name, kind, name)
            for one in self._comparison.rows
            for kind in ("anchor", "weights")
            for name in learned | {*self.bases}
        }
        wanted = (row.name, what, base)
        name = name_of(*wanted)
        if any(name_of(*other) == name for other in every - {wanted}):
            name += "-" + hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:8]
        return self._out / "models" / name


def folder_of(comparison: Comparison, name: str, out: Path) -> Path:
    """Where the set's images lie: scenes in the comparison's own folder."""
    wanted = comparison.sets[name]
    return out / "data" / name if isinstance(wanted, SceneSet) else Path(wanted.folder).expanduser()


def _check_there(who: str, name: str | None) -> None:
    if name is None:
        return
    try:
        is_encoder(name)
        if is_open_clip(name) and not Path(name).expanduser().is_file():
            raise UserError("no such file")
    except UserError as error:
        raise UserError(f"{who} needs {name}, which cannot be opened: {error}") from error
