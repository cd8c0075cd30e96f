"""The Hugging Face hub: a model's folder goes up with a card that holds its scores, and comes back."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, ModelCard, constants, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from eval_tasks.audit import Audit
from eval_tasks.report.build_table import tables
from eval_tasks.report.page import headlines_of
from eval_tasks.run.facts import defended, is_named, model_label, setting, threat_of
from eval_tasks.run.records import Run
from lvlm_radapt.defences.radapt.config import RAdaptConfig
from lvlm_radapt.loading import adapter_files, export_files
from lvlm_radapt.loading.load import load_any
from lvlm_radapt.loading.locate import TRAINING_LOG, embedded_models, tuned_from
from lvlm_radapt.models.base import PixelModel
from lvlm_radapt.utils.errors import UserError, first_sentence
from lvlm_radapt.utils.text_table import as_text

CARD = "README.md"
_TAGS = ("adversarial-robustness", "lvlm-radapt")
_BEGIN, _END = "<!-- lvlm-radapt: scores -->", "<!-- lvlm-radapt: end -->"
_OWN_TEXTS = (
    adapter_files.SETTINGS,
    export_files.SETTINGS,
    TRAINING_LOG,
    "config.json",
    "learned.json",
    "calibration.json",
    "hardened.json",
)
"""Documents that this program wrote, and that may name places of this machine."""
_PLACE = re.compile(r"""(?<![\w/:.<(])/(?:[^\s"'/|<>]+/)+""")  # of this machine, before a file's name
_OPENED = {
    "lvlm-radapt": "from lvlm_radapt import load_pretrained\n\nmodel = load_pretrained({name!r})",
    "transformers": "from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained({name!r})",
    "export": "from transformers import AutoModelForImageTextToText\n\n"
    "model = AutoModelForImageTextToText.from_pretrained({name!r}, trust_remote_code=True)",
}


class _Folder(NamedTuple):
    """What a model's folder is. base: the model it was made from, where that is known. weights: the model that it is
    with `defence` in it, as runs name it."""

    path: Path
    base: str | None
    library: str
    relation: str
    opened: str
    defence: RAdaptConfig | None = None
    weights: str | None = None

    @classmethod
    def of(cls, path: Path) -> _Folder:
        path = path.expanduser().resolve()
        if adapter_files.is_adapter(path):
            saved = adapter_files.read_settings(path)
            if Path(saved.base.name).is_absolute():
                raise UserError(
                    f"{path} is an adapter for {saved.base.name}, which nobody else has: push a whole model, which "
                    f"`lvlm-radapt robustify {path} --out DIR --export` writes"
                )
            config = adapter_files.stored_config(path, saved)
            return cls(path, saved.base.name, "lvlm-radapt", "adapter", "lvlm-radapt", config, saved.base.name)
        if export_files.is_export(path):
            weights, (_, stored) = export_files.exported_from(path), export_files.stored_defence(path)
            base = tuned_from(weights) or weights
            config = RAdaptConfig.from_dict(stored.config)
            return cls(path, base, "transformers", "finetune", "export", config, weights)
        if (path / "config.json").is_file():
            return cls(path, tuned_from(str(path)), "transformers", "finetune", "transformers")
        raise UserError(f"{path} is no model folder: it has neither {adapter_files.SETTINGS} nor config.json")

    def owns(self, run: Run) -> bool:
        """Whether the run is of this model. One with a defence in it is named after its weights, too."""
        if is_named(run, str(self.path)) or Path(str(setting(run, "model", "name"))).name == self.path.name:
            return True
        radapt = setting(run, "model", "radapt")
        own = self.weights is not None and is_named(run, self.weights)
        return own and radapt is not None and RAdaptConfig.from_dict(radapt) == self.defence

    def is_base(self, run: Run) -> bool:
        return self.base is not None and is_named(run, self.base) and not defended(run)


def model_card(
    folder: Path, repo_id: str, runs: Sequence[Run] = (), *, licence: str | None = None, own: str | None = None
) -> str:
    """The card of the model in `folder`, Markdown behind YAML: what it is, how it is opened, and the scores of `runs`.

    A README.md that is there, or the text `own` in its place, is kept, and its own metadata win; scores of an earlier
    push are replaced. UserError for a folder that is no model's, and for runs of other models than it and its base.
    """
    found = _Folder.of(folder)
    for run in runs:
        if not found.owns(run) and not found.is_base(run):
            raise UserError(
                f"{run.path} is of {model_label(run)}, which is neither {folder} nor its base: leave it out"
            )
    if runs and not any(map(found.owns, runs)):
        raise UserError(f"no run is of {folder} itself: give one, or leave its base's runs out")
    path = found.path / CARD
    text = own if own is not None else path.read_text("utf-8", errors="replace") if path.is_file() else ""
    try:
        card = ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}", ignore_metadata_errors=True)
    except Exception as error:  # YAML of any kind
        raise UserError(f"{path} has no YAML in front that can be read: {first_sentence(error)}") from error
    known: dict[str, Any] = {
        "base_model": found.base if _is_repo(found.base) else None,
        "base_model_relation": found.relation if _is_repo(found.base) else None,
        "library_name": found.library,
        "license": licence or ("mit" if found.base in embedded_models() else None),
    }
    for key, value in known.items():
        if value is not None and (card.data.get(key) is None or (key == "license" and licence)):
            card.data[key] = value
    card.data["tags"] = list(dict.fromkeys([*(card.data.get("tags") or []), *_TAGS]))
    body = re.sub(f"{_BEGIN}.*?{_END}\n?", "", card.text, flags=re.DOTALL).strip()
    if not body:
        of = "" if found.base is None else f", made from {as_text(found.base)}"
        body = f"# {as_text(repo_id.split('/')[-1])}\n\nA vision model{of}."
    use = _OPENED[found.opened].format(name=repo_id)
    card.text = f"{body}\n\n{_BEGIN}\n## Use\n\n```python\n{use}\n```\n\n{_scores(runs)}{_END}\n"
    return _PLACE.sub("", str(card))


def _scores(runs: Sequence[Run]) -> str:
    heading = "## Scores under attack\n\n"
    if not runs:
        return heading + "None were given with this model: nothing is claimed of its robustness.\n"
    lines = []
    if not any(threat_of(run) == "adaptive" for run in runs):
        lines.append("**Transfer at most: no attack that knows this model was run. It is not shown to hold.**\n")
    for table in tables(runs).values():
        lines += [f"- {as_text(one.model)}: **{as_text(one.verdict)}**" for one in headlines_of(table)]
        lines += ["", table.to_markdown()]
    for run in runs:
        if run.metrics.get("audit") is not None:
            lines.append(f"- Audit of {as_text(run.path.name)}: {Audit.from_dict(run.metrics['audit']).line()}")
    said = (
        "An adaptive score is an upper bound: a better attack can only lower it. A transfer score shows nothing more\n"
    )
    return (
        heading + "\n".join(lines) + f"\n\n{said}than that this one attack, which does not know the model, was held.\n"
    )


def push_to_hub(
    folder: Path | str,
    repo_id: str,
    runs: Sequence[Run] = (),
    *,
    licence: str | None = None,
    private: bool | None = None,
) -> str:
    """Upload the model in `folder` to the hub as `repo_id` (owner/name), with `model_card` as its README.md.

    Gives its address. The token is huggingface_hub's own: HF_TOKEN, or that of `hf auth login`. The folder stays as it
    is. What goes up does not tell where folders lie on this machine. private: of a new repository, None for the
    owner's default.

    UserError as for `model_card`, for links in the folder, without a token, and where the hub refuses or is not there.
    """
    folder = Path(folder)
    if not _is_repo(repo_id):
        raise UserError(f"{repo_id!r} is no name on the hub: give owner/name")
    with _staged(folder, model_card(folder, repo_id, runs, licence=licence)) as staged:
        if constants.HF_HUB_OFFLINE:
            raise UserError("HF_HUB_OFFLINE is set: nothing can be pushed; unset it")
        if get_token() is None:
            raise UserError("there is no token for the hub: run `hf auth login`, or set HF_TOKEN")
        api = HfApi()
        try:
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=staged, commit_message="Upload with lvlm-radapt")
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            what = "the token may not do that" if status in (401, 403) else first_sentence(error)
            raise UserError(f"cannot push to {repo_id} at {api.endpoint}: {what}; push again to go on") from error
    return str(address)


@contextmanager
def _staged(folder: Path, card: str) -> Iterator[Path]:
    """A folder of links to the model's files, with the card, and own documents without this machine's paths."""
    root = folder.expanduser().resolve()
    with tempfile.TemporaryDirectory(prefix="lvlm-radapt-") as place:
        staged = Path(place)
        for file in sorted(root.rglob("*")):
            within = file.relative_to(root)
            if any(part.startswith(".") for part in within.parts):
                continue
            if file.is_symlink():
                raise UserError(f"{file} is a link: copy the file there, or remove the link")
            if file.is_file() and within.name != CARD:
                (staged / within).parent.mkdir(parents=True, exist_ok=True)
                if within.name in _OWN_TEXTS:
                    (staged / within).write_text(_PLACE.sub("", file.read_text("utf-8")), "utf-8")
                else:
                    (staged / within).symlink_to(file)
        (staged / CARD).write_text(card, "utf-8", errors="backslashreplace")
        yield staged


def load_pretrained(name: str | Path, **how: Any) -> PixelModel:
    """`load_any` of a folder or name, and of what `push_to_hub` put on the hub, which is fetched whole.

    how: keywords of `load_any`. UserError as for it."""
    text = str(name)
    if _is_repo(text) and not Path(text).expanduser().exists():
        for settings in (adapter_files.SETTINGS, export_files.SETTINGS):
            try:
                hf_hub_download(text, settings)
                return load_any(snapshot_download(text), **how)
            except (HTTPError, OSError):  # none of ours there, or no hub: it may be in the cache
                continue
    return load_any(name, **how)


def _is_repo(name: str | None) -> bool:
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return False
    return (name or "").count("/") == 1
