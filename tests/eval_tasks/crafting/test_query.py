"""Black-box search on what a model answers, with a budget of queries."""

from functools import partial

import pytest

from eval_tasks.crafting.query import Query, likeness
from eval_tasks.run.records import read_run
from lvlm_radapt.models.base import LVLM
from tests.helpers.endpoint_server import serving

N, QUERIES = 2, 12


@pytest.fixture
def score(score):
    return partial(score, "--attack", "query", "--samples", N, "--eps", "32/255")


def test_texts_are_alike_by_their_characters():
    assert likeness("Red", "red") == 1
    assert likeness("", "red") == 0
    assert likeness("red", "blue") == pytest.approx(2 / 7)  # they share an e


@pytest.mark.parametrize("search", ["random-search", "spsa"])
def test_an_endpoint_is_asked_no_more_than_the_budget_and_nothing_twice(score, place, tmp_path, search):
    with serving() as server:
        flags = ["--base-url", server.url, "--surrogate", place / "llava"]
        flags += ["--attack-set", f"queries={QUERIES}", "--attack-set", f"search={search}"]
        code, _, err = score(*flags, model="openai:seer")
    assert code == 0, err
    run = read_run(tmp_path / "run")
    assert set(server.answered.values()) == {1}
    assert len(server.requests) <= 2 + N * (QUERIES + 1)  # the probe, the queries, the clean image's answer among them
    assert len(server.requests) > N * 5
    assert run.settings["attack"]["queries"] == QUERIES
    assert run.settings["attack"]["surrogate"] is None
    assert run.metrics["threat"] == "adaptive"
    assert "audit" not in run.metrics
    assert all(one.adversarial.linf <= 32 / 255 + 1e-6 for one in run.samples)
    for one in run.samples:  # no loss is lower than the clean image's
        clean = -one.clean.score / 100 + 1 - likeness(one.clean.output, one.references[0])
        assert one.adversarial.loss >= clean - 1e-6


def test_a_resumed_search_pays_for_no_query_again(score, place, tmp_path):
    flags = ["--surrogate", place / "llava", "--attack-set", f"queries={QUERIES}", "--chunk-size", 1, "--parallel", 1]

    def fault(request, before):
        return {"status": 400, "error": {"message": "stop here"}} if len(server.requests) == 9 else None

    with serving(fault=fault) as server:
        flags += ["--base-url", server.url]
        assert score(*flags, model="openai:seer")[0] == 2
        code, _, err = score(*flags, "--resume", model="openai:seer")
        assert code == 0, err
    assert set(server.answered.values()) == {1}


def test_a_model_that_runs_here_may_tell_its_loss_and_gives_no_gradient(score, place, tmp_path, monkeypatch):
    whole, craft, crafting = LVLM.loss, Query.craft, []

    def crafted(self, *words):
        crafting.append(True)
        try:
            return craft(self, *words)
        finally:
            crafting.pop()

    def loss(self, batch, *more):
        assert not (crafting and batch.x.requires_grad)  # the audit after it may ask for a gradient
        return whole(self, batch, *more)

    monkeypatch.setattr(Query, "craft", crafted)
    monkeypatch.setattr(LVLM, "loss", loss)
    code, _, err = score("--attack-set", "queries=8", "--attack-set", "sees=loss")
    assert code == 0, err
    assert all(one.adversarial.loss > 0 for one in read_run(tmp_path / "run").samples)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--threat", "transfer", "--surrogate", "tiny-qwen"), "asks the attacked model itself"),
        (("--attack-set", "queries=1"), "queries"),
        (("--attack-set", "search=spsa", "--attack-set", "queries=5"), "needs 11 queries or more"),
        (("--steps", 3), "--steps is not for --attack query"),
    ],
)
def test_what_makes_no_sense_is_refused(score, place, tmp_path, flags, said):
    code, _, err = score(*flags)
    assert code == 2
    assert said in err
    assert not (tmp_path / "run").exists()
