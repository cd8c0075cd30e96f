"""Files of a checkpoint that are damaged or need more than is installed: one line that names file or package."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eval_tasks.api import run_evaluation
from lvlm_radapt import load_encoder, load_model
from lvlm_radapt.embedded.dataset import write_scenes
from lvlm_radapt.utils.errors import UserError, first_sentence
from tests.helpers import original_llava, released, tiny_checkpoints
from tests.helpers.evaluations import evaluation
from tests.helpers.failures import one_line, quiet

EXTRA = r"needs two packages, sentencepiece and protobuf: pip install 'lvlm-radapt\[original\]'"


def opened_without_sentencepiece(folder: Path) -> str:
    """What robustify says of the folder in a process that cannot import sentencepiece, installed or not."""
    code = (
        "import sys; sys.modules['sentencepiece'] = None; "
        "sys.argv = ['lvlm-radapt', 'robustify', *sys.argv[1:]]; from lvlm_radapt.cli import main; main()"
    )
    words = [sys.executable, "-c", code, str(folder), "--out", str(folder.parent / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2, done.stderr
    return done.stderr


def released_siglip(folder: Path) -> Path:
    """Released SigLIPs name a class that reads spiece.model alone."""
    tiny_checkpoints.save_siglip(folder)
    released.merge(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    (folder / "spiece.model").write_bytes(b"a SentencePiece model")
    return folder


def test_spiece_model_alone_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = released_siglip(tmp_path / "siglip")
    (folder / "tokenizer.json").unlink()
    monkeypatch.setattr("lvlm_radapt.loading.tokenizer.is_sentencepiece_available", lambda: False)
    with one_line(EXTRA):
        load_encoder(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_a_siglip_tokenizer_names_the_extra(kept: bool, tmp_path: Path) -> None:
    """tokenizer.json beside it or not."""
    folder = released_siglip(tmp_path / "siglip")
    if not kept:
        (folder / "tokenizer.json").unlink()
    # transformers warns of the tiny config's token ids, so that this is not the only line
    assert re.search(EXTRA, opened_without_sentencepiece(folder))


@pytest.mark.slow
@pytest.mark.parametrize("original", [True, False])
def test_so_does_a_folder_with_tokenizer_model_alone(original: bool, tmp_path: Path) -> None:
    if original:
        folder = original_llava.write_original(tmp_path, original_llava.stock_llava(), tower=True)
    else:
        folder = tiny_checkpoints.save_llava(tmp_path / "llava")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"a SentencePiece model")
    released.merge(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    assert re.fullmatch(f".*{EXTRA}\n", opened_without_sentencepiece(folder))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("\nA needs B. Check out the instructions on the\npage of its repo", "A needs B"),
        ("one line. It ends here.", "one line. It ends here"),
        ("Errors were:\nno such key", "Errors were: no such key"),
        ("shape [2. 3]\nand more", "shape [2. 3]"),
    ],
)
def test_no_sentence_of_a_library_is_cut(said: str, kept: str) -> None:
    assert first_sentence(ValueError(said)) == kept


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("content", [b"", None])
def test_a_truncated_shard_is_named(safe: bool, content: bytes | None, tmp_path: Path) -> None:
    folder = tiny_checkpoints.save_llava(tmp_path / "llava")
    weights = {key: value.clone() for key, value in load_model(folder).hf.state_dict().items()}
    (folder / "model.safetensors").unlink()
    original_llava.write_shards(folder, weights, safe=safe, shards=3)
    with quiet():
        load_model(folder)
    end = "safetensors" if safe else "bin"
    shard = next(folder.glob(f"*-00002-of-00003.{end}"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with one_line(rf"{shard.name} is cut short or damaged: download it again"):
        load_model(folder)


def test_one_caption_is_refused_before_a_model_is_opened(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", count=3)

    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was opened")

    settings = evaluation("coco", tmp_path / "scenes", samples=1, seed=0)
    with pytest.raises(UserError, match="CIDEr needs at least two images, got 1"):
        run_evaluation(
            "tiny-llava", settings, tmp_path / "run", announce=lambda *_: lambda *_: None, open_model=opened,
            dtype=torch.float32,
        )  # fmt: skip
