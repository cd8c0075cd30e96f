"""A server on this machine that speaks the chat-completions protocol over HTTP, and can go wrong in all usual ways."""

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("red", "blue", "two", "yes", "circle", "no")
IMAGE_TOKENS = 64


@dataclass(frozen=True)
class Request:
    """What a client asked: its words, the SHA-256 of its PNG ("" for none), the whole body, and its Idempotency-Key."""

    text: str
    image: str
    body: dict[str, Any]
    once: str = ""

    @property
    def question(self) -> tuple[str, str]:
        return self.text, self.image


Fault = Callable[[Request, int], "dict[str, Any] | None"]
"""Given a request and how often the same was asked before, what goes wrong: {"status": ..., "error": {...}, "headers":
{...}}, {"body": JSON in place of an answer}, {"cut": True} for a body that ends early; None for a good answer."""


@dataclass
class Server:
    """url: the base URL. requests: all that came, in order; answered: how often each question got a whole answer.
    most: the most requests that were open at one time. key: the only one that is let in; None lets in everybody.
    remembers: whether a request whose Idempotency-Key came before waits for that one's answer, and costs nothing."""

    url: str = ""
    key: str | None = None
    model: str = "seer"
    listed: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "seer", "object": "model", "root": "seer-1"}])
    fault: Fault = lambda request, before: None
    delay: float = 0.0
    image_tokens: int = IMAGE_TOKENS
    remembers: bool = False
    requests: list[Request] = field(default_factory=list)
    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    most: int = 0
    open: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: Request) -> dict[str, Any]:
        """A chat completion: a word that the image and the question decide."""
        digest = hashlib.sha256("/".join(request.question).encode()).digest()
        prompt = len(request.text.split()) + self.image_tokens * bool(request.image)
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.model,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": WORDS[digest[0] % len(WORDS)]},
                }
            ],
            "usage": {"prompt_tokens": prompt, "completion_tokens": 1, "total_tokens": prompt + 1},
        }


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    """The server, listening until the block ends. settings: its fields."""
    server = Server(**settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self._let_in():
                stamped = [entry | {"created": time.time_ns()} for entry in server.listed]  # as vLLM does
                self._send(200, {"object": "list", "data": stamped})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._let_in():
                return
            request = _read(body, self.headers.get("Idempotency-Key", ""))
            with server.lock:
                known = server.remembers and any(one.once == request.once for one in server.requests)
                before = sum(one.question == request.question for one in server.requests)
                server.requests.append(request)
                server.open += 1
                server.most = max(server.most, server.open)
            time.sleep(server.delay)
            wrong = server.fault(request, before)
            with server.lock:
                server.open -= 1
                server.answered[request.question] += wrong is None and not known
            if wrong is None:
                self._send(200, server.answer(request))
            elif "body" in wrong:
                self._send(200, wrong["body"])
            elif "cut" in wrong:
                self._send(200, server.answer(request), cut=True)
            else:
                self._send(wrong["status"], {"error": wrong["error"]}, **wrong.get("headers", {}))

        def _let_in(self) -> bool:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if server.key in (None, given):
                return True
            self._send(401, {"error": {"message": f"Incorrect API key provided: {given}", "code": "invalid_api_key"}})
            return False

        def _send(self, status: int, body: Any, *, cut: bool = False, **headers: str) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client may be killed
                self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = cut

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def _read(body: dict[str, Any], once: str) -> Request:
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return Request(content, "", body, once)
    kinds = {part["type"]: part for part in content}
    head, _, encoded = kinds["image_url"]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return Request(kinds["text"]["text"], hashlib.sha256(base64.b64decode(encoded)).hexdigest(), body, once)
