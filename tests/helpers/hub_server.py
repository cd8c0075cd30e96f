"""A server on this machine that takes pushes and gives files as the Hugging Face hub does.

It asks for every file inside the commit, as the hub does for small ones."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0" * 40


@dataclass
class Hub:
    """url: its address. token: the one that is let in. repos: name -> what was asked for when it was created. files:
    what was committed, by path. checked: the cards whose YAML it was asked about. commits: how many there were."""

    token: str
    url: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    checked: list[str] = field(default_factory=list)
    commits: int = 0

    def entry(self, name: str) -> dict[str, Any]:
        """A file as the hub lists it."""
        content = self.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repos[name] = asked
            return {"url": f"{self.url}/{name}", "name": name}
        if path == "/api/validate-yaml":
            self.checked.append(json.loads(body)["content"])
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]}
        assert "/commit/" in path, path
        self.commits += 1
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"commitOid": COMMIT, "commitUrl": f"{self.url}/me/name/commit/{COMMIT}", "hookOutput": ""}


@contextlib.contextmanager
def hub(token: str) -> Iterator[Hub]:
    """The server, listening until the block ends."""
    made = Hub(token)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, found = self.path.split("?")[0], self._file()
            if found is not None:
                self._send_file(found)
            elif path.startswith("/api/models/") and "/tree/" in path:
                self._send(200, [made.entry(name) for name in made.files])
            elif path.startswith("/api/models/"):
                siblings = [{"rfilename": name} for name in made.files]
                self._send(200, {"id": "me/name", "sha": COMMIT, "siblings": siblings})
            else:
                self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

        def _file(self) -> bytes | None:
            _, found, name = self.path.partition("/resolve/")
            return made.files.get(name.partition("/")[2]) if found else None

        def _send_file(self, content: bytes) -> None:
            tag = hashlib.sha1(content).hexdigest()
            self._reply(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.split("?")[0]
            if path != "/api/validate-yaml" and self.headers.get("Authorization") != f"Bearer {made.token}":
                self._send(401, {"error": "Invalid credentials in Authorization header"})
                return
            self._send(200, made.answer(path, body))

        def _send(self, status: int, content: Any, more: Mapping[str, str] | None = None) -> None:
            self._reply(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(more or {})})

        def _reply(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
