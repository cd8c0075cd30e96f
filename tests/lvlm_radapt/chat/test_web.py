"""The web chat without a browser: its visitors, whose turn it is, what is shown, what is served."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.exceptions import HTTPException

from attacks.eight_bit import from_8bit
from lvlm_radapt import RAdaptConfig, load_model, robustify
from lvlm_radapt.chat import web, web_guard, web_html
from lvlm_radapt.chat.commands import Attack
from lvlm_radapt.chat.web_guard import Hosts, Upload, plain_call
from lvlm_radapt.chat.web_visitor import Engine, Visitor
from lvlm_radapt.defences.radapt.hooks import inject, injected_anchor, remove
from lvlm_radapt.embedded.scenes import render, sample_scene
from lvlm_radapt.models.base import PixelBatch
from tests.helpers.cli import Cli

CAPTION = "Provide a short caption for this image."


@pytest.fixture
def engine() -> Engine:
    return Engine(load_model("tiny-llava"))


@pytest.fixture
def scene() -> Image.Image:
    return render(sample_scene("test", 0, 5))


def finish(work: Iterator[None]) -> int:
    """How often there was something to see."""
    return sum(1 for _ in work)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def order(loss: str = "e2e", on: str = "plain", steps: int = 2) -> Attack:
    return Attack(8 / 255, steps, on, None, loss)  # type: ignore[arg-type]


def visitor_with(engine: Engine, scene: Image.Image) -> Visitor:
    visitor = Visitor(engine, max_new_tokens=8)
    finish(visitor.showing(scene, "scene"))
    return visitor


# What a visitor does


def test_an_attack_begins_with_the_question_and_ends_with_it(engine: Engine, scene: Image.Image) -> None:
    visitor = visitor_with(engine, scene)
    assert finish(visitor.attacking(order(), CAPTION)) > 1
    (exchange,) = visitor.exchanges
    assert (visitor.view.notice, visitor.view.stage, exchange.image) == ("", "done", "adversarial")
    model, batch = engine.model, engine.model.pixels([scene])
    assert torch.equal(from_8bit(visitor.clean[None]), batch.x)
    attacked = batch.replace(from_8bit(visitor.attacked[None]))
    assert (visitor.clean.int() - visitor.attacked.int()).abs().max() <= 8
    assert exchange.first["defended"] == model.generate(batch, [CAPTION], 8)[0]
    assert exchange.answers["defended"] == model.generate(attacked, [CAPTION], 8)[0]
    with model.undefended():
        assert exchange.first["plain"] == model.generate(batch, [CAPTION], 8)[0]
        assert exchange.answers["plain"] == model.generate(attacked, [CAPTION], 8)[0]
    assert len(visitor.view.losses) == 3, "the start point and two steps"
    exact = web_html.adversarial(visitor).split('href="data:image/png;base64,')[1].split('"')[0]
    saved = np.asarray(Image.open(io.BytesIO(base64.b64decode(exact))))
    assert np.array_equal(saved, visitor.attacked.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("on", ["plain", "defended"])
def test_the_embedding_attack_needs_no_question(engine: Engine, scene: Image.Image, on: str) -> None:
    visitor = visitor_with(engine, scene)
    finish(visitor.attacking(order("embedding", on, steps=4), ""))
    assert visitor.view.found is not None
    found = visitor.view.found[1]
    assert (found.text, visitor.exchanges) == (None, [])
    batch, attacked = engine.model.pixels([scene]), from_8bit(visitor.attacked[None])
    with torch.no_grad(), engine.turn("plain" if on == "plain" else "defended", engine.settings):
        near, far = (engine.model.features(batch.replace(x), at="tower") for x in (batch.x, attacked))
    distance = 1 - torch.nn.functional.cosine_similarity(near, far, dim=-1).mean()
    assert found.after == pytest.approx(float(distance), abs=1e-5)
    assert found.after > 0.01 > found.before


def test_a_stop_ends_the_attack_with_the_step_in_hand(engine: Engine, scene: Image.Image) -> None:
    visitor = visitor_with(engine, scene)
    work = visitor.attacking(order("embedding", steps=100_000), "")
    while len(visitor.view.losses) < 3:
        next(work)
    visitor.stop()
    made = len(visitor.view.losses)
    finish(work)
    assert len(visitor.view.losses) <= made + 1
    assert (visitor.view.stage, visitor.view.notice) == ("stopped", "stopped")
    assert visitor.attacked is None
    assert "stays as it was" in web_html.progress(visitor)
    assert finish(visitor.asking(CAPTION)) > 0, "and all goes on"
    assert visitor.view.notice == ""


def test_who_leaves_gives_the_place_in_the_line_up(engine: Engine, scene: Image.Image) -> None:
    first, second = visitor_with(engine, scene), visitor_with(engine, scene)
    works = [visitor.attacking(order("embedding", steps=100_000), "") for visitor in (first, second)]
    while first.view.stage != "attacking":
        next(works[0])
    while second.view.ahead != 1:
        next(works[1])
    assert "Waiting for one attack of others" in web_html.progress(second)
    assert finish(second.asking(CAPTION)) == 1, "one thing at a time"
    assert "one thing at a time" in second.view.notice
    third = visitor_with(engine, scene)
    finish(third.asking(CAPTION))
    assert third.exchanges, "who only asks does not wait for attacks"
    works[0].close()  # as when a page is closed
    while second.view.stage != "attacking":
        next(works[1])
    second.stop()
    finish(works[1])
    assert second.view.stage == "stopped"


def test_everyone_has_an_image_and_a_defence_of_their_own(engine: Engine, scene: Image.Image) -> None:
    first, second = visitor_with(engine, scene), visitor_with(engine, render(sample_scene("test", 0, 6)))
    finish(first.tuning(None, 0.0, "interpolate"))
    for visitor in (first, second, first):
        finish(visitor.asking(CAPTION))
    assert [len(visitor.exchanges) for visitor in (first, second)] == [2, 1]
    bare, whole = first.exchanges[0].answers, second.exchanges[0].answers
    assert bare["plain"] == bare["defended"], "no filter and alpha 0 are the stock model"
    model = robustify(load_model("tiny-llava"))
    batch = model.pixels([render(sample_scene("test", 0, 6))])
    assert whole["defended"] == model.generate(batch, [CAPTION], 8)[0]
    assert (first.settings.cutoff, second.settings) == (None, engine.settings)
    assert not torch.equal(first.clean, second.clean)
    finish(second.resetting())
    assert (len(first.exchanges), second.exchanges) == (2, [])


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
def test_the_knobs_are_those_of_the_defence(name: str, scene: Image.Image) -> None:
    visitor = visitor_with(Engine(load_model(name)), scene)
    finish(visitor.asking(CAPTION))
    before = visitor.exchanges[0]
    finish(visitor.tuning(12.0, 0.35, "add"))
    fresh = robustify(load_model(name), RAdaptConfig(cutoff=12, alpha=0.35, mix="add"))
    assert visitor.view.tuned == (CAPTION, fresh.generate(fresh.pixels([scene]), [CAPTION], 8)[0])
    assert visitor.exchanges == [before], "trying settings is no turn"
    filtered = visitor.filtered()
    assert filtered is not None
    assert filtered.double().std() < visitor.clean.double().std()
    finish(visitor.tuning(40.0, 1.0, "interpolate"))
    assert visitor.view.tuned == (CAPTION, before.answers["defended"])
    finish(visitor.tuning(-1.0, 1.0, "interpolate"))
    assert "cutoff is -1" in visitor.view.notice
    assert visitor.settings == RAdaptConfig()


def test_an_adapter_s_own_anchor_stays(scene: Image.Image) -> None:
    model = robustify(load_model("tiny-llava"))
    own = RAdaptConfig(cutoff=30, alpha=0.5)
    anchor = injected_anchor(model.hf)
    assert anchor is not None
    remove(model.hf)
    other = replace(anchor, values=anchor.values * -2)
    inject(model.hf, own, other)
    engine = Engine(model)
    visitor = visitor_with(engine, scene)
    finish(visitor.tuning(30.0, 0.0, "interpolate"))
    finish(visitor.asking(CAPTION))
    finish(visitor.tuning(30.0, 0.9, "interpolate"))
    found = injected_anchor(engine.model.hf)
    assert found is not None
    assert torch.equal(found.values, other.values)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"no image at all", "not an image this program reads (PNG, JPEG, WEBP)"),
        (b"GIF89a", "not an image this program reads"),
        ((5000, 2), "times as long as wide"),
        ((5001, 5001), "more than 25000000 pixels"),
    ],
)
def test_a_bad_upload_is_told(engine: Engine, scene: Image.Image, content: bytes | tuple[int, int], said: str) -> None:
    visitor = visitor_with(engine, scene)
    sent = Upload("mine.png", content if isinstance(content, bytes) else png(Image.new("RGB", content)))
    finish(visitor.uploading(lambda: sent))
    assert said in visitor.view.notice
    assert "mine.png" in visitor.view.notice
    assert visitor.clean is not None, "the image before stays"
    assert 'role="alert"' in web_html.notice(visitor)
    finish(visitor.uploading(lambda: Upload("mine.png", png(render(sample_scene("test", 0, 6))))))
    assert visitor.view.notice == ""


def test_what_cannot_be_done_is_told(engine: Engine, scene: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = Visitor(engine, max_new_tokens=4)
    for work, said in [
        (lambda: visitor.attacking(order(), CAPTION), "choose an image"),
        (lambda: visitor.asking(CAPTION), "no image yet"),
        (lambda: visitor.showing(scene, "scene"), ""),
        (lambda: visitor.asking("  "), "ask something"),
        (lambda: visitor.asking("x" * 2001), "at most 2000"),
        (lambda: visitor.asking("what is <image>?"), "reserved token"),
        (lambda: visitor.attacking(order(), ""), "ask something"),
    ]:
        finish(work())
        assert said in visitor.view.notice
        assert bool(visitor.view.notice) == bool(said)
    broken: list[object] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)
    monkeypatch.setattr(engine.model, "generate", lambda *_, **__: 1 / 0)
    finish(visitor.asking(CAPTION))
    assert "error of the program" in visitor.view.notice
    assert len(broken) == 1, "and the server's log has it"
    assert not visitor.working


# What is shown


def test_what_people_and_models_say_is_text(
    engine: Engine, scene: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = visitor_with(engine, scene)
    bad = '<img src="http://example.org/x" onerror=alert(1)>'
    monkeypatch.setattr(engine.model, "generate", lambda batch, prompts, tokens, on_text: [bad])
    finish(visitor.asking(f"what {bad}"))
    finish(visitor.attacking(order("embedding", steps=1), ""))
    visitor.view.notice = bad
    visitor.engine.model.name = bad
    for part in web_html.PARTS:
        name, html = part.__name__, part(visitor)
        assert '<img src="http' not in html, name
        assert ("&lt;img" in html) == (name in ("notice", "settings", "conversation", "tower")), name


def test_changed_words_are_marked(engine: Engine, scene: Image.Image) -> None:
    visitor = visitor_with(engine, scene)
    finish(visitor.asking(CAPTION))
    one = visitor.exchanges[0]
    visitor.exchanges[0] = replace(
        one, first={"plain": "a red cat", "defended": "a pig"}, answers={"plain": "a blue cat", "defended": "a pig"}
    )
    html = web_html.conversation(visitor)
    assert "a <mark>blue</mark> cat" in html
    assert html.count("changed") == html.count("the same") == html.count("<mark>") == 1


# Whose turn it is


def test_the_line_of_attacks_is_not_endless(engine: Engine, scene: Image.Image) -> None:
    visitor = visitor_with(engine, scene)
    engine.attacks += [Visitor(engine, max_new_tokens=8) for _ in range(16)]
    finish(visitor.attacking(order("embedding"), ""))
    assert visitor.view.notice == "16 attacks are waiting already: try again later"
    assert visitor.attacked is None
    assert visitor not in engine.attacks


# What is served


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/file/etc/passwd",
        "/gradio_api/file=../../etc/passwd",
        "/static/../../../etc/passwd",
        "/assets/../../etc/passwd",
        "/gradio_api/file=http://127.0.0.1/",
        "/gradio_api/info",
        "/gradio_api/deep_link",
        "/gradio_api/component_server",
        "/proxy=http://127.0.0.1/",
        "/monitoring",
        "/docs",
        "//etc/passwd",
    ],
)
def test_only_what_the_page_needs_is_wanted(path: str) -> None:
    assert not web_guard.is_page(path)
    assert web_guard.is_page("/")
    assert web_guard.is_page("/gradio_api/queue/data")


@pytest.mark.parametrize(
    ("bound", "asked", "own", "others"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1:7860 localhost [::1]:1", "127.0.0.2 10.0.0.1 evil.example x.localhost"),
        ("::1", "localhost", "localhost:1 [::1] 127.0.0.1 [0:0:0:0:0:0:0:1]", "[::2] evil.example"),
        ("0.0.0.0", "0.0.0.0", "10.0.0.1:7860 localhost [fe80::1] 203.0.113.9 {me} {me}.local:80", "evil.example"),
        ("::", "::", "10.0.0.1:7860 localhost {me}", "evil.example x.{me}"),
        ("10.0.0.1", "My.Server", "10.0.0.1:80 my.server my.server.:1", "10.0.0.2 localhost 127.0.0.1 server"),
    ],
)  # fmt: skip
def test_a_server_is_called_by_its_own_names(bound: str, asked: str, own: str, others: str) -> None:
    hosts, me = Hosts(bound, asked), socket.gethostname().lower()
    assert [name for name in own.format(me=me).split() if not hosts.are_own(name)] == []
    assert [name for name in others.format(me=me).split() if hosts.are_own(name)] == []


@pytest.mark.parametrize("value", [{"path": "/etc/passwd"}, [{"path": "x"}], [], {}])
def test_calls_hold_plain_values_alone(value: object) -> None:
    call = {"fn_index": 3, "session_hash": "abc", "data": [None, 1, 0.5, True, "a path: /etc"], "trigger_id": 7}
    assert json.loads(plain_call(json.dumps({**call, "event_data": value}).encode())) == call
    call["data"] = [value]
    with pytest.raises(HTTPException, match="not a call"):
        plain_call(json.dumps(call).encode())


def test_large_images_are_decoded_one_at_a_time(
    engine: Engine, scene: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most, pixels = [0], [0], engine.model.pixels

    def counted(images: list[Image.Image]) -> PixelBatch:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        inside[0] -= 1
        return pixels(images)

    monkeypatch.setattr(engine.model, "pixels", counted)
    visitors = [Visitor(engine, max_new_tokens=4) for _ in range(4)]
    works = [visitor.uploading(lambda: Upload("mine.png", png(scene))) for visitor in visitors]
    for work in works:
        next(work)
    for work in works:
        finish(work)
    assert [visitor.view.notice for visitor in visitors] == [""] * 4
    assert most == [1]


def test_bad_places_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    assert "pip install 'lvlm-radapt[web]'" in cli.refused("chat", "tiny-llava", "--web")
    monkeypatch.setattr(web, "find_spec", lambda name: name)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, said in [
            (("--web", "--port", port), f"127.0.0.1 port {port}: Address already in use"),
            (("--web", "--host", "203.0.113.1"), "cannot listen on 203.0.113.1 port 7860"),
            (("--web", "--host", "no such host"), "cannot listen on no such host"),
            (("--port", port), "are for --web"),
            (("--web", "--image", "nowhere.png"), "nowhere.png"),
        ]:
            assert said in cli.refused("chat", "tiny-llava", *words)
