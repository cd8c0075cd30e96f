"""A server in this process, so that a test can hold its model still, and a real browser to look at it with."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from lvlm_radapt import load_model
from lvlm_radapt.chat import web
from lvlm_radapt.chat.commands import Attack
from lvlm_radapt.chat.session import Attacked, Step
from lvlm_radapt.chat.web_visitor import Visitor
from lvlm_radapt.embedded.scenes import render, sample_scene

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# `make setup` installs both: without them these files cannot be imported, or cannot do anything
if find_spec("gradio") is None:
    collect_ignore_glob = ["test_*.py"]
elif find_spec("playwright") is None:
    collect_ignore = ["test_page.py", "test_pictures.py"]

CAPTION = "Provide a short caption for this image."
PATIENCE = 60_000  # ms
HAND = 200  # ms that a person's hand takes; gradio's client loses a click in the very moment in which an event ends


def pick(page: Page, sample: int) -> None:
    """Talk about this sample; the first one is there from the start. It waits until the page shows it."""
    if sample == 0:
        return
    before = page.locator("#ra-original").inner_html()
    page.click(f"#ra-sample-{sample}")
    changed(page, before)


def changed(page: Page, before: str) -> None:
    """Wait until another image than `before` is there."""
    page.wait_for_function("html => document.querySelector('#ra-original').innerHTML != html", arg=before)
    page.wait_for_timeout(HAND)


class Gate:
    """Between two steps of every attack: open, or letting through as many as it is told to."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._left: int | None = None
        self.passed = 0

    def let(self, steps: int | None) -> None:
        with self._free:
            self._left = steps
            self._free.notify_all()

    def step(self) -> None:
        with self._free:
            self._free.wait_for(lambda: self._left is None or self._left > 0)
            self._left = None if self._left is None else self._left - 1
            self.passed += 1


class Site:
    """The web chat of tiny-llava at `address`; attacks pass the gate after every step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.gate = Gate()
        attack = Visitor.attack

        def gated(visitor: Visitor, order: Attack, tell: Callable[[Step], None]) -> Attacked:
            return attack(visitor, order, lambda step: (self.gate.step(), tell(step))[1])

        patch.setattr(Visitor, "attack", gated)
        self.model = load_model("tiny-llava")
        self.samples = [(f"scene {i}", render(sample_scene("test", 0, i))) for i in range(1, 7)]
        self.address = ""
        self._up, self._down = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._up.wait(240)

    def close(self) -> None:
        self.gate.let(None)
        self._down.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        def ready(address: str) -> None:
            self.address = address
            self._up.set()
            self._down.wait()
            raise KeyboardInterrupt  # as a signal would in the main thread

        with web.listening("127.0.0.1", 0) as bound, pytest.raises(KeyboardInterrupt):
            web.serve(
                self.model, bound, host="127.0.0.1", samples=self.samples, questions=[CAPTION, "what?"],
                max_new_tokens=20, ready=ready,
            )  # fmt: skip


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        found = Site(patch)
        yield found
        found.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert chromium is not None, "there is no Chromium here: apt-get install chromium"
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Callable[..., Page]]:
    """visit(**settings): the page as one more user sees it. It fails on requests to other hosts, and on errors that
    the page's own script runs into."""
    from playwright.sync_api import expect

    contexts, wrong = [], []

    def watch(page: Page) -> None:
        page.on(
            "request", lambda r: None if r.url.startswith((site.address, "data:", "blob:")) else wrong.append(r.url)
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))

    def enter(**settings: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        watch(page)
        page.goto(site.address)
        page.wait_for_selector("#ra-original img")  # the first sample
        expect(page.locator("#ra-stop")).to_be_disabled()  # whole, so that no change to it is taken for another's
        expect(page.locator("#ra-go")).to_be_enabled()
        page.wait_for_timeout(HAND)
        return page

    yield enter
    site.gate.let(None)
    for context in contexts:
        context.close()
    assert wrong == []
