"""An attack and a task from outside, each the one file that docs/extend.md shows, through the command line."""

import re
import sys
from pathlib import Path

import pytest

from eval_tasks.run.records import read_run
from lvlm_radapt.embedded.dataset import write_scenes
from tests.helpers.cli import Cli, exit_code
from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs" / "extend.md").read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes and the page's files."""
    folder = tmp_path_factory.mktemp("place")
    write_scenes(folder / "scenes", count=4)
    for name, code in re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.DOTALL):
        assert len(code.splitlines()) <= 60
        (folder / name).write_text(code)
    return folder


@pytest.fixture(autouse=True)
def _from_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("sign_step", "counting", "counting_data"):
        sys.modules.pop(name, None)


def shown(out: str) -> list[str]:
    """The page's command that writes that folder."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith("lvlm-radapt eval") and line.endswith(f" {out}")]
    return line.split()[1:]


def test_an_outside_attack_runs_and_is_named(place: Path) -> None:
    assert exit_code(*shown("sign-step")) == 0
    run = read_run(place / "sign-step")
    attack = run.settings["attack"]
    assert (attack["name"], attack["loss"]) == ("sign_step:SignStep", "outside")
    assert attack["plugin"]["name"] == "sign_step:SignStep"
    assert len(attack["plugin"]["sha256"]) == 64
    assert all(0 < sample.adversarial.linf <= 8 / 255 + 1e-9 for sample in run.samples)
    assert run.metrics["adversarial"]["vqa_accuracy"] < run.metrics["clean"]["vqa_accuracy"]
    assert "sign_step:SignStep" in (place / "sign-step" / "report.html").read_text()
    # its images are those of that very file
    (place / "sign_step.py").write_text((place / "sign_step.py").read_text() + "\n")
    sys.modules.pop("sign_step")
    words = ["--threat", "transfer", "--surrogate", "tiny-llava", "--images-from", "sign-step", "--out", "other"]
    assert exit_code("eval", "tiny-llava", "--task", "vqav2", "--data", "scenes", *words) == 2


def test_an_outside_task_runs_and_is_named(place: Path) -> None:
    assert exit_code(*shown("counted")) == 0
    run = read_run(place / "counted")
    assert (run.settings["task"], run.metrics["metric"]) == ("counting:Counting", "accuracy")
    assert run.settings["task_plugin"]["name"] == "counting:Counting"
    assert run.metrics["clean"]["accuracy"] == 100
    assert "audit" in run.metrics
    assert "counting:Counting" in (place / "counted" / "report.html").read_text()


def test_an_outside_data_set_is_a_loader_and_a_file(place: Path) -> None:
    assert exit_code(*shown("own-data")) == 0
    run = read_run(place / "own-data")
    assert (run.settings["task"], run.metrics["metric"]) == ("counting", "vqa_accuracy")
    assert run.settings["task_plugin"]["name"] == "counting_data:load"
    assert run.settings["asked"]["max_new_tokens"] == 5  # the preset's, by kind
    assert run.metrics["clean"]["vqa_accuracy"] == 100


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--attack", "absent_module:Name", "does not import: ModuleNotFoundError"),
        ("--attack", "counting:Counting", "attack counting:Counting is no Attack"),
        ("--attack", "sign_step:Missing", "has no Missing"),
        ("--task", "sign_step:SignStep", "task sign_step:SignStep is no Task"),
        ("--task", "absent.yaml", "cannot read absent.yaml"),
    ],
)
def test_a_plug_in_that_is_none_is_one_line(flag: str, value: str, words: str, cli: Cli, tmp_path: Path) -> None:
    given = {"--task": "vqav2", "--attack": "e2e"} | {flag: value}
    pairs = [word for pair in given.items() for word in pair]
    assert words in cli.refused("eval", "tiny-llava", "--data", "scenes", "--out", tmp_path / "out", *pairs)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return {}['images']", "scenes cannot be loaded: KeyError: 'images'"),
        ("return (data / 'absent.json').read_text()", r"FileNotFoundError: .*'scenes/absent.json'"),
        ("return []", "must give a list of Sample, at least one"),
        ("return ['a picture']", "scenes cannot be loaded: AttributeError"),
        ("return [Sample('1', data, 'a?', ('b',))] * 2", "two samples with the id '1'"),
        ("return [Sample(1, data, 'a?', ('b',))]", "sample 1: its id must be a text, got int"),
        ("return [Sample('1', data, 'a?', 'b')]", "sample 1: its references must be a tuple of texts, got str"),
        ("return [Sample('1', 'a.png', 'a?', ('b',))]", "sample 1: its image must be a Path, got str"),
    ],
)
def test_a_loader_that_fails_is_one_line(place: Path, body: str, words: str, tmp_path: Path, cli: Cli) -> None:
    code = f"from eval_tasks.data import Sample\n\n\ndef load(data):\n    {body}\n"
    (place / "counting_data.py").write_text(code)
    sys.modules.pop("counting_data", None)
    asked = ("eval", "tiny-llava", "--task", "counting.yaml", "--data", "scenes", "--out", tmp_path / "out")
    assert re.search(words, cli.refused(*asked))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("images", "code", "words"),
    [
        ("batch.x", 2, r"gave torch.float32 .*must be uint8"),
        ("(batch.x[:, :, 1:] * 255).byte()", 2, r"gave torch.uint8 .*must be uint8"),
        ("(batch.x * 0).byte()", 0, "THE ATTACK LEFT ITS BUDGET"),
    ],
)
def test_an_outside_attack_cannot_go_wrong_in_silence(
    place: Path, images: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "wrong.py").write_text(
        "from eval_tasks.crafting.attack import Attack\nfrom eval_tasks.crafting.crafted import Crafted\n\n\n"
        "class Wrong(Attack):\n    def craft(self, view, batch, task, seeds):\n"
        f"        return Crafted.plain({images})\n"
    )
    sys.modules.pop("wrong", None)
    asked = ("eval", "tiny-llava", "--task", "vqav2", "--data", "scenes", "--samples", "2")
    assert exit_code(*asked, "--attack", "wrong:Wrong", "--out", str(tmp_path / "out")) == code
    said = capsys.readouterr()
    assert re.search(words, " ".join((said.out + said.err).split()))
