"""The web chat in a real browser: what people do with it, and what must not happen to them."""

import base64
import http.client
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CAPTION, HAND, Site, changed, pick
from PIL import Image
from playwright.sync_api import Page, expect

from lvlm_radapt import load_model, robustify

pytestmark = pytest.mark.web
Visit = Callable[..., Page]


def begin(page: Page, *, steps: int, loss: str | None = None) -> None:
    """Press Attack."""
    number = page.locator("#ra-steps input[type=number]")
    number.fill(str(steps))
    number.press("Tab")
    if loss is not None:
        page.get_by_label(loss).check()
    page.click("#ra-go")


def stage(page: Page, name: str) -> None:
    page.wait_for_selector(f"#ra-progress [data-stage={name}]")


def idle(page: Page) -> None:
    expect(page.locator("#ra-stop")).to_be_disabled()
    expect(page.locator("#ra-go")).to_be_enabled()
    page.wait_for_timeout(HAND)


def answers(page: Page, side: str) -> list[str]:
    return page.locator(f"#ra-conversation .ra-{side} .ra-answer").all_inner_texts()


def test_upload_attack_compare_download(site: Site, visit: Visit, tmp_path: Path) -> None:
    page = visit()
    expect(page.get_by_label("defended (adaptive)")).to_be_checked()
    expect(page.locator("#ra-eps input[type=number]")).to_have_value("4")
    before = page.locator("#ra-original").inner_html()
    page.set_input_files("#ra-file input[type=file]", str(_saved(site.samples[3][1], tmp_path / "mine.png")))
    changed(page, before)
    idle(page)
    page.click("#ra-ask")
    expect(page.locator("#ra-conversation .ra-answer")).to_have_count(2)
    idle(page)
    eps = page.locator("#ra-eps input[type=number]")
    eps.fill("8")
    eps.press("Tab")
    begin(page, steps=10)
    expect(page.locator("#ra-conversation .ra-answer")).to_have_count(4)
    idle(page)
    with page.expect_download() as download:
        page.click("a.ra-save")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "adversarial.png"

    image = Image.open(file)
    assert (image.mode, image.size, image.format) == ("RGB", (112, 112), "PNG")
    model = robustify(load_model("tiny-llava"))
    clean, attacked = model.pixels([site.samples[3][1]]), model.pixels([image])
    assert 0 < (attacked.x - clean.x).abs().max() <= 8.001 / 255
    defended = [model.generate(batch, [CAPTION])[0] for batch in (clean, attacked)]
    with model.undefended():
        plain = [model.generate(batch, [CAPTION])[0] for batch in (clean, attacked)]
    assert answers(page, "plain") == plain, "what is downloaded is what was answered"
    assert answers(page, "defended") == defended
    assert defended[0] != defended[1]
    expect(page.locator("#ra-conversation mark").first).to_be_visible()
    assert page.locator("#ra-difference img").count() == 1


def test_a_stop_works_within_a_step(site: Site, visit: Visit) -> None:
    page = visit()
    pick(page, 0)
    site.gate.let(6)
    begin(page, steps=100, loss="embedding")
    expect(page.locator("#ra-progress")).to_contain_text("Step 5 of 100")  # the start point is step 0
    expect(page.locator("#ra-adversarial")).to_contain_text("on its way")
    expect(page.locator("#ra-go")).to_be_disabled()
    passed = site.gate.passed
    with page.expect_response(lambda reply: "/gradio_api/" in reply.url and reply.request.method == "POST"):
        page.click("#ra-stop")
    site.gate.let(2)
    stage(page, "stopped")
    assert site.gate.passed == passed + 1
    expect(page.locator("#ra-adversarial")).to_contain_text("nothing attacked yet")
    site.gate.let(None)
    idle(page)
    page.click("#ra-ask")
    expect(page.locator("#ra-conversation .ra-answer")).to_have_count(2)


def test_bad_uploads_are_told_and_forgotten(site: Site, visit: Visit, tmp_path: Path) -> None:
    page = visit()
    pick(page, 1)
    text, strip, gif = tmp_path / "text.png", tmp_path / "strip.png", tmp_path / "moving.png"
    text.write_text("no image")
    Image.new("RGB", (5000, 2)).save(strip)
    Image.new("RGB", (20, 20)).save(gif, format="GIF")
    for file, said in [
        (text, "text.png is not an image"),
        (strip, "times as long as wide"),
        (gif, "moving.png is not an image"),
    ]:
        page.set_input_files("#ra-file input[type=file]", str(file))
        expect(page.locator("[role=alert]")).to_contain_text(said)
        assert "tmp" not in page.locator("[role=alert]").inner_text()
    assert page.locator("#ra-original img").count() == 1, "the image before stays"
    page.set_input_files("#ra-file input[type=file]", str(_saved(site.samples[2][1], tmp_path / "fine.webp")))
    expect(page.locator("[role=alert]")).to_have_count(0)


def test_an_upload_that_is_too_large_is_not_taken(site: Site) -> None:
    host, port = site.address.removeprefix("http://").rstrip("/").split(":")
    edge = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = edge + bytes(20 * 2**20 + 1) + b"\r\n--x--\r\n"
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})
    assert connection.getresponse().status == 413


def test_two_users_at_once(site: Site, visit: Visit) -> None:
    one, two = visit(), visit()
    pick(one, 0)
    pick(two, 4)
    site.gate.let(4)
    begin(one, steps=100, loss="embedding")
    stage(one, "attacking")
    begin(two, steps=3, loss="embedding")
    expect(two.locator("#ra-progress")).to_contain_text("Waiting for one attack")
    two.click("#ra-stop")
    stage(two, "stopped")
    two.click("#ra-ask")
    expect(two.locator("#ra-conversation .ra-answer")).to_have_count(2)  # a question does not wait
    idle(two)
    expect(one.locator("#ra-conversation .ra-answer")).to_have_count(0)
    assert [_shown(page) for page in (one, two)] == [_bytes(site.samples[i][1]) for i in (0, 4)]
    begin(two, steps=3)
    one.context.close()  # whoever leaves does not keep the others waiting
    site.gate.let(None)
    stage(two, "done")
    assert _shown(two) == _bytes(site.samples[4][1])


def test_the_knobs_answer_at_once(site: Site, visit: Visit) -> None:
    page, other = visit(), visit()
    pick(page, 2)
    page.click("#ra-ask")
    expect(page.locator("#ra-conversation .ra-answer")).to_have_count(2)
    idle(page)
    page.get_by_role("tab", name="Tower").click()
    page.get_by_label("Gaussian filter").uncheck()
    expect(page.locator("#ra-settings")).not_to_contain_text("filter")
    expect(page.locator("#ra-tower")).to_contain_text("no filter")
    alpha = page.locator("#ra-alpha input[type=range]")
    alpha.focus()
    alpha.press("Home")
    page.mouse.move(0, 0)
    alpha.dispatch_event("pointerup")
    expect(page.locator("#ra-settings")).to_contain_text("alpha 0")
    (plain,) = page.locator("#ra-tower .ra-plain .ra-answer").all_inner_texts()
    expect(page.locator("#ra-tower .ra-defended .ra-answer")).to_have_text(plain)
    expect(other.locator("#ra-settings")).to_contain_text("cutoff 40")


def test_what_is_said_is_text(site: Site, visit: Visit) -> None:
    page = visit()
    pick(page, 1)
    page.locator("#ra-question textarea").fill("<img src=x onerror=\"document.title='broken'\"> what?")
    page.click("#ra-ask")
    expect(page.locator("#ra-conversation .ra-question")).to_contain_text("onerror")
    idle(page)
    assert page.locator("#ra-conversation img").count() == 0
    assert page.title() != "broken"


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/file/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/static/../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets//etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/svelte/..%252f..%252fetc/passwd",
        "/gradio_api/file=http://127.0.0.1/",
        "/gradio_api/file=file:///etc/passwd",
        "//etc/passwd",
    ],
)
def test_no_file_of_the_server_is_sent(site: Site, path: str) -> None:
    host, port = site.address.removeprefix("http://").rstrip("/").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("GET", path)
    reply = connection.getresponse()
    assert reply.status in (403, 404)
    assert b"root:" not in reply.read()


def test_an_upload_is_not_to_be_had_again(site: Site, visit: Visit, tmp_path: Path) -> None:
    page = visit()
    content = _saved(site.samples[3][1], tmp_path / "mine.png").read_bytes()
    image = {"name": "mine.png", "mimeType": "image/png", "buffer": content}
    # as the page sends it; the browser may drop the page's own answer before it is read
    reply = page.request.post(f"{site.address}gradio_api/upload", multipart={"files": image})
    (secret,) = reply.json()
    assert page.request.get(f"{site.address}gradio_api/file={secret}").status == 404


def _saved(image: Image.Image, file: Path) -> Path:
    image.save(file, **({"lossless": True} if file.suffix == ".webp" else {}))
    return file


def _bytes(image: Image.Image) -> bytes:
    return np.asarray(image).tobytes()


def _shown(page: Page) -> bytes:
    uri = page.locator("#ra-original img").get_attribute("src")
    assert uri is not None
    return _bytes(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
