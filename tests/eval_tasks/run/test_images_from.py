"""`eval --images-from RUN` takes from that run what it fixes, and refuses only what says something else."""

import copy
from pathlib import Path

import pytest
import yaml

from eval_tasks.config.presets import load_protocol
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.data import load_task
from eval_tasks.run.records import Run, RunFolder, read_run
from eval_tasks.run.reuse import image_source, taken_from
from lvlm_radapt import RAdaptConfig, load_model, robustify
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.utils.errors import UserError
from tests.helpers.cli import Cli, exit_code
from tests.helpers.tiny_checkpoints import save_llava


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a checkpoint, its adapter, and an adaptive run on the checkpoint: one image is missing."""
    root = tmp_path_factory.mktemp("place")
    write_scenes(root / "data", count=4)
    checkpoint = save_llava(root / "llava")
    save_adapter(robustify(load_model(checkpoint), RAdaptConfig()), root / "adapter")
    next(iter(sorted((root / "data" / "val2014").iterdir()))).unlink()
    code = exit_code(
        "eval", checkpoint, "--task", "coco", "--data", root / "data", "--attack", "e2e", "--eps", "8/255",
        "--steps", 2, "--samples", 4, "--seed", 5, "--preset", "scenes", "--skip-missing", "--out", root / "stock",
    )  # fmt: skip
    assert code == 0
    return root


@pytest.fixture(scope="module")
def stock(place: Path) -> Run:
    return read_run(place / "stock")


def again(place: Path, out: Path, *more: object) -> list[object]:
    task = ["--task", "coco", "--data", place / "data"]
    return ["eval", place / "adapter", *task, "--images-from", place / "stock", "--out", out, *more]


def test_samples_attack_seed_and_preset_are_those_of_the_run(place: Path, stock: Run, tmp_path: Path) -> None:
    assert exit_code(*again(place, tmp_path / "again")) == 0
    run = read_run(tmp_path / "again")
    assert [s.id for s in run.samples] == [s.id for s in stock.samples]
    assert len(run.samples) == 3  # the fourth has no image
    assert any("left out" in note for note in run.metrics["notes"])
    assert run.settings["attack"] == stock.settings["attack"] | {"threat": "transfer"}
    for key in ("seed", "preset", "ids", "asked", "left_out"):
        assert run.settings[key] == stock.settings[key]
    for sample in run.samples:
        made, reused = (RunFolder(one.path).load_image(sample.id) for one in (stock, run))
        assert bool((made == reused).all())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--steps", 3), "another steps: 2, not 3"),
        (("--samples", 4), "another samples: 3, not 4"),
        (("--seed", 6), "another seed: 5, not 6"),
        (("--eps", "4/255"), "another eps: 8/255, not 4/255"),
        (("--attack", "embedding"), "another attack: e2e, not embedding"),
        (("--attack", "none"), "another attack: e2e, not none"),
        (("--norm", "L2"), "another norm: Linf, not L2"),
        (("--target", "red"), "another target: None, not red"),
        (("--half", "float16"), "another half: auto, not float16"),
        (("--early-exit",), "another early-exit: False, not True"),
        (("--threat", "adaptive"), "transfer only"),
    ],
)
def test_only_a_contradiction_is_refused_and_in_one_line(
    flags: tuple[object, ...], said: str, place: Path, tmp_path: Path, cli: Cli
) -> None:
    assert said in cli.refused(*again(place, tmp_path / "again", *flags))
    assert not (tmp_path / "again").exists()


def test_flags_that_say_the_same_are_no_contradiction(place: Path) -> None:
    given = {"steps": 2, "samples": 3, "seed": 5, "eps": repr(8 / 255), "attack": "e2e", "norm": "Linf", "task": "coco"}
    assert taken_from(place / "stock", given) == taken_from(place / "stock", {})
    with pytest.raises(UserError, match="another task: coco, not vqav2"):
        taken_from(place / "stock", {"task": "vqav2"})


def test_a_preset_of_the_user_s_own_must_be_named_again(place: Path, tmp_path: Path) -> None:
    fields = load_protocol("scenes").model_dump(exclude_none=True) | {"name": "mine", "conversation": None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    asked = ("--task", "coco", "--data", place / "data", "--samples", 2, "--skip-missing")
    attack = ("--attack", "e2e", "--steps", 1, "--preset", tmp_path / "mine.yaml")
    assert exit_code("eval", place / "llava", *asked, *attack, "--out", tmp_path / "run") == 0
    with pytest.raises(UserError, match="preset mine, a file of yours: name it"):
        taken_from(tmp_path / "run", {})
    assert taken_from(tmp_path / "run", {"preset": "mine.yaml"}).flags["preset"] == "mine.yaml"


def test_a_clean_run_has_no_images(place: Path, tmp_path: Path) -> None:
    asked = ("--task", "coco", "--data", place / "data", "--samples", 2, "--skip-missing", "--preset", "scenes")
    assert exit_code("eval", place / "llava", *asked, "--out", tmp_path / "clean") == 0
    with pytest.raises(UserError, match="it was clean"):
        taken_from(tmp_path / "clean", {})


def test_the_document_that_is_checked_stays_as_it_was(place: Path, stock: Run) -> None:
    samples = {sample.id: sample for sample in load_task("coco", place / "data")}
    document = stock.settings | {"attack": stock.settings["attack"] | {"threat": "transfer", "surrogate": "another"}}
    before = copy.deepcopy(document)
    own = {key: document["attack"][key] for key in ("eps", "steps", "norm")}
    made_again = make_attack(document["attack"]["name"], threat="transfer", **own)
    source, made = image_source(stock.path, made_again, document, [samples[s.id] for s in stock.samples])
    assert document == before
    assert source is not None
    assert made["attack"]["surrogate"] is None  # the undefended model
    assert image_source(None, None, document, [])[1] is document
