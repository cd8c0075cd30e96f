"""The web chat's server."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from PIL import Image

from lvlm_radapt.models.base import LVLM
from lvlm_radapt.utils.errors import UserError

_MOST_CONNECTIONS = 500  # two for each visitor


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
    host: str,
    samples: Sequence[tuple[str, Image.Image]],
    questions: Sequence[str],
    max_new_tokens: int,
    ready: Callable[[str], None],
) -> None:
    """Serve the chat on a bound socket until a signal comes; ready: gets the page's address.

    host: what was asked to be listened to; samples: names and images to pick. What users send stays in memory.
    """
    with tempfile.TemporaryDirectory(prefix="lvlm-radapt-web-") as empty:
        # gradio reads these when it is imported
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": empty, "GRADIO_RUN_HISTORY": "False"}
        logging.getLogger("httpx").setLevel(logging.WARNING)
        import uvicorn

        from lvlm_radapt.chat.web_guard import Guard, Hosts, Uploads
        from lvlm_radapt.chat.web_page import make_app
        from lvlm_radapt.chat.web_visitor import Engine

        uploads = Uploads()
        page = make_app(Engine(model), uploads, samples, questions, max_new_tokens=max_new_tokens)
        config = uvicorn.Config(
            Guard(page, Hosts(bound.getsockname()[0], host), uploads),
            log_level="warning",
            timeout_graceful_shutdown=1,
            limit_concurrency=_MOST_CONNECTIONS,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            ready(_address(bound))
            while thread.is_alive():
                thread.join(1)
        finally:
            server.should_exit = True
            thread.join(5)


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
