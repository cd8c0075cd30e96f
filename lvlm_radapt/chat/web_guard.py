"""What the web chat lets through to gradio: its own page's requests, under its own name, with plain values in them.

Gradio opens and copies every file that a call names, so a call that names one never gets there. What visitors send
stays in memory: no path that a browser names is ever opened.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import secrets
import socket
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lvlm_radapt.utils.errors import UserError

# All that the page asks for. Not among it: gradio's routes that send files, fetch addresses or tell about users.
_PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/gradio_api/queue/data"}
_FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
_CALLS = {"/gradio_api/queue/join", "/gradio_api/run/predict"}
_UPLOAD = "/gradio_api/upload"
_QUERY = {"session_hash", "__theme"}

_LARGEST_CALL = 64 * 2**10  # bytes; the longest question is far below it
_LARGEST_UPLOAD = 20 * 2**20  # bytes, the form around it included
_UPLOADS_AT_ONCE = 4
_UPLOADS_KEPT = 8  # the page fetches each at once
_UPLOAD_SECONDS = 60

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Upload:
    """A file as it was sent; its name is only shown."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """The file's bytes."""
        return self.content


class Uploads:
    """Uploads that nobody has taken yet. Each has a secret name, which only its sender gets, and is taken once."""

    def __init__(self) -> None:
        self._kept: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def add(self, name: str, content: bytes) -> str:
        """Keep a file, for its secret name; the oldest ones give way."""
        secret = secrets.token_urlsafe(24)
        shown = re.split(r"[/\\]", name)[-1][:100] or "image"
        with self._lock:
            self._kept[secret] = Upload(shown, content)
            while len(self._kept) > _UPLOADS_KEPT:
                del self._kept[next(iter(self._kept))]
        return secret

    def take(self, secret: str) -> Upload:
        """The file of that secret name, which is then forgotten; UserError where there is none."""
        with self._lock:
            found = self._kept.pop(secret, None)
        if found is None:
            raise UserError("no such upload: send the image again")
        return found


class Hosts:
    """The names a server is reached under. bound: the address it is bound to; asked: the --host it was started with.

    On a loopback address these are the loopback names. On all addresses (0.0.0.0, ::) they are every address, which no
    name server can redirect, and the machine's own names.
    """

    def __init__(self, bound: str, asked: str) -> None:
        address = ipaddress.ip_address(bound.partition("%")[0])
        self._names = {str(address), asked.lower()}
        self._any_address = address.is_unspecified
        if address.is_loopback or address.is_unspecified:
            self._names |= {"localhost", "127.0.0.1", "::1"}
        if address.is_unspecified:
            own = socket.gethostname().lower()
            self._names |= {own, f"{own}.local"}

    def are_own(self, header: str) -> bool:
        """Whether a Host header, in lower case, is one of them. Any port will do: a tunnel's end has its own."""
        found = _HOST.fullmatch(header)
        if found is None:
            return False
        name = found[1].strip("[]").removesuffix(".")
        try:
            name = str(ipaddress.ip_address(name))
        except ValueError:
            return name in self._names
        return self._any_address or name in self._names


class Guard:
    """An ASGI application in front of gradio's. uploads: gets what visitors send."""

    def __init__(self, app: ASGIApp, hosts: Hosts, uploads: Uploads) -> None:
        self._app = app
        self._hosts = hosts
        self._uploads = uploads
        self._sending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            try:
                answer = await self._answer(Request(scope, receive))
            except HTTPException as error:
                answer = PlainTextResponse(error.detail, error.status_code)
            except ClientDisconnect:
                return
            await answer(scope, receive, send)

    async def _answer(self, request: Request) -> ASGIApp:
        self._check_sender(request)
        path, method = request.scope["path"], request.method
        if method == "POST" and path == _UPLOAD:
            return JSONResponse([await self._upload(request)])
        if method == "POST" and path in _CALLS:
            return self._passed(plain_call(await _body(request, _LARGEST_CALL)))
        if method in ("GET", "HEAD") and is_page(path):
            return self._passed()
        raise HTTPException(404, "not found")

    def _check_sender(self, request: Request) -> None:
        """Refuse other sites' pages: those that reach this server under a name of theirs (DNS rebinding), and those
        that send it something."""
        host = _only(request, "host").lower()
        if not self._hosts.are_own(host):
            raise HTTPException(
                403, "this page is not served under that name: use its address, or start it with --host"
            )
        origin = _only(request, "origin").lower()
        foreign = origin and origin not in (f"http://{host}", f"https://{host}")
        if foreign or (
            request.method == "POST" and _only(request, "sec-fetch-site") not in ("", "same-origin", "none")
        ):
            raise HTTPException(403, "not from this page")

    async def _upload(self, request: Request) -> str:
        if self._sending >= _UPLOADS_AT_ONCE:
            raise HTTPException(503, "others are sending images: try again")
        self._sending += 1
        try:
            async with asyncio.timeout(_UPLOAD_SECONDS):
                name, content = await _sent_file(request)
        except TimeoutError:
            raise HTTPException(408, "the image took too long") from None
        finally:
            self._sending -= 1
        return self._uploads.add(name, content)

    def _passed(self, body: bytes | None = None) -> ASGIApp:
        """Gradio, which gets the request with what is known of its query, or with this body in place of its own."""

        async def passed(scope: Scope, receive: Receive, send: Send) -> None:
            if body is None:
                pairs = parse_qsl(scope["query_string"].decode("latin-1"))
                query = urlencode([(key, value) for key, value in pairs if key in _QUERY]).encode()
                await self._app({**scope, "query_string": query}, receive, send)
                return
            left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def replay() -> Message:
                return left.pop() if left else await receive()

            kept = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"content-type")]
            new = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await self._app({**scope, "query_string": b"", "headers": [*kept, *new]}, replay, send)

        return passed


def plain_call(body: bytes) -> bytes:
    """The call of one of the page's functions, written anew with what is known to be harmless: numbers, truth values
    and texts. HTTPException (400) where there is anything else, such as the name of a file."""
    try:
        call = json.loads(body, parse_constant=_no_number)
        number, session, values, trigger = (call.get(k) for k in ("fn_index", "session_hash", "data", "trigger_id"))
        good = (
            _is_count(number)
            and isinstance(session, str)
            and _SESSION.fullmatch(session) is not None
            and isinstance(values, list)
            and all(value is None or isinstance(value, (str, int, float)) for value in values)
            and (trigger is None or _is_count(trigger))
        )
        if good:
            known = {"fn_index": number, "session_hash": session, "data": values, "trigger_id": trigger}
            return json.dumps(known, allow_nan=False).encode()
    except (ValueError, AttributeError, RecursionError):  # no JSON, no object, endless brackets
        pass
    raise HTTPException(400, "not a call of this page")


def is_page(path: str) -> bool:
    """Whether the page itself asks for that path."""
    return path in _PAGES or (path.startswith(_FOLDERS) and ".." not in path)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**6


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _only(request: Request, name: str) -> str:
    """The header's value, empty where it is missing; refused where it is there twice, as programs then disagree."""
    found = request.headers.getlist(name)
    if len(found) > 1:
        raise HTTPException(400, f"two headers {name}")
    return found[0] if found else ""


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise HTTPException(413, f"more than {most} bytes")
    return bytes(body)


async def _sent_file(request: Request) -> tuple[str, bytes]:
    """Name and content of the one file in a form."""
    body = await _body(request, _LARGEST_UPLOAD)

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, whole(), max_files=1, max_fields=0)
    parser.spool_max_size = _LARGEST_UPLOAD  # else a file of more than a megabyte goes to the disk
    try:
        file = (await parser.parse()).get("files")
        if isinstance(file, UploadFile):
            return file.filename or "", await file.read()
    except (MultiPartException, ValueError, KeyError):
        pass
    raise HTTPException(400, "send one file")
