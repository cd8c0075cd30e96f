"""The estimate of GPU hours: one line by hand, a training step against a real one, and the page that quotes it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from eval_tasks.config.presets import load_recipe
from lvlm_radapt import load_model
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.experiments.compare.preset import load_comparison
from lvlm_radapt.training.finetune import FinetuneSettings, finetune
from lvlm_radapt.training.images import image_files
from lvlm_radapt.training.labelled import TrainingImages
from tests.helpers.paths import ROOT
from tests.helpers.scripts import script

PAGE = ROOT / "docs" / "holds.md"


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return script("benchmarks/gpu_hours.py")


def test_an_attack_takes_what_hand_arithmetic_says(hours: Any) -> None:
    work = hours.Work(end_to_end=2e12, embedding=1e12, forward=1, weights=1, answer=1)
    stages = {stage.name: stage for stage in hours.stages(work, load_comparison("evidence-7b"))}
    # 2 TFLOP x 8 stages x 100 steps x 500 questions x 2 budgets x 17 rows, at 0.3 of 989 TFLOP a second
    assert stages["ensemble"].flop == pytest.approx(2.72e19)
    assert hours.hours(stages["ensemble"].flop) == pytest.approx(25.465, abs=0.001)
    # TTC: 10 draws of the step, two looks, two steps
    assert stages["e2e on ttc"].each == 10 * (2e12 + 4e12)
    assert stages["short audits"].flop == pytest.approx(
        0.1 * sum(s.flop for n, s in stages.items() if s.name[:1] == "e")
    )


def test_a_training_step_costs_what_a_real_one_does(hours: Any, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", count=5)
    model = load_model("tiny-llava")
    work = hours.work_of(model)
    recipe = load_recipe("scenes").changed(batch_size=2, pgd_steps=2, probe_every=9)
    files = tuple(image_files(tmp_path / "scenes" / "val2014", limit=5, seed=0))
    images = TrainingImages(files[1:], files[:1], (), {}, "", None)

    def counted(steps: int) -> float:
        settings = FinetuneSettings("fare", recipe.changed(steps=steps), features="tokens")
        with FlopCounterMode(display=False) as counter:
            finetune(model, images, settings)
        return counter.get_total_flops()

    assert counted(2) - counted(1) == pytest.approx(2 * work.training(recipe), rel=0.005)


def test_the_page_makes_every_folder_that_the_comparison_needs() -> None:
    plan = load_comparison("evidence-7b")
    needed = {folder for row in plan.rows for folder in (row.model, row.guide) if folder is not None}
    commands = re.findall(
        r"lvlm-radapt (?:finetune|robustify) (llava.*|low.*|fare.*)", PAGE.read_text().replace("\\\n", " ")
    )
    made = set()
    for command in commands:
        words = shlex.split(command)
        out = words[words.index("--out") + 1]
        made |= {out.replace("-0", f"-{seed}") for seed in (0, 1, 2)}
    assert needed == made


@pytest.mark.slow
def test_the_page_quotes_what_the_script_prints(hours: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hours.main()
    printed = capsys.readouterr().out.splitlines()
    there = PAGE.read_text().splitlines()
    assert len(printed) > 15
    assert not [line for line in printed if line and line not in there]
