"""A model behind an API is scored on the PNG files of a run: nothing is paid twice, and what goes wrong is
told in a line."""

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import pytest

from eval_tasks.run.answers import FILE
from eval_tasks.run.records import read_run
from lvlm_radapt.models.endpoint import HALVES
from tests.helpers.commands import Command, free_port
from tests.helpers.data_sets import attacked_place
from tests.helpers.endpoint_server import IMAGE_TOKENS, serving

KEY = "sk-secret-0123456789"
N = 6
AGAIN = {"retry_after_ms": "5"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, a small model, and a run on it whose attacked images are scored again."""
    return attacked_place(tmp_path_factory.mktemp("place"), "vqav2", N)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("lvlm_radapt.models.endpoint.PAUSE", 0.001)


def words(place, server, out, *more):
    url = server if isinstance(server, str) else server.url
    return [
        "eval", "openai:seer", "--base-url", url, "--threat", "transfer", "--surrogate", place / "llava",
        "--images-from", place / "made", "--task", "vqav2", "--data", place / "data", "--chunk-size", 2,
        "--batch-size", 2, "--out", out, *more,
    ]  # fmt: skip


@pytest.fixture
def ask(cli, place, tmp_path):
    """ask(server, *more): (exit code, stderr) of scoring openai:seer into tmp_path / "run"."""

    def run(server, *more):
        code, _, err = cli(*words(place, server, tmp_path / "run", *more))
        return code, err

    return run


def sent(server):
    return {one.image for one in server.requests if one.image}


def files(run, *folders):
    return {hashlib.sha256(path.read_bytes()).hexdigest() for one in folders for path in (run / one).glob("*.png")}


def test_the_files_on_disk_are_sent_and_the_answers_scored(ask, place, tmp_path):
    with serving(key=KEY, delay=0.05) as server:
        code, err = ask(server, "--parallel", 2, "--price", "1000,2000", "--batch-size", 4, "--chunk-size", 4)
    assert code == 0, err
    run = read_run(tmp_path / "run")
    blank = sent(server) - files(run.path, "images", "clean")
    assert len(blank) == 1  # the one that shows whether the endpoint sees
    assert files(run.path, "images", "clean") <= sent(server)
    assert files(run.path, "images") == files(place / "made", "images")
    said = {one.question: server.answer(one)["choices"][0]["message"]["content"] for one in server.requests}
    for sample in run.samples:
        prompt = f"{sample.question}\nAnswer the question using a single word or phrase."
        assert sample.adversarial.output == said[prompt, sample.adversarial.image_sha256]
        assert sample.clean.output == said[prompt, sample.clean_sha256]
    assert server.most == 2
    assert all(one.body["temperature"] == 0 for one in server.requests)
    usage = run.settings["usage"]
    assert usage["requests"] == len(server.requests) == 2 * N + 2
    counted = [server.answer(one)["usage"] for one in server.requests]
    assert usage["prompt_tokens"] == sum(one["prompt_tokens"] for one in counted) > 2 * N * IMAGE_TOKENS
    assert usage["completion_tokens"] == 2 * N + 2
    assert usage["cost"] == pytest.approx((usage["prompt_tokens"] * 1000 + usage["completion_tokens"] * 2000) / 1e6)
    assert run.settings["model"]["endpoint"] == server.url
    assert run.settings["attack"]["threat"] == "transfer"
    assert any("dollars" in note for note in run.metrics["notes"])


def test_clean_images_alone_are_scored_too(cli, place, tmp_path):
    flags = ["--surrogate", place / "llava", "--task", "vqav2", "--data", place / "data", "--preset", "scenes"]
    with serving() as server:
        more = ["--samples", 3, "--out", tmp_path / "run"]
        code, _, err = cli("eval", "openai:seer", "--base-url", server.url, *flags, *more)
    assert code == 0, err
    assert read_run(tmp_path / "run").metrics["adversarial"] is None
    assert files(tmp_path / "run", "clean") <= sent(server)


def test_images_are_made_on_the_surrogate_where_none_are_given(cli, place, tmp_path):
    flags = ["--surrogate", place / "llava", "--task", "vqav2", "--data", place / "data", "--preset", "scenes"]
    attack = ["--attack", "embedding", "--eps", "8/255", "--steps", 2, "--threat", "transfer", "--samples", N]
    with serving() as server:
        more = [*attack, "--out", tmp_path / "run"]
        code, _, err = cli("eval", "openai:seer", "--base-url", server.url, *flags, *more)
    assert code == 0, err
    # the surrogate's own adaptive images, bit for bit
    assert files(tmp_path / "run", "images") == files(place / "made", "images")


def test_the_key_is_in_no_file_and_no_message(ask, tmp_path, place):
    log = tmp_path / "log.jsonl"
    with serving(key=KEY) as server:
        assert ask(server, "--log-json", log)[0] == 0
    with serving(key="another") as server:  # whose refusal repeats the key
        code, err = ask(server, "--out", tmp_path / "refused", "--log-json", log)
    assert code == 2
    assert "refuses the key" in err
    assert "OPENAI_API_KEY" in err
    assert KEY not in err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert log in written
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_rate_limits_lost_connections_and_half_answers_pass(ask, tmp_path):
    faults = [
        {"status": 429, "error": {"message": "slow down"}, "headers": AGAIN},
        {"status": 503, "error": {"message": "loading"}, "headers": AGAIN},
        {"cut": True},
        {"body": {"choices": []}},
        {"body": {"choices": [{"message": {"content": "re"}, "finish_reason": None}]}},
        None,
    ]
    troubled = set()

    def fault(request, before):
        if len(troubled) < 3:
            troubled.add(request.question)
        return faults[before] if request.question in troubled else None

    with serving(fault=fault) as server:
        code, err = ask(server, "--samples", N)
    assert code == 0, err
    run = read_run(tmp_path / "run")
    assert set(server.answered.values()) == {1}  # each was paid once
    assert run.settings["usage"]["sent_again"] == 5 * len(troubled) == 15


def test_what_gives_half_answers_for_ever_is_left_open_and_resumed(ask, tmp_path):
    bad = set()

    def fault(request, before):
        if request.image and len({one.image for one in server.requests}) > N:
            bad.add(request.image)
        return {"body": {"choices": []}} if request.image in bad else None

    with serving(fault=fault) as server:
        code, err = ask(server, "--parallel", 1)
        assert code == 1
        assert len(err.strip().splitlines()) == 1
        assert f"{HALVES} times a half answer" in err
        assert "--resume" in err
        once = Counter(server.answered)
        assert set(once.values()) == {0, 1}
        server.fault = lambda request, before: None
        assert ask(server, "--parallel", 1, "--resume")[0] == 0
    assert set(server.answered.values()) == {1}
    assert len(read_run(tmp_path / "run").samples) == N


@pytest.mark.slow
def test_a_kill_loses_no_answer_and_none_is_paid_twice(place, tmp_path, cli):
    out, parallel = tmp_path / "run", 2
    with serving(delay=0.1, key=KEY) as server:
        flags = [str(word) for word in words(place, server, out, "--parallel", parallel)]
        cli.done(*words(place, server, tmp_path / "whole"))
        for _ in range(3):
            server.requests.clear()
            server.answered.clear()
            command = started([*flags, "--resume"], tmp_path)
            before = len(safe(out))
            while len(safe(out)) < before + 3:
                time.sleep(0.01)
            command.kill(signal.SIGKILL)
            assert command.wait() == -signal.SIGKILL
            kept = safe(out)
            time.sleep(0.3)  # for what the server had begun
            paid = sum(server.answered.values())
            assert paid <= len(kept) - before + parallel  # what was on its way when the process died
        server.answered.clear()
        last = started([*flags, "--resume"], tmp_path)
        assert last.wait() == 0, last.err
        assert sum(server.answered.values()) == 2 * N + 2 - len(kept)
    lines = safe(out)
    assert len(set(lines)) == len(lines) == 2 * N + 2
    assert contents_of(out) == contents_of(tmp_path / "whole")


@pytest.mark.slow
def test_an_endpoint_that_reads_idempotency_keys_bills_nothing_twice_even_at_a_kill(place, tmp_path):
    out = tmp_path / "run"
    with serving(delay=0.1, key=KEY, remembers=True) as server:
        flags = [str(word) for word in words(place, server, out, "--parallel", 4, "--resume")]
        for _ in range(2):
            command, before = started(flags, tmp_path), len(safe(out))
            while len(safe(out)) < before + 3:
                time.sleep(0.01)
            command.kill(signal.SIGKILL)
            assert command.wait() == -signal.SIGKILL
        last = started(flags, tmp_path)
        assert last.wait() == 0, last.err
    seen = Counter(one.question for one in server.requests if one.image in files(out, "images", "clean"))
    assert max(seen.values()) > 1  # a kill lost answers that were on their way
    assert {server.answered[question] for question in seen} == {1}


def test_a_key_stands_for_one_request_of_one_run(ask, tmp_path):
    half, together = {"body": {"choices": []}}, ("--batch-size", N, "--chunk-size", N, "--parallel", 2 * N)
    with serving(fault=lambda request, before: None if before else half) as server:
        assert ask(server, *together)[0] == 0
        first = {one.once for one in server.requests}
        assert len(first) == len(server.requests) == 2 * (2 * N + 2)  # a half answer is asked for anew
        server.requests.clear()
        assert ask(server, *together, "--out", tmp_path / "other")[0] == 0
    assert first.isdisjoint(one.once for one in server.requests)
    later = {"status": 429, "error": {"message": "slow down"}, "headers": AGAIN}
    with serving(fault=lambda request, before: None if before else later) as server:
        assert ask(server, *together, "--out", tmp_path / "third")[0] == 0
    assert 2 * len({one.once for one in server.requests}) == len(server.requests)  # one that was put off keeps its key


def started(words, folder):
    return Command(words, folder / "logs", OPENAI_API_KEY=KEY)


def safe(out):
    """The keys of what was asked, of every whole line on disk."""
    path = out / FILE
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [found["key"] for found in map(json.loads, lines) if "key" in found]


def contents_of(out):
    """What must be equal of two runs: all but time, cost and checksums."""
    metrics = json.loads((out / "metrics.json").read_bytes())
    metrics = {**metrics, "seconds": 0, "checksum": "", "notes": [n for n in metrics["notes"] if "requests" not in n]}
    samples = [json.loads(line) | {"checksum": "", "seconds": 0} for line in (out / "samples.jsonl").open()]
    return metrics, samples, {path.name: path.read_bytes() for path in out.glob("*/*.png")}


def test_an_endpoint_that_changes_its_model_is_noticed(ask, tmp_path):
    with serving() as server:

        def fault(request, before):
            if len(server.requests) == 9:
                server.listed = [server.listed[0] | {"root": "seer-2"}]

        first, server.fault = server.listed, fault
        code, err = ask(server, "--parallel", 1)
        assert code == 2
        assert "changed its model during the run" in err
        assert len(err.strip().splitlines()) == 1
        code, err = ask(server, "--resume")
        assert code == 2
        assert "model.fingerprint was" in err
        server.listed = first
        assert ask(server, "--resume")[0] == 0
    asked = Counter(one.question for one in server.requests)
    assert max(asked.values()) == 2  # what the other model may have answered is asked again
    assert sum(count == 2 for count in asked.values()) == 2
    assert read_run(tmp_path / "run").settings["usage"]["requests"] == len(server.requests)


def test_settings_that_an_endpoint_refuses_are_left_out(ask, tmp_path):
    def fault(request, before):
        if "max_tokens" in request.body:
            text = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return {"status": 400, "error": {"message": text, "param": "max_tokens"}}
        if "temperature" in request.body:
            text = "Unsupported value: 'temperature' does not support 0."
            return {"status": 400, "error": {"message": text, "param": "temperature"}}
        return None

    with serving(fault=fault) as server:
        code, err = ask(server)
    assert code == 0, err
    assert set(server.answered.values()) == {1}
    assert any("takes no temperature" in note for note in read_run(tmp_path / "run").metrics["notes"])


def test_a_changed_answer_is_refused(ask, tmp_path):
    with serving(fault=lambda request, before: {"status": 400, "error": {"message": "no"}} if len(
        server.requests
    ) > 8 else None) as server:  # fmt: skip
        assert ask(server, "--parallel", 1)[0] == 2
        path = tmp_path / "run" / FILE
        path.write_text(path.read_text().replace('"finish":"stop"', '"finish":"length"'))
        code, err = ask(server, "--resume")
    assert code == 2
    assert f"{FILE}, line 2, was changed" in err


def refusal(status, message, **more):
    return {"fault": lambda request, before: {"status": status, "error": {"message": message, **more}}}


@pytest.mark.parametrize(
    ("server", "flags", "said"),
    [
        ({"key": "another"}, (), "refuses the key"),
        (refusal(400, "this model takes no image input"), (), "refuses the request: this model takes no image input"),
        ({"image_tokens": 0}, (), "does not see images"),
        (refusal(404, "no such model") | {"listed": [{"id": "seer-7b"}]}, (), "did you mean openai:seer-7b"),
        (refusal(429, "quota", code="insufficient_quota") | {"headers": None}, (), "quota"),
        ({}, ("--base-url", "http://me:secret@127.0.0.1/v1"), "may hold no key"),
        ({}, ("--base-url", "http://127.0.0.1/v1?key=secret"), "may hold no key"),
        ({}, ("--base-url", "127.0.0.1:8000"), "is no URL"),
        ({}, ("--base-url", "http://127.0.0.1:9/v1"), "cannot be reached"),
        ({}, ("--price", "1"), "is no IN,OUT"),
        ({}, ("--threat", "adaptive"), "no gradients, so no adaptive attack"),
        ({}, ("--tower", "x"), "--tower is for models that are opened here"),
        ({}, ("--defence", "jpeg"), "serve it with the defence jpeg inside"),
        ({}, ("--task", "imagefolder"), "another task"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line(ask, tmp_path, server, flags, said):
    headers = server.pop("headers", AGAIN)
    if headers is None:
        inner = server["fault"]
        server["fault"] = lambda request, before: inner(request, before) | {"headers": {"x_should_retry": "false"}}
    with serving(**server) as one:
        code, err = ask(one, *flags)
    assert code in (1, 2)
    assert len(err.strip().splitlines()) == 1, err
    assert said in err
    assert not (tmp_path / "run").exists()


def test_flags_of_an_api_are_refused_elsewhere(cli, place, tmp_path):
    for more, said in (
        (("tiny-llava", "--parallel", 4), "--parallel is for MODEL openai:NAME"),
        (("openai:seer",), "needs --surrogate"),
    ):
        flags = ["--task", "vqav2", "--data", place / "data", "--out", tmp_path / "run", "--preset", "scenes"]
        code, _, err = cli("eval", *more, *flags)
        assert (code, said in err) == (2, True), err
    code, _, err = cli("robustify", "openai:a/b", "--out", tmp_path / "run")
    assert code == 2
    assert "is behind an API" in err


@pytest.mark.slow
def test_a_served_export_answers_as_the_robust_model_does_here(cli, place, tmp_path):
    """`lvlm-radapt serve` over an export: the filter is inside."""
    export, made = tmp_path / "export", tmp_path / "made"
    common = ["--task", "vqav2", "--data", place / "data"]
    assert cli("robustify", "tiny-llava", "--export", "--cutoff", 12, "--out", export)[0] == 0
    attack = ["--attack", "e2e", "--steps", 4, "--eps", "16/255", "--samples", N, "--preset", "scenes"]
    assert cli("eval", export, *common, *attack, "--out", made)[0] == 0
    port = free_port()
    command = [sys.executable, "-m", "lvlm_radapt", "serve", str(export), "--port", port, "--dtype", "float32"]
    with running([*command, "--device", "cpu"], port, tmp_path / "server.log") as url:
        flags = [*common, "--surrogate", "tiny-llava", "--images-from", made, "--threat", "transfer"]
        code, _, err = cli("eval", f"openai:{export}", "--base-url", url, *flags, "--out", tmp_path / "run")
    assert code == 0, err
    run, here = read_run(tmp_path / "run"), read_run(made)
    assert [one.adversarial.output for one in run.samples] == [one.adversarial.output for one in here.samples]
    assert [one.clean.output for one in run.samples] == [one.clean.output for one in here.samples]
    bare = tmp_path / "bare"  # and not as the same weights without the filter do
    assert cli("eval", "tiny-llava", *flags, "--out", bare)[0] == 0
    undefended = read_run(bare)
    assert [one.adversarial.output for one in run.samples] != [one.adversarial.output for one in undefended.samples]


@pytest.mark.slow
def test_transformers_own_server_answers_as_the_same_weights_do_here(cli, place, tmp_path):
    """The images of a run on a filtered tiny-llava, answered by `transformers serve` over folded weights."""
    plain, made, adapter = tmp_path / "plain", tmp_path / "made", tmp_path / "adapter"
    common = ["--task", "vqav2", "--data", place / "data"]
    assert cli("robustify", "tiny-llava", "--alpha", 0, "--cutoff", 12, "--out", adapter)[0] == 0
    assert cli("robustify", adapter, "--fold", "--out", plain)[0] == 0
    attack = ["--attack", "e2e", "--steps", 4, "--eps", "16/255", "--samples", N, "--preset", "scenes"]
    assert cli("eval", adapter, *common, *attack, "--out", made)[0] == 0
    with transformers_serve(plain, tmp_path / "server.log") as url:
        flags = [*common, "--surrogate", "tiny-llava", "--images-from", made, "--threat", "transfer"]
        name = f"openai:{plain}"
        code, _, err = cli("eval", name, "--base-url", url, *flags, "--out", tmp_path / "run")
    assert code == 0, err
    run, here = read_run(tmp_path / "run"), read_run(made)
    assert [one.adversarial.output for one in run.samples] == [one.adversarial.output for one in here.samples]
    assert [one.clean.output for one in run.samples] == [one.clean.output for one in here.samples]
    assert run.settings["usage"]["prompt_tokens"] > 0
    bare = tmp_path / "bare"  # and not as the same weights without the filter do
    flags = [*common, "--images-from", made, "--threat", "transfer", "--preset", "scenes"]
    assert cli("eval", "tiny-llava", *flags, "--surrogate", "tiny-llava", "--out", bare)[0] == 0
    undefended = read_run(bare)
    assert [one.adversarial.output for one in run.samples] != [one.adversarial.output for one in undefended.samples]


def transformers_serve(folder, log):
    """The base URL of the server that ships with transformers, over the checkpoint in `folder`."""
    port = free_port()
    start = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    flags = ["serve", str(folder), "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", port]
    flags.append("--trust-remote-code")
    return running([sys.executable, "-c", start, *flags], port, log)


@contextlib.contextmanager
def running(command, port, log):
    """The base URL of a server in a process of its own, once it is well."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        until = time.monotonic() + 240
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def answers(url):
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as found:
        return found.status == 200
    return False


def test_what_cannot_be_served_is_one_line(cli, place, tmp_path):
    assert cli("robustify", place / "llava", "--out", tmp_path / "adapter")[0] == 0
    assert "is an adapter, no whole model" in cli.refused("serve", tmp_path / "adapter")[-400:]
    assert "did you mean tiny-llava" in cli.refused("serve", "tiny-lava")
    with serving() as server:
        port = server.url.split(":")[2].partition("/")[0]
        assert "choose another --port" in cli.refused("serve", place / "llava", "--port", port)
