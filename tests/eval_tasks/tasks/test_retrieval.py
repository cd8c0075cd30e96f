"""Retrieval: ranks and recalls counted by hand, the contrastive loss, and runs on the embedded CLIP."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attacks import contrastive_loss
from eval_tasks.api import Evaluation
from eval_tasks.audit import Audit
from eval_tasks.data import Sample, load_task, open_image
from eval_tasks.report.build_table import tables
from eval_tasks.report.page import write_report
from eval_tasks.report.retrieval_table import recall_markdown, recall_rows
from eval_tasks.run.records import Run, RunFolder, read_run
from eval_tasks.tasks.retrieval_corpus import CaptionSpace, RetrievalCorpus, caption_ranks, image_ranks, recalls
from lvlm_radapt import RAdaptConfig, load_encoder, robustify
from lvlm_radapt.embedded.dataset import CLASSES
from lvlm_radapt.loading.locate import embedded_models
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints
from tests.helpers.cli import Cli
from tests.helpers.data_sets import scenes_folder
from tests.helpers.evaluations import evaluation, score


def sample(own: str, *captions: str) -> Sample:
    return Sample(own, Path(f"{own}.png"), None, captions)


# --- the gallery and its ranks


def test_a_gallery() -> None:
    gallery = RetrievalCorpus([sample("a", "x", "y", "x"), sample("b", "y", "z", ""), sample("c", "w")])
    assert (gallery.texts, gallery.count.tolist(), gallery.captions) == (["x", "y", "z", "w"], [2, 2, 1, 1], 6)
    assert gallery.own(["b", "a"]).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert gallery.belongs("y", "a")
    assert gallery.belongs("y", "b")
    assert not gallery.belongs("w", "a")
    assert not gallery.belongs("", "b")
    with pytest.raises(UserError, match="retrieval among 2 samples: no caption there is wrong for sample a"):
        RetrievalCorpus([sample("a", "x", "y"), sample("b", "x")])


NAN = math.nan
# three images, texts: A of image 0, B of image 0 and 1, C of image 1, D (twice) of image 2
OWN = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]).bool()
COUNT = torch.tensor([1, 2, 1, 2])
SIMILAR = torch.tensor([[0.9, 0.1, 0.8, 0.2], [0.5, 0.3, 0.2, 0.4], [0.7, 0.6, 0.1, 0.2]])


def test_ranks_by_hand() -> None:
    # image 0: A is nearest. image 1: its best is B at .3, before it A once and D twice. image 2: D at .2, before it A
    # once and B twice
    assert caption_ranks(SIMILAR, OWN, COUNT) == [1, 4, 4]
    # A: its image 0 first. B: best of its own is .3 (image 1), image 2 is nearer. C: image 1 has .2, image 0 is nearer,
    # image 2 not. D: image 2 has .2, image 1 is nearer and image 0 as near
    assert image_ranks(SIMILAR, OWN).tolist() == [1, 2, 2, 3]


def test_recalls_by_hand() -> None:
    found = recalls(SIMILAR, OWN, COUNT)
    assert found["image_to_text"]["recall@1"] == pytest.approx(100 / 3)
    assert found["image_to_text"]["recall@5"] == 100
    # of six captions A alone is found first
    assert found["text_to_image"]["recall@1"] == pytest.approx(100 / 6)
    assert found["text_to_image"]["recall@5"] == found["text_to_image"]["recall@10"] == 100
    for direction in found.values():
        low, high = direction["ci95@1"]
        assert 0 <= low <= direction["recall@1"] <= high <= 100


def test_who_tells_nothing_retrieves_nothing() -> None:
    for value in (0.3, NAN):
        same = torch.full((3, 4), value)
        found = recalls(same, OWN, COUNT)
        assert [found[d]["recall@1"] for d in found] == [0, 0]
    one = SIMILAR.clone()
    one[0] = NAN  # image 0 is lost, and stands before all images for the texts that are not its own
    assert caption_ranks(one, OWN, COUNT)[0] == 4
    assert image_ranks(one, OWN).tolist()[2:] == [2, 3]
    one = SIMILAR.clone()
    one[0, 2] = 0.9  # as near as its own
    assert caption_ranks(one, OWN, COUNT)[0] == 2


@hypothesis.settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10**6), images=st.integers(2, 14), captions=st.integers(1, 4))
def test_recalls_are_those_of_a_plain_count(seed: int, images: int, captions: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    texts = images * captions
    similarity = torch.randperm(images * texts, generator=generator).view(images, texts).double()  # no two alike
    own = torch.zeros(images, texts, dtype=torch.bool)
    for text in range(texts):
        own[text // captions, text] = True
    found = recalls(similarity, own, torch.ones(texts, dtype=torch.int64))
    for k in (1, 5, 10):
        hits = sum(
            any(text // captions == i for text in sorted(range(texts), key=lambda t: -similarity[i, t])[:k])
            for i in range(images)
        )
        assert found["image_to_text"][f"recall@{k}"] == pytest.approx(100 * hits / images, abs=1e-4)
        hits = sum(
            text // captions in sorted(range(images), key=lambda i: -similarity[i, text])[:k] for text in range(texts)
        )
        assert found["text_to_image"][f"recall@{k}"] == pytest.approx(100 * hits / texts, abs=1e-4)


# --- the loss


def test_the_contrastive_loss_by_hand_and_against_cross_entropy() -> None:
    z = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    own = torch.tensor([[True, False, False], [False, True, True]])
    count = torch.tensor([1, 2, 1])
    loss = contrastive_loss(lambda x, index: z[index], own, count)
    # the wrong ones of row 0: B twice and C once
    assert loss(z, [0]).tolist() == pytest.approx([math.log((2 * math.e + 1) / math.exp(2))])
    assert loss(z, [1, 0])[0].item() == pytest.approx(-math.log(2 * math.exp(3) + math.exp(1)))
    # with one caption of its own, the softplus is the cross entropy over the gallery as it stands there, B twice
    repeated = torch.tensor([[2.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(repeated, torch.tensor([0]))
    torch.testing.assert_close(torch.nn.functional.softplus(loss(z, [0]))[0], expected)


def test_its_gradient() -> None:
    weights = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = torch.tensor([[True, False, True, False, False], [False, True, False, False, False]])
    loss = contrastive_loss(lambda x, index: torch.tanh(x.flatten(1)) @ weights, own, torch.tensor([1, 2, 1, 1, 3]))
    x = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, [1, 0]), x)
    # where the own caption is certain, float32 cross entropy and its gradient are 0, and the loss still climbs
    sure = torch.tensor([[150.0, 0.0]], requires_grad=True)
    plain = torch.nn.functional.cross_entropy(sure, torch.tensor([0]))
    assert torch.autograd.grad(plain, sure)[0].abs().max() == 0
    odds = contrastive_loss(lambda x, index: x, torch.tensor([[True, False]]), torch.ones(2))(sure, [0])
    assert torch.autograd.grad(odds.sum(), sure)[0].tolist() == [[-1, 1]]


@pytest.mark.parametrize(
    ("own", "count", "words"),
    [
        (torch.ones(2, 3), torch.ones(3), "own must be bool"),
        (torch.ones(2, 3).bool(), torch.ones(2), "own must be bool"),
        (torch.ones(2, 3).bool(), torch.ones(3), "one that is not"),
        (torch.zeros(2, 3).bool(), torch.ones(3), "a text of its own"),
    ],
)
def test_wrong_galleries(own: Tensor, count: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        contrastive_loss(lambda x, index: x, own, count)
    own = torch.tensor([[True, False]])
    with pytest.raises(ValueError, match="logits must have shape"):
        contrastive_loss(lambda x, index: x, own, torch.ones(2))(torch.ones(1, 3), [0])


# --- runs


folder = scenes_folder(count=10, per_class=1)


def settings(folder: Path, attack: str = "contrastive", threat: str | None = None, **more: Any) -> Evaluation:
    sizes = {"samples": 8, "chunk_size": 3, "batch_size": 4}
    return evaluation("coco-retrieval", folder, attack, eps="8/255", threat=threat, steps=3, seed=1, **sizes | more)


@pytest.fixture(scope="module")
def stock(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return score(load_encoder("tiny-clip"), settings(folder), tmp_path_factory.mktemp("runs") / "stock")


def test_a_run_says_what_the_images_on_disk_retrieve(stock: Run, folder: Path) -> None:
    model = load_encoder("tiny-clip")
    samples = {s.id: s for s in load_task("coco-retrieval", folder)}
    chosen = [samples[r.id] for r in stock.samples]
    texts = [(s.id, caption) for s in chosen for caption in s.references]
    embedded = torch.nn.functional.normalize(model.text_features([text for _, text in texts]), dim=-1)
    for part in ("clean", "adversarial"):
        batch = model.pixels([open_image(s.image) for s in chosen])
        if part == "adversarial":
            made = [RunFolder(stock.path).load_image(s.id) for s in chosen]
            batch = batch.replace(torch.stack(made).float() / 255)
        images = torch.nn.functional.normalize(model.image_features(batch), dim=-1)
        nearest = (images @ embedded.T).argmax(dim=1)
        hits = [texts[int(n)][1] in s.references for n, s in zip(nearest, chosen, strict=True)]
        records = [getattr(r, part) for r in stock.samples]
        assert [r.score for r in records] == [100.0 * hit for hit in hits]
        assert [r.output for r in records] == [texts[int(n)][1] for n in nearest]
        found = stock.metrics["retrieval"][part]
        assert stock.metrics[part]["recall@1"] == pytest.approx(found["image_to_text"]["recall@1"])
        assert stock.metrics[part]["recall@1"] == pytest.approx(100 * sum(hits) / len(hits))
        mine = [
            any(chosen[int(i)].references.count(text) for i in row.topk(1).indices)
            for (_, text), row in zip(texts, embedded @ images.T, strict=True)
        ]
        assert found["text_to_image"]["recall@1"] == pytest.approx(100 * sum(mine) / len(mine))
    assert stock.metrics["metric"] == "recall@1"
    assert stock.metrics["adversarial"]["recall@1"] < stock.metrics["clean"]["recall@1"]
    assert stock.settings["gallery"]["images"] == 8
    assert stock.settings["gallery"]["captions"] == len(texts)
    assert stock.settings["attack"]["loss"] == "contrastive"
    assert any(note.startswith("the gallery is the 8 evaluated images") for note in stock.metrics["notes"])
    assert any(note.startswith("text to image, recall@1 / @5 / @10: clean") for note in stock.metrics["notes"])
    assert Audit.from_dict(stock.metrics["audit"]).verdict != "fail"


def test_chunks_do_not_change_the_result(stock: Run, folder: Path, tmp_path: Path) -> None:
    other = score(load_encoder("tiny-clip"), settings(folder, chunk_size=8, batch_size=8), tmp_path / "run")
    assert other.settings["gallery"] == stock.settings["gallery"]
    assert [r.clean for r in other.samples] == [r.clean for r in stock.samples]
    assert other.metrics["retrieval"]["clean"] == stock.metrics["retrieval"]["clean"]
    for mine, theirs in zip(other.samples, stock.samples, strict=True):
        assert mine.adversarial is not None
        assert theirs.adversarial is not None
        assert mine.adversarial.loss == pytest.approx(theirs.adversarial.loss, abs=0.3)


def test_the_attack_raises_its_loss_and_beats_noise(stock: Run, folder: Path, tmp_path: Path) -> None:
    noise = score(load_encoder("tiny-clip"), settings(folder, "noise"), tmp_path / "noise")
    assert stock.metrics["adversarial"]["recall@1"] < noise.metrics["adversarial"]["recall@1"]
    gallery = RetrievalCorpus([s for s in load_task("coco-retrieval", folder) if s.id in {r.id for r in stock.samples}])
    space = CaptionSpace(load_encoder("tiny-clip"), gallery)
    samples = {s.id: s for s in load_task("coco-retrieval", folder)}
    batch = space.encoder.pixels([open_image(samples[r.id].image) for r in stock.samples])
    own = gallery.own([r.id for r in stock.samples])
    loss = contrastive_loss(lambda x, index: space.logits(batch.replace(x)), own, gallery.count)
    with torch.no_grad():
        clean = loss(batch.x, [*range(8)])
    raised = [r.adversarial.loss for r in stock.samples if r.adversarial is not None]
    assert all(after > before for after, before in zip(raised, clean.tolist(), strict=True))
    assert max(r.adversarial.linf for r in stock.samples if r.adversarial) <= 8 / 255 + 1e-6


def test_transfer_saved_images_and_the_report(stock: Run, folder: Path, tmp_path: Path) -> None:
    protected = robustify(load_encoder("tiny-clip"), RAdaptConfig())
    transfer = score(protected, settings(folder, threat="transfer"), tmp_path / "transfer")
    # crafted on the undefended model with the same noise: the very images of the stock model's run
    for record in transfer.samples:
        assert torch.equal(RunFolder(transfer.path).load_image(record.id), RunFolder(stock.path).load_image(record.id))
    again = score(
        protected, settings(folder, threat="transfer"), tmp_path / "again", surrogate=load_encoder("tiny-clip")
    )
    assert [r.adversarial.score for r in again.samples] == [r.adversarial.score for r in transfer.samples]
    adaptive = score(protected, settings(folder), tmp_path / "adaptive")
    reused = score(protected, settings(folder, threat="transfer"), tmp_path / "reused", images_from=transfer.path)
    assert reused.metrics["retrieval"] == transfer.metrics["retrieval"]
    rows = recall_rows([stock, transfer, adaptive])
    assert [row.images.partition(",")[0] for row in rows] == [
        "clean", "contrastive (adaptive)", "clean", "contrastive (transfer)", "contrastive (adaptive)",
    ]  # fmt: skip
    first = stock.metrics["retrieval"]["adversarial"]["text_to_image"]["recall@10"]
    assert rows[1].cells[5][0] == first
    assert f"{first:.1f} [" in recall_markdown(rows)
    edited = {**stock.metrics["retrieval"]["clean"]["image_to_text"], "recall@1": 99.9}
    said = {"clean": {**stock.metrics["retrieval"]["clean"], "image_to_text": edited}}
    told = replace(stock, metrics=stock.metrics | {"retrieval": stock.metrics["retrieval"] | said})
    assert recall_rows([told]) == recall_rows([stock])
    table = tables([told])["scenes"]
    assert any(note.startswith("metrics.json says 99.9 for recall@1 of captions") for note in table.rows[0].notes)
    assert any(remark.startswith("Of the recalls, samples.jsonl holds recall@1") for remark in table.notes)
    page = write_report([stock, transfer, adaptive], tmp_path / "report.html").read_text()
    assert "Retrieval, both directions" in page
    assert "image to text, recall@1, %" in page
    smaller = settings(folder, threat="transfer", samples=7)
    with pytest.raises(UserError, match="attacked other samples"):
        score(protected, smaller, tmp_path / "no", images_from=transfer.path)


def bare_tower(path: Path) -> Path:
    """tiny-clip's vision side alone, with its projection."""
    source = embedded_models()["tiny-clip"]
    whole = transformers.CLIPModel.from_pretrained(source)
    config = whole.config.vision_config
    config.projection_dim = whole.config.projection_dim
    tower = transformers.CLIPVisionModelWithProjection(config)
    tower.load_state_dict(
        {k: v for k, v in whole.state_dict().items() if k.startswith(("vision_model.", "visual_projection."))}
    )
    tower.save_pretrained(path)
    transformers.CLIPImageProcessorPil.from_pretrained(source).save_pretrained(path)
    return path


def test_a_bare_tower_is_asked_by_another_s_texts(
    stock: Run, folder: Path, tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    tower = bare_tower(tmp_path / "tower")
    run = score(load_encoder(tower), settings(folder), tmp_path / "run", texts=load_encoder("tiny-clip"))
    assert run.settings["texts"] == "tiny-clip"
    assert run.metrics["retrieval"]["clean"] == stock.metrics["retrieval"]["clean"]
    assert [r.clean.output for r in run.samples] == [r.clean.output for r in stock.samples]
    assert "the texts are read by tiny-clip" in run.metrics["notes"]
    foreign = tiny_checkpoints.save_clip(tmp_path / "foreign")
    bare = tiny_checkpoints.save_vision(tmp_path / "bare", "clip")
    classes = ["--task", "imagefolder", "--data", folder / CLASSES, "--samples", 8]
    captions = ["--task", "coco-retrieval", "--data", folder, "--samples", 8]
    capsys.readouterr()  # what saving has printed
    for task, flags, words in (
        (classes, [], "tower is a bare vision tower: for texts name the CLIP"),
        (captions, [], "tower is a bare vision tower: for texts name the CLIP"),
        (classes, ["--texts", foreign], "do not belong together"),
        (captions, ["--texts", foreign], "do not belong together"),
        (captions, ["--texts", bare], "is a bare vision tower itself"),
        (classes, ["--texts", "tiny-llava"], "is no image-text encoder"),
    ):
        code, out, err = cli("eval", tower, *task, *flags, "--preset", "scenes", "--out", tmp_path / "no")
        assert (code, out, len(err.strip().splitlines())) == (2, "", 1), err
        assert words in err
        assert not (tmp_path / "no").exists()
    own = ["--texts", "tiny-clip", "--preset", "scenes", "--out"]
    cli.done("eval", tower, *classes, *own, tmp_path / "scored")
    cli.done("eval", "tiny-clip", *classes, "--out", tmp_path / "whole")
    scored, whole = read_run(tmp_path / "scored"), read_run(tmp_path / "whole")
    assert [r.clean for r in scored.samples] == [r.clean for r in whole.samples]


def test_the_other_layout_and_the_audit(folder: Path, tmp_path: Path, cli: Cli) -> None:
    scenes = load_task("coco-retrieval", folder)[:4]
    (tmp_path / "flickr" / "images").mkdir(parents=True)
    rows = []
    for s in scenes:
        open_image(s.image).save(tmp_path / "flickr" / "images" / f"{s.id}.png")
        rows.append({"filename": f"{s.id}.png", "split": "test", "sentences": [{"raw": text} for text in s.references]})
    (tmp_path / "flickr" / "dataset_flickr30k.json").write_text(json.dumps({"images": rows}))
    assert [s.references for s in load_task("flickr30k-retrieval", tmp_path / "flickr")] == [
        s.references for s in scenes
    ]
    save_adapter(robustify(load_encoder("tiny-clip"), RAdaptConfig()), tmp_path / "clip-r")
    common = ["--task", "flickr30k-retrieval", "--data", tmp_path / "flickr", "--steps", 2, "--samples", 2]
    out = cli.done("eval", tmp_path / "clip-r", *common, "--attack", "embedding", "--out", tmp_path / "run")
    assert "text to image" in out
    assert "R@10, %" in out
    cli.done("audit", tmp_path / "clip-r", *common, "--attack", "contrastive", "--out", tmp_path / "audit")
    checks = json.loads((tmp_path / "audit" / "audit.json").read_text())["audit"]
    assert "gradient accuracy" in json.dumps(checks)
    assert "fail" not in {finding["verdict"] for finding in checks["findings"]}


MISTAKES = {
    "an attack on texts": (["tiny-clip"], {"--attack": "e2e"}, "use contrastive, embedding or noise"),
    "an attack on classes": (["tiny-clip"], {"--attack": "apgd-ce"}, "use contrastive, embedding or noise"),
    "a model that speaks": (["tiny-llava"], {}, "--task coco-retrieval is for image encoders: tiny-llava answers"),
    "one sample": (["tiny-clip"], {"--samples": "1"}, "take more --samples"),
    "no twin": (["tiny-clip"], {"--threat": "transfer"}, "no undefended model"),
    "a surrogate that speaks": (
        ["tiny-clip"], {"--threat": "transfer", "--surrogate": "tiny-llava"}, "answers in texts: use an image encoder"
    ),
    "captions of a classifier": (
        ["tiny-clip"],
        {"--task": "imagefolder", "--data": "classes"},
        "--attack contrastive is for image encoders and retrieval",
    ),
    "captions of a language model": (["tiny-llava"], {"--task": "coco"}, "is for image encoders and retrieval tasks"),
    "texts of a language model": (
        ["tiny-llava"], {"--task": "coco", "--texts": "tiny-clip", "--attack": "e2e"}, "--texts is for image encoders"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, cli: Cli, tmp_path: Path, folder: Path) -> None:
    command, changed, words = MISTAKES[name]
    flags = {"--task": "coco-retrieval", "--data": str(folder), "--attack": "contrastive", "--samples": "4"}
    flags |= {key: str(folder / CLASSES) if value == "classes" else value for key, value in changed.items()}
    given = [part for pair in flags.items() for part in pair]
    assert words in cli.refused("eval", *command, *given, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_encoder_s_texts_are_asked_in_batches() -> None:
    model = load_encoder("tiny-clip")
    texts = [f"a {colour} circle {n}" for n in range(150) for colour in ("red", "blue")]
    space = CaptionSpace(model, RetrievalCorpus([sample(str(n), text) for n, text in enumerate(texts)]))
    expected = torch.nn.functional.normalize(model.text_features(texts), dim=-1)
    torch.testing.assert_close(space.texts, expected, atol=1e-5, rtol=1e-5)
