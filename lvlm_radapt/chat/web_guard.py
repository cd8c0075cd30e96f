"""What the web chat lets through to gradio: its own page's requests, under its own name, with plain values in them.

Gradio opens and copies every file that a call names, so a call that names one never gets there.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlencode

from lvlm_radapt.chat.web_uploads import LARGEST_UPLOAD, Uploads

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Receive, Send], Awaitable[None]]

# All that the page asks for. Not among it: gradio's routes that send files, fetch addresses or tell about users.
_PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/gradio_api/queue/data"}
_FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
_CALLS = {"/gradio_api/queue/join", "/gradio_api/run/predict"}
_UPLOAD = "/gradio_api/upload"
_QUERY = {"session_hash", "__theme"}

_LARGEST_CALL = 64 * 2**10  # bytes; the longest question is far below it
_UPLOADS_AT_ONCE = 4
_UPLOAD_SECONDS = 60

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Refused(Exception):
    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class Guard:
    """An ASGI application in front of gradio's. hosts: see `Hosts`; uploads: gets what visitors send."""

    def __init__(self, app: Asgi, hosts: Hosts, uploads: Uploads) -> None:
        self._app = app
        self._hosts = hosts
        self._uploads = uploads
        self._sending = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            try:
                await self._answer(scope, receive, send)
            except Refused as error:
                await _reply(send, error.status, b"text/plain", str(error).encode())

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        self._check_sender(scope)
        path, method = scope["path"], scope["method"]
        if method == "POST" and path == _UPLOAD:
            secret = await self._upload(scope, receive)
            await _reply(send, 200, b"application/json", json.dumps([secret]).encode())
        elif method == "POST" and path in _CALLS:
            body = plain_call(await _body(receive, _LARGEST_CALL))
            await self._app(_with_body(scope, body), _replay(body, receive), send)
        elif method in ("GET", "HEAD") and is_page(path):
            await self._app({**scope, "query_string": _known_query(scope["query_string"])}, receive, send)
        else:
            raise Refused(404, "not found")

    def _check_sender(self, scope: Message) -> None:
        """Refuse other sites' pages: those that reach this server under a name of theirs (DNS rebinding), and those
        that send it something."""
        host = _only(scope, b"host").lower()
        if not self._hosts.are_own(host):
            raise Refused(403, "this page is not served under that name: use its address, or start it with --host")
        origin = _only(scope, b"origin").lower()
        if origin and origin not in (f"http://{host}", f"https://{host}"):
            raise Refused(403, "not from this page")
        if scope["method"] == "POST" and _only(scope, b"sec-fetch-site") not in ("", "same-origin", "none"):
            raise Refused(403, "not from this page")

    async def _upload(self, scope: Message, receive: Receive) -> str:
        if self._sending >= _UPLOADS_AT_ONCE:
            raise Refused(503, "others are sending images: try again")
        self._sending += 1
        try:
            async with asyncio.timeout(_UPLOAD_SECONDS):
                body = await _body(receive, LARGEST_UPLOAD)
            name, content = await _sent_file(scope, body)
        except TimeoutError:
            raise Refused(408, "the image took too long") from None
        finally:
            self._sending -= 1
        return self._uploads.add(name, content)


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


def plain_call(body: bytes) -> bytes:
    """The call of one of the page's functions, written anew with what is known to be harmless: numbers, truth values
    and texts. `Refused` (400) where there is anything else, such as the name of a file."""
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
    raise Refused(400, "not a call of this page")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**6


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def is_page(path: str) -> bool:
    return path in _PAGES or (path.startswith(_FOLDERS) and ".." not in path)


def _known_query(query: bytes) -> bytes:
    return urlencode([(key, value) for key, value in parse_qsl(query.decode("latin-1")) if key in _QUERY]).encode()


def _only(scope: Message, name: bytes) -> str:
    """The header's value, empty where it is missing; refused where it is there twice, as programs then disagree."""
    found = [value for key, value in scope["headers"] if key == name]
    if len(found) > 1:
        raise Refused(400, f"two headers {name.decode()}")
    return found[0].decode("latin-1") if found else ""


async def _body(receive: Receive, most: int) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "cut short")
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > most:
            raise Refused(413, f"more than {most} bytes")
        more = message.get("more_body", False)
    return b"".join(parts)


async def _sent_file(scope: Message, body: bytes) -> tuple[str, bytes]:
    """Name and content of the one file in a form."""
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException
    from starlette.requests import Request

    try:
        async with Request(dict(scope), _replay(body, _nothing_more)).form(max_files=1, max_fields=0) as form:
            file = form.get("files")
            if isinstance(file, UploadFile):
                return file.filename or "", await file.read()
    except (MultiPartException, HTTPException, ValueError, KeyError):
        pass
    raise Refused(400, "send one file")


def _replay(body: bytes, then: Receive) -> Receive:
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return left.pop() if left else await then()

    return receive


async def _nothing_more() -> Message:
    return {"type": "http.disconnect"}


def _with_body(scope: Message, body: bytes) -> Message:
    kept = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"content-type")]
    new = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return {**scope, "query_string": b"", "headers": [*kept, *new]}


async def _reply(send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
