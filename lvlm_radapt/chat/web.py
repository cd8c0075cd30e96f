"""The web chat's server."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from PIL import Image

from lvlm_radapt.chat.web_engine import Engine
from lvlm_radapt.errors import UserError
from lvlm_radapt.models.base import LVLM

LARGEST_UPLOAD = 20 * 2**20  # bytes

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Receive, Send], Awaitable[None]]

# All that the page asks for. Not among it: gradio's routes that send files, fetch addresses or tell about users.
_PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/gradio_api/upload"}
_FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/queue/", "/gradio_api/heartbeat/", "/gradio_api/run/")


def check_web() -> None:
    """UserError without the packages of the web chat."""
    if find_spec("gradio") is None:
        raise UserError("--web needs gradio: pip install 'lvlm-radapt[web]'")


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to that place, before anything slow is begun; UserError where it cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
            bound.listen()  # on some systems two sockets may be bound, but not listen
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"cannot listen on {host} port {port}: {reason}; choose another --port or --host"
            ) from error
        yield bound


def serve(
    model: LVLM,
    bound: socket.socket,
    *,
    samples: Sequence[tuple[str, Image.Image]],
    questions: Sequence[str],
    max_new_tokens: int,
    ready: Callable[[str], None],
) -> None:
    """Serve the chat on a bound socket until a signal comes; ready: gets the page's address.

    samples: names and images to pick. What users send is kept in a folder that goes when the server ends.
    """
    with tempfile.TemporaryDirectory(prefix="lvlm-radapt-web-") as uploads:
        # gradio reads these when it is imported
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads, "GRADIO_RUN_HISTORY": "False"}
        logging.getLogger("httpx").setLevel(logging.WARNING)
        import uvicorn

        app = make_app(Engine(model), samples, questions, max_new_tokens=max_new_tokens)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            ready(_address(bound))
            while thread.is_alive():
                thread.join(1)
        finally:
            server.should_exit = True
            thread.join(5)


def make_app(
    engine: Engine, samples: Sequence[tuple[str, Image.Image]], questions: Sequence[str], *, max_new_tokens: int
) -> Asgi:
    """The page as an ASGI application that answers what the page needs, and nothing else."""
    import gradio as gr
    from fastapi import FastAPI

    from lvlm_radapt.chat.web_page import STYLE, THEME, build, sample_style

    page = build(engine, samples, questions, max_new_tokens=max_new_tokens)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        allowed_paths=[],
        max_file_size=LARGEST_UPLOAD,
        show_error=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=THEME,
        css=STYLE.read_text(encoding="utf-8") + sample_style(samples),
    )

    async def guarded(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _wanted(scope["path"]):
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await app(scope, receive, send)

    return guarded


def _wanted(path: str) -> bool:
    return path in _PAGES or (path.startswith(_FOLDERS) and ".." not in path)


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
