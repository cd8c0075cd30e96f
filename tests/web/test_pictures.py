"""How the chat and a report look: light, dark, on a phone, on paper. `LVLM_RADAPT_PICTURES=docs/images make test-web`
keeps the pictures."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Site, pick
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from eval_tasks.report.leaderboard import leaderboard, write_leaderboard
from lvlm_radapt.embedded.dataset import write_scenes
from tests.helpers.cli import exit_code
from tests.helpers.run_folders import RADAPT, Maker, attack, spread

pytestmark = pytest.mark.web

LARGEST = 200_000  # bytes
LOOKS = {
    "light": {"viewport": {"width": 1180, "height": 900}},
    "dark": {"viewport": {"width": 1180, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a small run's report."""
    folder = tmp_path_factory.mktemp("run")
    write_scenes(folder / "scenes", count=8)
    words = ["eval", "tiny-llava", "--task", "vqav2", "--data", folder / "scenes", "--attack", "e2e", "--device", "cpu"]
    words += ["--eps", "4/255", "--steps", "5", "--samples", "8", "--out", folder / "out"]
    assert exit_code(*words) == 0
    return (folder / "out" / "report.html").as_uri()


@pytest.mark.parametrize("look", LOOKS)
def test_the_chat(site: Site, visit: Callable[..., Page], look: str, tmp_path: Path) -> None:
    page = visit(**LOOKS[look])
    pick(page, 4)
    page.click("#ra-go")
    expect(page.locator("#ra-conversation .ra-answer")).to_have_count(4)
    expect(page.locator("#ra-stop")).to_be_disabled()
    page.mouse.move(0, 0)
    _keep(page, f"chat-{look}", tmp_path)


@pytest.mark.parametrize("look", LOOKS)
def test_the_report(browser: Browser, report: str, look: str, tmp_path: Path) -> None:
    _look_at(browser, report, "report", look, tmp_path)


@pytest.mark.parametrize("look", LOOKS)
def test_a_leaderboard(browser: Browser, look: str, tmp_path: Path) -> None:
    make = Maker(tmp_path)
    runs = [make(spread(10, 1), attacked=attack()), make(spread(30, 2), RADAPT, attack())]
    runs.append(make(spread(90, 3), attacked=attack("transfer"), model={"name": "a-long-name-of-a-model" * 3}))
    page = write_leaderboard(leaderboard(runs), tmp_path / "leaderboard.html")
    _look_at(browser, page.as_uri(), "leaderboard", look, tmp_path)


def _look_at(browser: Browser, address: str, name: str, look: str, folder: Path) -> None:
    """Take the picture of a page that loads nothing."""
    context = browser.new_context(**LOOKS[look])
    outside: list[str] = []
    page = context.new_page()
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else outside.append(r.url))
    page.goto(address)
    _keep(page, f"{name}-{look}", folder, height=1500)
    context.close()
    assert outside == []


def _keep(page: Page, name: str, folder: Path, height: int | None = None) -> None:
    """Take the picture; nothing may stick out to the side."""
    wide, there = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= there, f"{name}: {wide} px wide on {there}"
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    taken = taken.crop((0, 0, taken.width, min(taken.height, height or taken.height)))
    file = Path(os.environ.get("LVLM_RADAPT_PICTURES", folder)) / f"{name}.png"
    taken.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    assert file.stat().st_size < LARGEST
    assert len(taken.getcolors(taken.width * taken.height) or []) > 20, "not an empty page"
