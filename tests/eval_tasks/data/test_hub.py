"""Data sets of the hub by id, from a server on this machine that answers as the hub does."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
from PIL import Image

from eval_tasks.data import load_task
from lvlm_radapt.utils.errors import UserError
from tests.helpers.paths import ROOT

datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
COMMIT = "a" * 40


def parquet(ids):
    """VQAv2's columns as lmms-eval's data set has them."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 0, 9)).save(picture, format="PNG")
    answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": k} for k in range(10)]
    rows = [
        {"question_id": i, "question": "Why?", "answers": answers, "image": {"bytes": picture.getvalue()}} for i in ids
    ]
    out = io.BytesIO()
    datasets.Dataset.from_list(rows).to_parquet(out)
    return out.getvalue()


@contextlib.contextmanager
def hub(files):
    """(URL, what was fetched): a hub that has the data set me/questions with these files."""
    fetched = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(self.path.partition("?")[0])
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            if path.startswith("/api/datasets/me/questions/revision/"):
                listed = [{"rfilename": one} for one in files]
                self.send(200, json.dumps({"id": "me/questions", "sha": COMMIT, "siblings": listed}).encode())
            elif path.startswith("/api/datasets/me/questions/tree/"):
                listed = [{"type": "file", "path": one, "size": len(held), "oid": "0"} for one, held in files.items()]
                self.send(200, json.dumps(listed).encode())
            elif name in files:
                if self.command == "GET":
                    fetched.append(name)
                self.send(200, files[name], ETag=f'"{hashlib.sha256(files[name]).hexdigest()}"', X_Repo_Commit=COMMIT)
            else:
                self.send(404, b"{}", X_Error_Code="RepoNotFound")

        def send(self, status, content, **headers):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", fetched
    finally:
        http.shutdown()
        http.server_close()


def check(url, home, data, offline="0"):
    """The command in a process of its own, whose hub and cache are these."""
    paths = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": offline, "PYTHONPATH": str(ROOT)}
    words = ["-m", "lvlm_radapt", "data", "check", "vqav2", "--data", data]
    return subprocess.run([sys.executable, *words], env=os.environ | paths, capture_output=True, text=True, timeout=200)


def test_the_split_that_is_evaluated_is_fetched_once_and_nothing_else(tmp_path):
    files = {
        "data/validation-00000-of-00002.parquet": parquet([3, 1]),
        "data/validation-00001-of-00002.parquet": parquet([2]),
        "data/test-00000-of-00001.parquet": b"another split",
        "loader.py": b"raise SystemExit('code of the data set was run')",
        "README.md": b"",
    }
    with hub(files) as (url, fetched):
        done = check(url, tmp_path / "home", "hf:me/questions")
        assert done.returncode == 0, done.stderr
        assert "task vqav2: 3 samples on 3 images" in done.stdout
        assert sorted(fetched) == sorted(name for name in files if "validation" in name)
        fetched.clear()
        assert check(url, tmp_path / "home", f"hf:me/questions@{COMMIT}").returncode == 0
        assert fetched == []
    assert check(url, tmp_path / "home", "hf:me/questions", offline="1").returncode == 0  # from the cache alone


def test_what_is_not_there_is_one_line(tmp_path):
    with hub({"data/train-00000-of-00001.parquet": parquet([1])}) as (url, _):
        for data, said in (("hf:me/absent", "cannot be fetched from the hub"), ("hf:me/questions", "no parquet files")):
            done = check(url, tmp_path / "home", data)
            assert done.returncode == 2
            assert said in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("data", ["hf:", "hf:questions", "hf:../../etc", "hf:a/b/c", "hf:a/b@"])
def test_what_is_no_id_is_refused_before_anything_is_asked(data):
    with pytest.raises(UserError, match="write hf:OWNER/NAME"):
        load_task("vqav2", data)


def test_a_task_that_reads_no_rows_says_so():
    with pytest.raises(UserError, match="from which task cifar10 does not read"):
        load_task("cifar10", "hf:me/questions")
