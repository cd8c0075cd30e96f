"""The embedded models' score card and tiny-clip's training, on models whose answers are known."""

import argparse
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lvlm_radapt.embedded import scenes
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.models import LVLM, CLIPEncoder, PixelBatch
from lvlm_radapt.utils.errors import UserError
from tools.embedded import build, evaluate, train_clip
from tools.embedded.training_run import Run

COUNT = 45


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(out, count=COUNT, mixed=True)
    return out


class Knowing:
    """Knows every scene by its pixels and answers with the truth, except what `wrong` says."""

    def __init__(self, wrong: Any = None) -> None:
        self.scenes = {}
        self.wrong = wrong or (lambda scene, kind: False)
        self.batches: list[int] = []
        for i in range(COUNT):
            scene = scenes.sample_scene("test", 0, i, scenes.MIXED[i % 3])
            self.scenes[scenes.render(scene).tobytes()] = scene

    def canvas(self, image: Any) -> tuple[int, int]:
        return image.height, image.width

    def pixels(self, images: Any) -> PixelBatch:
        assert len({image.size for image in images}) == 1
        return PixelBatch(torch.zeros(len(images), 3, 1, 1), tuple({"scene": self.scenes[i.tobytes()]} for i in images))

    def generate(self, batch: PixelBatch, prompts: list[str], max_new_tokens: int) -> list[str]:
        self.batches.append(len(batch))
        answers = []
        for meta, prompt in zip(batch.meta, prompts, strict=True):
            scene = meta["scene"]
            if prompt == "Provide a short caption for this image.":
                answers.append("a pig" if self.wrong(scene, "caption") else scenes.caption(scene))
                continue
            question = next(q for q in scenes.questions(scene) if prompt.startswith(q.text))
            answers.append("nothing" if self.wrong(scene, question.kind) else question.answer)
        return answers


def test_a_knowing_model_has_a_perfect_card(folder: Path) -> None:
    model = Knowing()
    card = evaluate.evaluate_lvlm(cast(LVLM, model), folder, batch_size=16)
    assert max(model.batches) == 16
    for part in (card["all"], card["held_out"], *card["canvases"].values()):
        assert part["vqa_accuracy"] == pytest.approx(100)
        assert part["caption_exact"] == 100
        assert part["cider_ratio"] == pytest.approx(1)
        assert set(part["by_kind"]) <= set(scenes.QUESTION_TYPES)
    assert card["all"]["images"] == COUNT
    assert [part["images"] for part in card["canvases"].values()] == [COUNT // 3] * 3
    assert card["words"]["read"] == card["words"]["asked"] > 5


def test_a_card_tells_what_is_wrong_and_where(folder: Path) -> None:
    def wrong(scene: scenes.Scene, kind: str) -> bool:
        return kind == "yesno" or (kind == "caption" and scene.held_out) or scene.word == "pig"

    card = evaluate.evaluate_lvlm(cast(LVLM, Knowing(wrong)), folder)
    drawn = [scenes.sample_scene("test", 0, i, scenes.MIXED[i % 3]) for i in range(COUNT)]
    right = [not wrong(s, q.kind) for s in drawn for q in scenes.questions(s)]
    assert card["all"]["vqa_accuracy"] == pytest.approx(100 * np.mean(right))
    assert card["all"]["questions"] == len(right)
    assert card["all"]["by_kind"]["yesno"] == 0
    assert card["held_out"]["caption_exact"] == 0
    assert card["held_out"]["images"] == sum(s.held_out for s in drawn)
    exact = [not (s.held_out or s.word == "pig") for s in drawn]
    assert card["all"]["caption_exact"] == pytest.approx(100 * np.mean(exact))
    assert 0 < card["all"]["cider_ratio"] < 1
    words = {s.word for s in drawn if s.word}
    assert card["words"]["asked"] == len(words)
    assert card["words"]["read"] == len(words - {"pig"})


class KnowingEncoder:
    """Image and text embeddings that are equal exactly where the caption is."""

    def __init__(self) -> None:
        self.knowing = Knowing()

    def pixels(self, images: Any) -> Any:
        return self.knowing.pixels(images)

    def image_features(self, batch: PixelBatch) -> torch.Tensor:
        return self.text_features([scenes.caption(meta["scene"]) for meta in batch.meta])

    def text_features(self, texts: list[str]) -> torch.Tensor:
        vectors = []
        for text in texts:
            seed = [ord(c) for c in text]
            vectors.append(np.random.Generator(np.random.PCG64(seed)).normal(size=64))
        return torch.tensor(np.array(vectors))


def test_the_encoders_card(tmp_path: Path) -> None:
    write_scenes(tmp_path / "s", count=30)
    knowing = KnowingEncoder()
    for i in range(30):
        scene = scenes.sample_scene("test", 0, i)
        knowing.knowing.scenes[scenes.render(scene).tobytes()] = scene
    card = evaluate.evaluate_encoder(cast(CLIPEncoder, knowing), tmp_path / "s", batch_size=7)
    assert card["all"] == {"images": 30, "others": 100.0, "altered": 100.0}
    assert card["held_out"]["others"] == 100
    scored = evaluate.evaluate_encoder(cast(CLIPEncoder, Anything()), tmp_path / "s")
    assert scored["all"]["others"] < 40
    assert scored["all"]["altered"] < 40


class Anything(KnowingEncoder):
    """Embeddings that have nothing to do with the image."""

    def pixels(self, images: Any) -> Any:
        return len(images)

    def image_features(self, batch: Any) -> torch.Tensor:
        return torch.randn(batch, 64, dtype=torch.float64)


def test_command_line_errors_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert evaluate.main(["tiny-llava", "--weights", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


# ---------------------------------------------------------------- tiny-clip's training


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    llava, model = build.llava().eval(), build.clip()
    train_clip.lock(model, llava)
    return model, llava


def test_embeddings_are_those_of_the_whole_model(pair: tuple[Any, Any]) -> None:
    model, llava = pair
    x = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        hidden = train_clip.penultimate(model.vision_model, x)
        whole = model.vision_model(x, output_hidden_states=True)
        read = llava.model.vision_tower(x, output_hidden_states=True).hidden_states[-2]
        ours = train_clip.embed_image(model, hidden)
    assert torch.equal(hidden, read)
    torch.testing.assert_close(hidden, whole.hidden_states[-2])
    torch.testing.assert_close(ours, model.visual_projection(whole.pooler_output), atol=1e-5, rtol=1e-5)


def test_text_embeddings_do_not_depend_on_how_they_are_grouped(pair: tuple[Any, Any]) -> None:
    model, _ = pair
    tokenizer = build.clip_tokenizer()
    texts = [t for i in range(16) for t in scenes.paraphrases(scenes.sample_scene("train", 0, i))]
    assert len(texts) > train_clip.TEXTS_A_PASS
    with torch.no_grad():
        ours = train_clip.embed_texts(model, tokenizer, texts)
        for text, row in zip(texts, ours, strict=True):
            out = model.text_model(input_ids=tokenizer([text], return_tensors="pt").input_ids)
            torch.testing.assert_close(row, model.text_projection(out.pooler_output)[0], atol=1e-4, rtol=1e-4)


def test_the_lock_holds_what_llava_reads_and_no_more(pair: tuple[Any, Any]) -> None:
    model, llava = pair
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    tower = {name for name in trained if name.startswith("vision_model.")}
    assert all(".layers.5." in name or "post_layernorm" in name for name in tower)
    assert {"logit_scale", "visual_projection.weight", "text_projection.weight"} <= trained
    train_clip.check_locked(model, llava)
    with torch.no_grad():
        model.vision_model.encoder.layers[-1].mlp.fc1.bias.add_(1)  # free to move
        train_clip.check_locked(model, llava)
        bias = model.vision_model.encoder.layers[-2].mlp.fc1.bias
        bias.add_(1)
        with pytest.raises(RuntimeError, match=r"encoder\.layers\.4\.mlp\.fc1\.bias is not tiny-llava's"):
            train_clip.check_locked(model, llava)
        bias.sub_(1)


def test_contrastive_loss_by_hand() -> None:
    images, texts = torch.randn(3, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    same = torch.zeros(3, 3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    loss = train_clip.contrastive(images, texts, torch.tensor(5.0, dtype=torch.float64), same)
    expected = 0.0
    for i in range(3):
        row = {t: 5 * float(F.cosine_similarity(images[i], texts[t], 0)) for t in range(9)}
        column = {j: 5 * float(F.cosine_similarity(images[j], texts[i], 0)) for j in range(3)}
        for scores, twin in ((row, {0: 2, 2: 0}.get(i)), (column, {0: 2, 2: 0}.get(i))):
            left = [np.exp(s) for k, s in scores.items() if k != twin]
            expected -= np.log(np.exp(scores[i]) / np.sum(left)) / 6
    assert float(loss) == pytest.approx(expected)


def test_texts_of_a_step_are_true_then_false() -> None:
    batch = [scenes.sample_scene("train", 0, i) for i in range(20)]
    texts = train_clip.draw_texts(batch, np.random.default_rng(0))
    assert len(texts) == 20 * (1 + train_clip.NEGATIVES)
    canonical = 0
    for i, scene in enumerate(batch):
        truths = {scenes.caption(scene), *scenes.paraphrases(scene)}
        assert texts[i] in truths
        canonical += texts[i] == scenes.caption(scene)
        false = texts[20 + i * train_clip.NEGATIVES : 20 + (i + 1) * train_clip.NEGATIVES]
        assert not truths & set(false)
    assert 3 < canonical < 17


def _arguments(work: Path, llava: Path | None, steps: int) -> argparse.Namespace:
    return argparse.Namespace(
        name="tiny-clip", work=work, seed=0, scenes=24, batch=4, joint_steps=steps, workers=1, llava=llava
    )


def test_training_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    build.save("tiny-llava", build.llava(), tmp_path / "llava")
    whole = train_clip.train_clip(_arguments(tmp_path / "a", tmp_path / "llava", 3))

    update, done = Run.update, []

    def killed(self: Run, loss: torch.Tensor) -> None:
        update(self, loss)
        done.append(self.step)
        if self.step == 2:
            state: dict[str, Any] = {name: m.state_dict() for name, m in self.modules.items()}
            state |= {f"optimiser{i}": o.state_dict() for i, o in enumerate(self.optimisers)}
            torch.save(state | {"step": self.step}, self.path)
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train_clip.train_clip(_arguments(tmp_path / "b", tmp_path / "llava", 3))
    monkeypatch.setattr(Run, "update", update)
    resumed = train_clip.train_clip(_arguments(tmp_path / "b", tmp_path / "llava", 3))
    assert done == [1, 2]
    for (name, ours), theirs in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    saved = tmp_path / "clip"
    build.save("tiny-clip", whole.eval(), saved)
    assert json.loads((saved / "config.json").read_text())["model_type"] == "clip"


def test_without_a_llava_there_is_no_tower(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tiny-llava there: train it first"):
        train_clip.train_clip(_arguments(tmp_path, tmp_path / "nothing", 1))
