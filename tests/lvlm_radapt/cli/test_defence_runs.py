"""Defences from the command line: recorded, reproducible, never taken for the undefended model; outsiders' too."""

import hashlib
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval_tasks.audit import CHECKS, Audit, Finding
from eval_tasks.audit.build_target import on_one_canvas
from eval_tasks.audit.context import AuditContext
from eval_tasks.audit.suite import run_checks
from eval_tasks.config.presets import load_protocol
from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.data import load_task
from eval_tasks.report.build_table import comparison
from eval_tasks.run.audit_of_run import target_of_run
from eval_tasks.run.facts import model_label
from eval_tasks.run.records import Run, read_run
from eval_tasks.tasks.make_task import make_task
from lvlm_radapt import load_model, robustify
from lvlm_radapt.defences.random_resize import RandomResize
from lvlm_radapt.saving.adapter import save_adapter
from tests.helpers.cli import Cli, exit_code
from tests.helpers.commands import contents, launch
from tests.helpers.data_sets import scenes_folder
from tests.helpers.slow import slow

EXTEND = Path(__file__).parents[3] / "docs" / "extend.md"


data = scenes_folder(count=8, per_class=1)


def words(data: Path, out: Path, *more: object, steps: int = 2) -> list[str]:
    sizes = ["--samples", "6", "--chunk-size", "3", "--batch-size", "2", "--device", "cpu"]
    given = ["eval", "tiny-llava", "--task", "vqav2", "--data", str(data), "--out", str(out), *sizes]
    attack = ["--attack", "e2e", "--eps", "8/255", "--steps", str(steps)] if "--attack" not in more else []
    return [*given, *attack, *map(str, more)]


def evaluated(data: Path, out: Path, *more: object) -> Run:
    assert exit_code(*words(data, out, *more)) == 0
    return read_run(out)


@pytest.fixture(scope="module")
def stock(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return evaluated(data, tmp_path_factory.mktemp("runs") / "stock")


@pytest.fixture(scope="module")
def jpeg(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "jpeg"
    return evaluated(data, out, "--defence", "jpeg", "--defence-set", "quality=20")


def test_a_run_and_its_report_say_which_defence_and_how_it_was_attacked(jpeg: Run) -> None:
    assert jpeg.settings["model"]["radapt"] is None
    assert jpeg.settings["model"]["defence"] == {
        "name": "jpeg", "settings": {"quality": 20}, "gradient": "bpda", "random": False, "draws": None, "plugin": None,
    }  # fmt: skip
    assert model_label(jpeg) == "tiny-llava + jpeg (quality 20)"
    assert "the defence jpeg is not differentiable" in " ".join(jpeg.metrics["notes"])
    page = (jpeg.path / "report.html").read_text()
    assert "+ jpeg (quality 20)" in page
    assert "(BPDA)" in page
    audit = Audit.from_dict(jpeg.metrics["audit"])
    assert not {"gradient accuracy", "input resolution"} & {finding.name for finding in audit.findings}


def test_the_table_holds_it_against_the_undefended_model(stock: Run, jpeg: Run, data: Path, tmp_path: Path) -> None:
    flags = ("--defence", "jpeg", "--defence-set", "quality=20", "--threat", "transfer")
    transfer = evaluated(data, tmp_path / "transfer", *flags)
    assert transfer.settings["attack"]["surrogate"] is None  # its own undefended twin
    rows = {row.model: row for row in comparison([stock, jpeg, transfer]).rows}
    assert list(rows) == ["tiny-llava", "tiny-llava + jpeg (quality 20)"]
    defended = rows["tiny-llava + jpeg (quality 20)"]
    assert defended.defended
    assert defended.transfer.value is not None
    assert defended.gain.value is not None
    assert rows["tiny-llava"].gain.value is None
    # what transfer scores is made on the undefended model, to the bit
    for name in ("images",):
        made = sorted((transfer.path / name).iterdir())
        assert [path.read_bytes() for path in made] == [(stock.path / name / path.name).read_bytes() for path in made]
        assert [path.read_bytes() for path in made] != [(jpeg.path / name / path.name).read_bytes() for path in made]


def test_another_settings_is_another_row(jpeg: Run, data: Path, tmp_path: Path) -> None:
    other = evaluated(data, tmp_path / "other", "--defence", "jpeg", "--defence-set", "quality=90")
    assert len(comparison([jpeg, other]).rows) == 2


def test_images_of_a_defended_model_are_not_its_undefended_twins(
    stock: Run, jpeg: Run, data: Path, tmp_path: Path
) -> None:
    found = evaluated(data, tmp_path / "again", "--attack", "e2e", "--images-from", jpeg.path, "--defence", "jpeg")
    assert found.settings["attack"]["surrogate"] == "tiny-llava"
    own = evaluated(data, tmp_path / "own", "--attack", "e2e", "--images-from", stock.path, "--defence", "jpeg")
    assert own.settings["attack"]["surrogate"] is None


RANDOM = ("--defence", "random-resize", "--defence-set", "smallest=0.7", "--eot-draws", "2")


@pytest.mark.slow
def test_a_random_defence_gives_the_same_bits_whatever_shares_the_work(data: Path, tmp_path: Path) -> None:
    assert exit_code(*words(data, tmp_path / "one", *RANDOM)) == 0
    two = launch(words(data, tmp_path / "two", *RANDOM), tmp_path / "logs", 2)
    assert [process.wait(300) for process in two] == [0, 0], [process.err for process in two]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    run = read_run(tmp_path / "one")
    assert run.settings["model"]["defence"]["draws"] == 2
    assert "raise the mean over 2 draws (EOT)" in " ".join(run.metrics["notes"])
    held = [f for f in run.metrics["audit"]["findings"] if "2 of its draws, held fixed" in f["explanation"]]
    assert {"gradients", "determinism"} <= {f["name"] for f in held} or not held


def test_draws_are_of_the_sample_and_not_of_its_neighbours(data: Path, tmp_path: Path) -> None:
    runs = [
        evaluated(data, tmp_path / size, "--attack", "none", *RANDOM[:4], "--batch-size", size) for size in ("1", "6")
    ]
    answers = [[sample.clean.output for sample in run.samples] for run in runs]
    assert answers[0] == answers[1]


def test_classifiers_and_retrieval_take_a_random_defence(data: Path, tmp_path: Path) -> None:
    for task, folder, attack in (("imagefolder", "classes", "apgd-ce"), ("coco-retrieval", "", "contrastive")):
        given = words(data / folder, tmp_path / task, "--attack", attack, "--eps", "4/255", "--steps", 2, *RANDOM)
        given[given.index("tiny-llava")], given[given.index("vqav2")] = "tiny-clip", task
        assert exit_code(*given) == 0
        assert read_run(tmp_path / task).settings["model"]["defence"]["name"] == "random-resize"


def audited(data: Path, out: Path, *more: object) -> dict[str, Finding]:
    given = ["audit", "tiny-llava", "--task", "vqav2", "--data", data, "--out", out, "--eps", "8/255", "--steps", "3"]
    assert exit_code(*given, "--samples", "4", "--device", "cpu", *more) == 0
    document = json.loads((out / "audit.json").read_text())
    audit = Audit.from_dict(document["audit"])
    found = {finding.name: finding for finding in audit.findings}
    return found | {name: Finding(name, "pass", f"skipped: {why}") for name, why in audit.skipped.items()}


@pytest.mark.slow
def test_the_audit_of_a_defence_without_gradient_skips_what_only_a_true_gradient_can_pass(
    data: Path, tmp_path: Path
) -> None:
    found = audited(data, tmp_path / "audit", "--defence", "jpeg", "--defence-set", "quality=40")
    for name in ("gradient accuracy", "input resolution"):
        assert "passes the defence straight through" in found[name].explanation
    assert found["draws"].explanation.startswith("skipped: no defence that draws")
    assert {"gradients", "determinism", "transfer", "bpda", "noise"} <= {
        name for name, finding in found.items() if not finding.explanation.startswith("skipped")
    }
    assert "tiny-llava + jpeg (quality 40)" in (tmp_path / "audit" / "audit.html").read_text()


@pytest.mark.slow
def test_the_audit_of_a_random_defence_holds_its_draws_and_finds_too_few_of_them(data: Path) -> None:
    model = load_model("tiny-llava")
    RandomResize(0.4).attach(model)
    model.eot_draws = 1
    chosen = load_task("vqav2", data)[:12]
    run = make_task("vqav2", load_protocol("scenes")).bind(model, chosen, chosen, batch_size=12)
    same, batch = on_one_canvas(model, chosen, 0)
    assert same == chosen
    attack = make_attack("e2e", eps="8/255", steps=8)
    assert attack is not None
    target = target_of_run(run, chosen, batch, attack, seed=0)
    held = {"gradients", "determinism", "batch invariance", "gradient accuracy", "input resolution"}
    checks = [check for check in CHECKS if check.name in held | {"draws"}]
    # planted: an attack that sees one draw, and the same at every step
    elsewhere = target_of_run(run, chosen, batch.with_seeds(range(12)), attack, seed=0).loss
    drawn = target.drawn
    assert drawn is not None
    flawed = replace(target, drawn=lambda times: elsewhere if times == 1 else drawn(times))
    found = {f.name: f for f in run_checks(AuditContext(flawed, steps=8, queries=20), checks)[0]}
    for name in held:
        assert found[name].verdict == "pass", found[name]
        assert found[name].explanation.endswith("The defence is random: 1 of its draws, held fixed.")
    assert found["draws"].explanation.startswith("With 4 draws instead of 1 the loss goes from ")
    assert found["draws"].verdict != "pass", found["draws"]


@pytest.mark.parametrize("with_audit", [False, slow(True)])
def test_the_page_on_adding_a_defence_holds_word_for_word(
    with_audit: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ""])
    section = EXTEND.read_text().split("## Add a defence\n")[1].split("\n## ")[0]
    (source,) = re.findall(r"```python file=blurring.py\n(.*?)```", section, re.DOTALL)
    score, audit = (shlex.split(line)[1:] for line in section.splitlines() if line.startswith("lvlm-radapt "))
    assert len(source.splitlines()) <= 60
    Path("blurring.py").write_text(source)
    sys.modules.pop("blurring", None)  # a test before this one imported its own file of that name
    Path("scenes").symlink_to(data)
    assert exit_code(*score) == 0
    run = read_run(Path("blurred"))
    recorded = run.settings["model"]["defence"]
    assert recorded["name"] == "Blur"
    assert recorded["settings"] == {"size": 5}
    digest = hashlib.sha256(source.encode()).hexdigest()
    assert recorded["plugin"] == {"name": "blurring:Blur", "version": None, "sha256": digest}
    assert digest in " ".join(run.metrics["notes"])
    assert model_label(run) == "tiny-llava + blurring:Blur (size 5)"
    assert [row.defended for row in comparison([run]).rows] == [True]
    if with_audit:
        cli.done(*audit)
        told = json.loads(Path("blurred-audit/audit.json").read_text())
        assert told["model"]["defence"] == recorded
        assert "blurring:Blur (size 5)" in Path("blurred-audit/audit.html").read_text()
    # a run is not gone on with under another file of the same name
    Path("blurring.py").write_text(source + "\n# changed\n")
    Path("blurred/metrics.json").unlink()
    assert "sha256" in cli.refused(*score, "--resume")


PLUGIN = """
from dataclasses import dataclass
from lvlm_radapt.defences.base import Defence

@dataclass(frozen=True)
class Fails(Defence):
    size: int = 3

    def __post_init__(self):
        raise ValueError("no such size")

class Other:
    pass

@dataclass(frozen=True)
class Posing(Defence):
    name = "jpeg"
"""


def test_a_plug_in_cannot_pass_for_ours(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "posing_defence.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    run = evaluated(data, tmp_path / "run", "--attack", "none", "--defence", "posing_defence:Posing")
    assert model_label(run) == "tiny-llava + posing_defence:Posing"


WRONG: dict[str, tuple[list[str], str]] = {
    "a module that is not there": (["--defence", "no_module:X"], "defence no_module:X does not import: ModuleNotFound"),
    "no defence": (["--defence", "wrong_defence:Other"], "defence wrong_defence:Other is no Defence"),
    "a constructor that fails": (["--defence", "wrong_defence:Fails"], "cannot be made: ValueError: no such size"),
    "an unknown name": (
        ["--defence", "jpg"],
        "defence 'jpg' is unknown: choose one of csr, jpeg, radapt, random-resize, ttc",
    ),
    "an unknown setting": (["--defence", "jpeg", "--defence-set", "q=1"], "defence jpeg has no setting q: known are"),
    "a setting out of range": (["--defence", "jpeg", "--defence-set", "quality=0"], "give a whole number from 1 to 95"),
    "a setting that is none": (["--defence", "jpeg", "--defence-set", "quality"], "'quality' is not KEY=VALUE"),
    "settings of nothing": (["--defence-set", "quality=1"], "--defence-set is for --defence"),
    "draws of nothing": (["--eot-draws", "2"], "--eot-draws is for a random --defence"),
    "draws of what is not random": (["--defence", "jpeg", "--eot-draws", "2"], "is for a random defence: jpeg draws"),
    "no draws": (
        ["--defence", "random-resize", "--eot-draws", "0"],
        "'--eot-draws': Input should be greater than or equal to 1",
    ),
    "a guided anchor by name": (["--defence", "radapt", "--defence-set", "anchor=guided"], "guided anchor is not"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(
    case: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    (tmp_path / "wrong_defence.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    given, expected = WRONG[case]
    assert expected in cli.refused(*words(data, tmp_path / "out", *given))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["eval", "audit", "chat"])
def test_a_model_that_has_a_defence_gets_no_second_one(command: str, data: Path, tmp_path: Path, cli: Cli) -> None:
    save_adapter(robustify(load_model("tiny-llava")), tmp_path / "adapter")
    given: list[Any] = [command, tmp_path / "adapter", "--defence", "jpeg", "--device", "cpu"]
    if command != "chat":
        given += ["--task", "vqav2", "--data", data, "--out", tmp_path / "out", "--samples", "4", "--attack", "e2e"]
    assert "has the defence radapt already" in cli.refused(*given)
    assert not (tmp_path / "out").exists()


def test_the_names_are_listed(cli: Cli) -> None:
    said = cli.done("list", "defences")
    assert all(name in said for name in ("jpeg", "radapt", "random-resize"))
    assert "tasks" not in said


def test_a_chat_has_the_defence(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lvlm_radapt.chat.commands import Attack
    from lvlm_radapt.chat.session import Session

    model = load_model("tiny-llava")
    RandomResize(0.5).attach(model)
    model.eot_draws = 2
    session = Session(model, compare=True)
    assert session.defence == RandomResize(0.5)
    session.show(next((data / "val2014").glob("*")) if (data / "val2014").is_dir() else next(data.rglob("*.png")))
    session.ask("what color is the background?", lambda side, text: None)
    found = session.attack(Attack(eps=8 / 255, steps=3, on="defended", target=None), lambda step: None)
    assert found.after > found.before
    session.save(tmp_path / "chat")
    told = json.loads((tmp_path / "chat" / "transcript.json").read_text())
    assert "random-resize" in json.dumps(told)
