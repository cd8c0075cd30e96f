"""Requests that no honest page sends: they get none of the server's files, and nothing of the server is even opened."""

import http.client
import itertools
import json
import os
import re
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from conftest import Site
from PIL import Image

pytestmark = pytest.mark.web

FORM = {"Content-Type": "multipart/form-data; boundary=x"}
JSON = {"Content-Type": "application/json"}
_sessions = itertools.count()


def pictures(said: bytes) -> set[bytes]:
    """The images in an answer of the page."""
    return set(re.findall(rb"data:image/png;base64,[\w+/=]+", said))


class Server:
    """What a visitor without a browser can do."""

    def __init__(self, site: Site) -> None:
        self.host = site.address.removeprefix("http://").rstrip("/")
        self.functions: dict[str, int] = {}
        self.sample: set[bytes] = set()
        for one in json.loads(self.ask("GET", "/config")[1])["dependencies"]:
            inputs = len(one["inputs"])
            self.functions.setdefault(f"{one['targets'][0][1]} {inputs}", one["id"])

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def call(self, function: str, values: list[Any], session: str, path: str = "queue/join") -> tuple[int, bytes]:
        """A function's whole answer, or the status and words it was refused with."""
        call = {"data": values, "fn_index": self.functions[function], "session_hash": session, "event_data": None}
        status, said = self.ask("POST", f"/gradio_api/{path}", json.dumps(call), JSON)
        if status != 200 or path != "queue/join":
            return status, said
        return self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")

    def visitor(self) -> str:
        """A new visitor's session, who sees the first sample."""
        session = f"visitor{next(_sessions)}"
        status, said = self.call("load 0", [], session)
        assert status == 200
        self.sample = pictures(said)
        assert self.sample
        return session

    def upload(
        self, content: bytes, name: str = "mine.png", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        return self.ask("POST", "/gradio_api/upload", form(content, name), {**FORM, **(headers or {})})

    def show(self, secret: object, session: str) -> tuple[int, bytes]:
        """The page's answer to an upload."""
        return self.call("then 2", [None, secret], session)


def form(content: bytes, name: str = "mine.png", field: str = "files") -> bytes:
    edge = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    return edge.encode() + content + b"\r\n--x--\r\n"


def png(side: int = 64, colour: tuple[int, int, int] = (200, 30, 77)) -> bytes:
    out = BytesIO()
    Image.new("RGB", (side, side), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def server(site: Site) -> Server:
    return Server(site)


class Outside:
    """The server's own files, and a watch on who opens them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("secret.png", ".hidden.png"):
            (folder / name).write_bytes(png())
        Image.open(BytesIO(png())).save(folder / "secret.jpg")
        Image.open(BytesIO(png())).save(folder / "secret.webp")
        (folder / "secret.txt").write_text("root:x:0:0")
        (folder / "link.png").symlink_to(folder / "secret.png")
        os.mkfifo(folder / "pipe.png")
        with (folder / "huge.png").open("wb") as file:
            file.truncate(300 * 2**20)
        self.opened: list[str] = []
        self.watching = False
        sys.addaudithook(self._seen)

    def _seen(self, event: str, facts: tuple[Any, ...]) -> None:
        if self.watching and event in ("open", "shutil.copyfile", "socket.connect"):
            self.opened.extend(str(fact) for fact in facts[:2])

    def forged(self) -> list[str]:
        names = [p.name for p in sorted(self.folder.iterdir())]
        paths = [str(self.folder / name) for name in [*names, "missing.png", "", "."]]
        paths += [os.path.relpath(self.folder / "secret.png"), f"{tempfile.gettempdir()}/../{self.folder}/secret.png"]
        paths += [
            f"{scheme}{self.folder}/secret.png" for scheme in ("file://", "file:", "/gradio_api/file=", "//", "~/../")
        ]
        paths += [f"{self.folder}/secret.png\0", f"{self.folder}/secret.png#", f"{self.folder}/%2e/secret.png"]
        paths += ["/etc/passwd", "/proc/self/environ", "/proc/self/mem", "/proc/self/fd/0", "/dev/zero", "/dev/stdin"]
        paths += [
            "pyproject.toml",
            "docs/images/chat-light.png",
            "../../etc/passwd",
            "C:\\secret.png",
            "\\\\host\\secret.png",
        ]
        paths += [
            "http://127.0.0.1:1/secret.png",
            "https://example.org/x.png",
            "data:image/png;base64,AAAA",
            "\udcff.png",
        ]
        return paths


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Outside:
    return Outside(tmp_path_factory.mktemp("outside"))


@pytest.fixture
def untouched(outside: Outside) -> Iterator[Outside]:
    """None of the server's files is opened, fetched or copied meanwhile."""
    kept = Path(os.environ["GRADIO_TEMP_DIR"])
    before = sorted(kept.rglob("*"))
    outside.opened.clear()
    outside.watching = True
    yield outside
    outside.watching = False
    strange = ("secret", "pipe", "huge", "missing", "/etc/passwd", "/proc/self", "/dev/zero", "stdin", "127.0.0.1', 1)")
    assert [name for name in outside.opened if any(part in name for part in strange)] == []
    assert sorted(kept.rglob("*")) == before


def shapes(path: str) -> list[Any]:
    """All that gradio might take for a file, and the path itself in an upload's place."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    full = {**file, "url": f"/gradio_api/file={path}", "orig_name": "mine.png", "size": 1, "mime_type": "image/png"}
    return [
        file, full, {**file, "is_stream": True}, {**file, "path": {"path": path}}, [file], [[full]], {"value": file},
        {"x": {"y": [file]}}, {"path": path}, {"root": [file]}, [path],
    ]  # fmt: skip


def test_no_call_with_a_file_gets_through(server: Server, untouched: Outside) -> None:
    """Each path in each shape, for each of the page's functions, on both of the routes that call them."""
    tried, answers = 0, set()
    functions = [name for name in server.functions if not name.endswith(" 0")]
    routes = ["queue/join", "run/predict"]
    rounds = itertools.cycle(itertools.product(functions, routes))
    for path in untouched.forged():
        for value in shapes(path):
            function, route = next(rounds)
            count = int(function.split()[1])
            values = [None] * count
            values[tried % count] = value
            answers.add(server.call(function, values, "forged", route))
            tried += 1
    assert tried >= 300
    assert answers == {(400, b"not a call of this page")}, "whether the file exists is not told"


def test_a_path_is_no_upload(server: Server, untouched: Outside) -> None:
    session = server.visitor()
    for path in untouched.forged():
        status, said = server.show(path, session)
        assert status == 200
        assert b"no such upload: send the image again" in said, path
        assert pictures(said) <= server.sample
        assert str(untouched.folder).encode() not in said


def test_an_upload_is_its_sender_s_and_is_taken_once(server: Server) -> None:
    mine, other = server.visitor(), server.visitor()
    status, said = server.upload(png(), "../../mine.png")
    (secret,) = json.loads(said)
    assert (status, len(secret)) == (200, 32)
    for guess in (secret[:-1], secret.swapcase(), "mine.png", ""):
        assert b"no such upload" in server.show(guess, other)[1]
    shown = server.show(secret, mine)[1]
    assert b"data:image/png;base64" in shown
    assert b"no such upload" in server.show(secret, other)[1]
    assert server.upload(png())[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"1", b'"x"', b"{", b"[" * 60_000, b'{"data":' * 8_000, b"\xff\xfe", b"{}", b"{}{}",
        b'{"data": [], "fn_index": 1}',
        b'{"data": [], "session_hash": "a"}',
        b'{"data": [], "fn_index": true, "session_hash": "a"}',
        b'{"data": [], "fn_index": -1, "session_hash": "a"}',
        b'{"data": [], "fn_index": 1e1, "session_hash": "a"}',
        b'{"data": [], "fn_index": 1, "session_hash": "../../etc"}',
        b'{"data": [], "fn_index": 1, "session_hash": ["a"]}',
        b'{"data": {}, "fn_index": 1, "session_hash": "a"}',
        b'{"data": "x", "fn_index": 1, "session_hash": "a"}',
        b'{"data": [NaN], "fn_index": 1, "session_hash": "a"}',
        b'{"data": [-Infinity], "fn_index": 1, "session_hash": "a"}',
        b'{"data": [1e999], "fn_index": 1, "session_hash": "a"}',
        b'{"data": [' + b"9" * 5000 + b'], "fn_index": 1, "session_hash": "a"}',
        b'{"data": [], "data": [{}], "fn_index": 1, "session_hash": "a"}',
        b'{"data": [], "fn_index": 1, "session_hash": "a", "trigger_id": {"path": "/etc/passwd"}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("route", ["queue/join", "run/predict"])
def test_bodies_that_are_no_calls_are_refused(server: Server, untouched: Outside, body: bytes, route: str) -> None:
    assert server.ask("POST", f"/gradio_api/{route}", body, JSON) == (400, b"not a call of this page")


def test_what_is_not_known_of_a_call_is_left_out(server: Server) -> None:
    session = server.visitor()
    call = {"data": [None], "fn_index": server.functions["click 1"], "session_hash": session}
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    extra = {"event_data": file, "request": file, "batched": True, "event_id": session, "simple_format": True}
    for kind in (JSON, {"Content-Type": "text/plain"}, {}):  # what it calls itself does not matter
        assert server.ask("POST", "/gradio_api/queue/join", json.dumps({**call, **extra}), kind)[0] == 200


def test_a_call_that_is_too_long_is_refused(server: Server) -> None:
    assert server.ask("POST", "/gradio_api/queue/join", b" " * (2**16 + 1), JSON)[0] == 413


HOSTS = [
    "evil.example", "evil.example:{port}", "localhost.evil.example:{port}", "127.0.0.1.evil.example", "127.0.0.1@evil",
    "evil@127.0.0.1", "127.0.0.2:{port}", "0.0.0.0:{port}", "192.168.0.1", "[::2]:{port}", "localhost:1:2", "",
    "127.0.0.1/", "127.1", "2130706433", "0x7f.1", "localhost, evil.example", "127.0.0.1:{port} x", "127.0.0.1:123456",
    "[127.0.0.1", "..", "localhost..", "%6cocalhost",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_other_hosts_get_nothing(server: Server, host: str) -> None:
    named = {"Host": host.format(port=server.host.split(":")[1])}
    said = {server.ask("GET", path, headers=named) for path in ("/", "/config", "/assets/", "/gradio_api/queue/data")}
    said |= {server.upload(png(), headers=named), server.ask("POST", "/gradio_api/queue/join", "{}", {**JSON, **named})}
    ((status, words),) = said
    # a few of them the server itself refuses as no HTTP
    assert status in (400, 403)
    assert len(words) < 100


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:{port}", "[::1]:8000", "localhost.:8000"])
def test_its_own_names_are_served_at_any_port_of_a_tunnel(server: Server, host: str) -> None:
    host = host.format(port=server.host.split(":")[1])
    headers = {"Host": host, "Origin": f"http://{host.lower()}", "Sec-Fetch-Site": "same-origin"}
    assert server.ask("GET", "/config", headers=headers)[0] == 200
    assert server.upload(png(), headers=headers)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "file://"},
        {"Origin": "http://{host}.evil.example"},
        {"Origin": "http://{host}@evil.example"},
        {"Origin": "ftp://{host}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://{host}", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_other_sites_can_send_nothing(server: Server, headers: dict[str, str]) -> None:
    headers = {name: value.format(host=server.host) for name, value in headers.items()}
    assert server.upload(png(), headers=headers) == (403, b"not from this page")
    refused = server.ask("POST", "/gradio_api/queue/join", "{}", {**JSON, **headers})
    assert refused == (403, b"not from this page")


def test_two_hosts_are_refused(server: Server) -> None:
    connection = http.client.HTTPConnection(server.host, timeout=60)
    connection.putrequest("GET", "/config", skip_host=True)
    connection.putheader("Host", server.host)
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/queue/data"), ("GET", "/gradio_api/queue/join"), ("GET", "/gradio_api/queue/status"),
        ("POST", "/gradio_api/run/handle"), ("POST", "/gradio_api/api/predict"), ("POST", "/gradio_api/call/handle"),
        ("POST", "/gradio_api/cancel"), ("POST", "/gradio_api/reset"), ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"), ("POST", "/gradio_api/stream/x"), ("POST", "/"),
        ("POST", "/gradio_api/run-history/connect"), ("POST", "/gradio_api/vibe-edit"), ("POST", "/login"),
        ("GET", "/gradio_api/upload"), ("PUT", "/gradio_api/upload"), ("POST", "/gradio_api/upload/"),
        ("GET", "/gradio_api/upload_progress?upload_id=x"), ("GET", "/gradio_api/runs"), ("GET", "/gradio_api/info"),
        ("OPTIONS", "/"), ("DELETE", "/config"), ("TRACE", "/"), ("GET", "/monitoring/x"), ("GET", "/gradio_api/token"),
        ("GET", "/gradio_api/custom_component/x/client/component/y"), ("GET", "/gradio_api/proxy=http://127.0.0.1:1/"),
    ],
)  # fmt: skip
def test_routes_that_the_page_does_not_use_are_closed(server: Server, method: str, path: str) -> None:
    assert server.ask(method, path) in ((404, b"not found"), (404, b""))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"--x--\r\n", form(b"x", field="file"),  b"no form",
        form(png()).removesuffix(b"--\r\n") + b"\r\n" + form(png()),
        b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n/etc/passwd\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="path"\r\n\r\n/etc/passwd\r\n' + form(png()),
    ],
)  # fmt: skip
def test_a_form_holds_one_file(server: Server, body: bytes) -> None:
    assert server.ask("POST", "/gradio_api/upload", body, FORM) == (400, b"send one file")
    for kind in ("multipart/form-data", "application/x-www-form-urlencoded", "application/json"):
        assert server.ask("POST", "/gradio_api/upload", body, {"Content-Type": kind})[0] == 400


def test_a_large_upload_touches_no_disk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: written.append(1) or BytesIO())
    assert server.upload(png() + bytes(3 * 2**20))[0] == 200
    assert written == []


def test_large_images_are_refused_before_they_are_decoded(server: Server) -> None:
    side = 5001
    whole = bytearray(png(8))
    whole[16:24] = side.to_bytes(4, "big") * 2  # the size in the first chunk, IHDR, and its checksum
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    (secret,) = json.loads(server.upload(bytes(whole))[1])
    said = server.show(secret, server.visitor())[1]
    assert b"more than 25000000 pixels" in said
    assert pictures(said) <= server.sample


def test_few_images_are_kept_and_few_are_sent_at_once(server: Server) -> None:
    secrets = [json.loads(server.upload(png())[1])[0] for _ in range(9)]
    session = server.visitor()
    assert b"no such upload" in server.show(secrets[0], session)[1]
    assert b"no such upload" not in server.show(secrets[1], session)[1]
    slow = []
    body = form(png())
    for _ in range(4):
        connection = http.client.HTTPConnection(server.host, timeout=60)
        connection.putrequest("POST", "/gradio_api/upload")
        for name, value in {**FORM, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body[:10])
        slow.append(connection)
    tries = threading.Event()
    while server.upload(png())[0] != 503:  # until the four have got there
        assert not tries.wait(0.05)
    assert server.ask("GET", "/config")[0] == 200, "everything else goes on"
    for connection in slow:
        connection.send(body[10:])
        assert connection.getresponse().status == 200
    assert server.upload(png())[0] == 200
