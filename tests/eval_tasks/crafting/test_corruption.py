"""Common corruptions as an attack without an attacker."""

import sys
from functools import partial

import numpy as np
import pytest
import torch

from eval_tasks.crafting.make_attack import make_attack
from eval_tasks.run.records import read_run
from lvlm_radapt.models.base import PixelBatch
from tests.helpers.endpoint_server import serving
from tests.helpers.slow import slow

library = pytest.importorskip("imagecorruptions", reason="the extra corruptions is not installed")
COMMON = library.get_corruption_names("common")


@pytest.fixture
def score(score):
    return partial(score, "--attack", "corruption", "--samples", 4)


def craft(x, **settings):
    attack = make_attack("corruption", settings=settings)
    batch = PixelBatch(x, ({},) * len(x))
    return attack.craft(None, batch, None, [11 + 7 * i for i in range(len(x))])


@pytest.mark.parametrize("name", [slow(name) if name == "glass_blur" else name for name in COMMON])
def test_a_corruption_is_a_function_of_image_and_seed_alone(name):
    x = torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    before = np.random.get_state()[1].copy()
    whole = craft(x, corruption=name, severity=3)
    assert torch.equal(whole.pixels[:1], craft(x[:1], corruption=name, severity=3).pixels)
    assert torch.equal(whole.pixels, craft(x, corruption=name, severity=3).pixels)
    assert whole.pixels.shape == x.shape
    assert whole.pixels.dtype == torch.uint8
    assert whole.stage == [name] * 3
    assert (np.random.get_state()[1] == before).all()  # everybody else draws as before


def test_brightness_is_what_its_paper_says():
    grey = torch.full((1, 3, 32, 32), 102 / 255)
    for severity, more in ((1, 0.1), (3, 0.3), (5, 0.5)):  # added to the value of HSV
        made = craft(grey, corruption="brightness", severity=severity).pixels
        assert made.unique().tolist() == pytest.approx([255 * (0.4 + more)], abs=1)


def test_more_severity_is_further_away():
    x = torch.rand(2, 3, 40, 48)
    far = [
        float((craft(x, corruption="gaussian_noise", severity=s).pixels.float() / 255 - x).abs().mean())
        for s in (1, 2, 3, 4, 5)
    ]
    assert far == sorted(far)
    assert far[0] > 0.03


def test_a_run_tells_that_nobody_attacked(score, tmp_path, cli):
    for out, size in (("run", 4), ("again", 2)):
        code, said, err = score("--chunk-size", size, "--batch-size", size, out=out)
        assert code == 0, err
        assert "no attacker" in said
    run, again = read_run(tmp_path / "run"), read_run(tmp_path / "again")
    assert run.metrics["threat"] == "natural"
    assert {one.adversarial.stage for one in run.samples} <= set(COMMON)
    assert [one.adversarial.image_sha256 for one in run.samples] == [
        one.adversarial.image_sha256 for one in again.samples
    ]
    assert not any("BUDGET" in note for note in run.metrics["notes"])
    settings = run.settings["attack"]
    assert (settings["threat"], settings["corruption"], settings["severity"]) == ("natural", "mixed", 3)
    assert score("--attack-set", "severity=5", "--attack-set", "corruption=fog", out="fog")[0] == 0
    fog = read_run(tmp_path / "fog")
    assert {one.adversarial.stage for one in fog.samples} == {"fog"}
    code, said, err = cli("report", run.path, fog.path, "--out", tmp_path / "both.html")
    assert code == 0, err
    page = (tmp_path / "both.html").read_text()
    for strength in ("corruption, corruption mixed, severity 3", "corruption, corruption fog, severity 5"):
        assert strength in " ".join(said.split())
        assert strength in page
    assert "Adaptive attack not run" not in page
    for shown in (said, page.split("run.json")[0]):
        assert "255/255" not in shown


def test_a_model_behind_an_api_is_scored_without_any_gradient(score, place, tmp_path):
    with serving() as server:
        flags = ["--base-url", server.url, "--surrogate", place / "llava"]
        code, _, err = score(*flags, model="openai:seer")
    assert code == 0, err
    run = read_run(tmp_path / "run")
    assert run.settings["attack"]["surrogate"] is None
    assert {one.adversarial.image_sha256 for one in run.samples} <= {one.image for one in server.requests}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--threat", "adaptive"), "knows no model"),
        (("--eps", "8/255"), "has no budget: leave --eps out"),
        (("--attack-set", "corruption=fogg"), "did you mean 'fog'"),
        (("--attack-set", "severity=6"), "severity"),
        (("--attack-set", "sevrity=6"), "sevrity"),
        (("--attack-set", "severity"), "is not KEY=VALUE"),
        (("--steps", 3), "--steps is not for --attack corruption"),
        (("--attack", "none", "--attack-set", "severity=5"), "--attack-set needs an attack"),
    ],
)
def test_what_makes_no_sense_is_refused(score, tmp_path, flags, said):
    code, _, err = score(*flags)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_named(score, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    code, _, err = score()
    assert code == 2
    assert "pip install 'lvlm-radapt[corruptions]'" in err
