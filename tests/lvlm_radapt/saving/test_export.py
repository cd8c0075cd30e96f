"""Exported and folded folders: complete models that need this package no more, and never come back unprotected."""

from __future__ import annotations

import inspect
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from lvlm_radapt import RAdaptConfig, inject, load_model, robustify
from lvlm_radapt.cli import default_preset
from lvlm_radapt.defences.radapt import modules
from lvlm_radapt.defences.radapt.anchor import Anchor
from lvlm_radapt.defences.radapt.hooks import injected_anchor
from lvlm_radapt.defences.radapt.modules import GaussianFilter
from lvlm_radapt.loading.export_files import is_export
from lvlm_radapt.models import LVLM
from lvlm_radapt.saving import filter_template
from lvlm_radapt.saving.adapter import save_adapter
from lvlm_radapt.saving.export import export_model
from lvlm_radapt.saving.fold import fold_model
from lvlm_radapt.saving.plain_weights import torchvision_user
from lvlm_radapt.towers.qwen import images_to_rows
from lvlm_radapt.utils.errors import UserError
from tests.helpers import tiny_checkpoints
from tests.helpers.cli import Cli
from tests.helpers.failures import one_line, quiet
from tests.helpers.families import FAMILIES, FEW
from tests.helpers.slow import slow

PROMPT, TARGET = "what is this ?", "a pig"
CONFIG = RAdaptConfig(cutoff=30.0, alpha=0.7)
PROCESSORS = {name: family.processor for name, family in FAMILIES.items() if family.processor}

# Runs where this package cannot be imported. argv: jobs.json, a list of {folder, inputs, out, ...}.
ELSEWHERE = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lvlm_radapt", "eval_tasks", "attacks"):
            raise ImportError(f"No module named {name!r} (blocked)")

sys.meta_path.insert(0, Blocker())
import torch, transformers
from PIL import Image

def outcome(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"

def run(job):
    folder, stock = job["folder"], getattr(transformers, job["stock"])
    auto = transformers.AutoModelForImageTextToText
    opened = {"trust_remote_code": True, **({"dtype": job["dtype"]} if job["dtype"] else {})}
    model = auto.from_pretrained(folder, **opened)
    inputs = torch.load(job["inputs"])
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    answer = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    anchor = getattr(model, "radapt_mix", None)
    headless = transformers.AutoModel.from_pretrained(folder, **opened)
    with torch.no_grad():
        hidden = headless.eval()(**inputs).last_hidden_state
        scores = model.get_output_embeddings()(hidden)
    bound = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    result = {"headless": scores if bound is None else torch.tanh(scores / bound) * bound}
    parameters = dict(headless.named_parameters())
    if anchor is not None:
        torch.testing.assert_close(parameters["radapt_mix.anchor"].data, anchor.anchor, rtol=0, atol=0, equal_nan=True)
    patches = headless.get_submodule(headless.config.radapt["patches"]["module"].removeprefix("model."))
    assert not isinstance(patches, torch.nn.Conv2d | torch.nn.Conv3d)
    result |= {"logits": logits, "answer": answer, "anchor": None if anchor is None else anchor.anchor.dtype}
    four, eight = (transformers.BitsAndBytesConfig(
        **{f"load_in_{bits}bit": True}, llm_int8_skip_modules=job["kept"]) for bits in (4, 8))
    if job["refusals"]:
        result["refusals"] = {
            "stock": outcome(lambda: stock.from_pretrained(folder)),
            "stock, stock config": outcome(lambda: stock.from_pretrained(folder, config=job["base"])),
            "stock, bfloat16": outcome(lambda: stock.from_pretrained(folder, dtype=torch.bfloat16)),
            "stock, 4 bits": outcome(lambda: stock.from_pretrained(folder, quantization_config=four)),
            "stock, 8 bits": outcome(lambda: stock.from_pretrained(folder, quantization_config=eight)),
            "stock, stock config, 4 bits": outcome(
                lambda: stock.from_pretrained(folder, config=job["base"], quantization_config=four)),
            "inner model": outcome(lambda: getattr(transformers, job["inner"]).from_pretrained(folder)),
            "no trust": outcome(lambda: auto.from_pretrained(folder, trust_remote_code=False)),
            "trust not asked": outcome(lambda: auto.from_pretrained(folder)),
            "AutoModel": outcome(lambda: transformers.AutoModel.from_pretrained(folder)),
            "4 bits, trust not asked": outcome(lambda: auto.from_pretrained(folder, quantization_config=four)),
        }
        small = auto.from_pretrained(folder, trust_remote_code=True, quantization_config=eight)
        with torch.no_grad():
            result["8 bits"] = small.eval()(**inputs).logits
        if anchor is not None:
            assert torch.equal(small.radapt_mix.anchor, anchor.anchor)
        again = folder + "-again"
        model.save_pretrained(again)
        with torch.no_grad():
            back = auto.from_pretrained(again, trust_remote_code=True).eval()
            result["again"] = back(**inputs).logits
        result["refusals again"] = [outcome(lambda: stock.from_pretrained(again, **given)) for given in (
            {}, {"config": job["base"]}, {"dtype": torch.bfloat16})]
    if job["processor"]:
        image, text = Image.open(job["image"]), job["text"]
        if job["processor"] == "AutoProcessor":
            result["inputs"] = dict(transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)(
                images=[image], text=[text], return_tensors="pt"))
        else:
            kind = json.load(open(folder + "/preprocessor_config.json"))["image_processor_type"]
            images = getattr(transformers, kind).from_pretrained(folder)(
                images=[image], return_tensors="pt", **job["processing"])
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
            result["inputs"] = {"pixel_values": images["pixel_values"]}
            result["template"] = tokenizer.chat_template
    torch.save(result, job["out"])

for job in json.load(open(sys.argv[1])):
    run(job)
assert not [m for m in sys.modules if m.partition(".")[0] in ("lvlm_radapt", "eval_tasks", "attacks")]
"""


def _image(height: int = 84, width: int = 56, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Variant:
    """What is exported and how it is opened. opened: a dtype's name, or empty for the stored one."""

    family: str
    config: RAdaptConfig = CONFIG
    dtype: torch.dtype = torch.float32
    shards: int | str = "5GB"
    opened: str = ""


VARIANTS = {
    **{name: Variant(name) for name in FAMILIES},
    "all set": Variant(
        "qwen2.5", RAdaptConfig(cutoff=20, cutoff_unit="image", boundary="periodic", alpha=-0.3, mix="add")
    ),
    "filter alone": Variant("llava", RAdaptConfig(alpha=0)),
    "anchor alone": Variant("llava", RAdaptConfig(cutoff=None)),
    "sharded": Variant("llava", shards=100_000),
    "bfloat16": Variant("qwen2.5", dtype=torch.bfloat16),
    "float16": Variant("llava", dtype=torch.float16),
    "float32 opened in bfloat16": Variant("llava", opened="bfloat16"),
}


@dataclass(frozen=True)
class Exported:
    """A model in this process, its folder, and what another process without this package made of the folder."""

    variant: Variant
    ours: LVLM
    base: Path
    folder: Path
    inputs: dict[str, torch.Tensor]
    job: dict[str, Any]
    elsewhere: dict[str, Any]


# of these the fast tests try every way in which the defence could be lost
CORE = ("llava", "qwen2.5", "filter alone")


def opened_elsewhere(root: Path, jobs: list[dict[str, Any]]) -> None:
    """Do the jobs in a process of its own, without this package."""
    (root / "jobs.json").write_text(json.dumps(jobs))
    (root / "elsewhere").mkdir(exist_ok=True)
    (root / "elsewhere.py").write_text(ELSEWHERE)
    done = subprocess.run(
        [sys.executable, str(root / "elsewhere.py"), str(root / "jobs.json")],
        cwd=root / "elsewhere",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(root / "code")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    tests = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    asked = {test.callspec.params.get(key) for test in tests for key in ("name", "refusing")}
    root = tmp_path_factory.mktemp("export")
    _image().save(root / "image.png")
    cases: dict[str, Exported] = {}
    chosen = {name: each for name, each in VARIANTS.items() if name in asked or name in CORE or name not in FAMILIES}
    for number, (name, variant) in enumerate(chosen.items()):
        family = FAMILIES[variant.family]
        base = root / variant.family
        if not base.exists():
            family.save(base)
        ours = robustify(load_model(base, dtype=variant.dtype), variant.config)
        folder = root / f"exported{number}"
        export_model(ours, folder, max_shard_size=variant.shards)
        inputs = family.inputs(ours, _image(), PROMPT)
        torch.save(inputs, root / f"{number}.inputs")
        cases[name] = Exported(variant, ours, base, folder, inputs, {
            "folder": str(folder),
            "inputs": str(root / f"{number}.inputs"),
            "out": str(root / f"{number}.out"),
            "stock": family.stock,
            "inner": type(ours.hf.model).__name__,
            "base": str(base),
            "dtype": variant.opened,
            "refusals": name in CORE,
            # bitsandbytes takes no images of tokens, which Aya Vision's projector reads
            "kept": list(family.record.unquantised) if variant.family == "aya" else None,
            "processor": "" if name not in FAMILIES else "parts" if name in PROCESSORS else "AutoProcessor",
            "image": str(root / "image.png"),
            "text": family.question.format(PROMPT),
            "processing": dict(ours.processing),
        }, {})  # fmt: skip
    anchorless = _copy(cases["llava"].folder, root / "anchorless")
    weights = load_file(anchorless / "radapt.safetensors")
    del weights["radapt_mix.anchor"]
    save_file(weights, anchorless / "radapt.safetensors", metadata={"format": "pt"})
    bare = {"folder": str(anchorless), "out": str(root / "anchorless.out"), "refusals": False, "processor": ""}
    opened_elsewhere(root, [*(case.job for case in cases.values()), cases["llava"].job | bare])
    for case in cases.values():
        case.elsewhere.update(torch.load(case.job["out"]))
    return cases


@pytest.fixture(scope="module")
def others(exported: dict[str, Exported]) -> None:
    """The families beside CORE, opened in the same ways."""
    rest = [case for name, case in exported.items() if name in FAMILIES and name not in CORE]
    opened_elsewhere(rest[0].folder.parent, [case.job | {"refusals": True} for case in rest])
    for case in rest:
        case.elsewhere.update(torch.load(case.job["out"]))


@pytest.fixture(params=[name if name in CORE else slow(name) for name in (*FAMILIES, "filter alone")])
def refusing(request: pytest.FixtureRequest, exported: dict[str, Exported]) -> Exported:
    """A folder that was opened in every way in which the defence could be lost."""
    if request.param not in CORE:
        request.getfixturevalue("others")
    return exported[request.param]


@pytest.mark.parametrize("name", [*FEW, *(name for name in VARIANTS if name not in FAMILIES)])
def test_without_this_package_the_logits_are_bit_equal(exported: dict[str, Exported], name: str) -> None:
    case = exported[name]
    ours = load_model(case.folder, dtype=torch.bfloat16) if case.variant.opened else case.ours
    with torch.no_grad():
        expected = ours.hf(**case.inputs).logits
        with ours.undefended():
            bare = ours.hf(**case.inputs).logits
    assert case.elsewhere["logits"].dtype == expected.dtype == ours.dtype
    assert torch.equal(case.elsewhere["logits"], expected)
    assert (expected - bare).abs().max() > 0.05  # the defence is no idle one
    answer = ours.hf.generate(**case.inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(case.elsewhere["answer"], answer)


@pytest.mark.parametrize("name", [*FEW, *(name for name in VARIANTS if name not in FAMILIES)])
def test_the_model_without_its_head_that_servers_ask_for_is_protected_too(
    exported: dict[str, Exported], name: str
) -> None:
    elsewhere = exported[name].elsewhere
    assert torch.equal(elsewhere["headless"], elsewhere["logits"])


def test_the_anchor_is_float32_in_every_precision(exported: dict[str, Exported]) -> None:
    anchors = {name: case.elsewhere["anchor"] for name, case in exported.items()}
    per_grid = {
        name for name in anchors if name.startswith(("qwen3", "glm", "gemma4"))
    }  # theirs is taken anew on every grid
    assert {name for name, dtype in anchors.items() if dtype is None} == {"filter alone", *per_grid}
    assert {dtype for dtype in anchors.values() if dtype is not None} == {torch.float32}


def test_it_never_comes_back_unprotected(refusing: Exported) -> None:
    refusals = refusing.elsewhere["refusals"]
    for way in refusals.keys() & {
        *("stock", "stock, stock config", "stock, bfloat16", "inner model"),
        *("stock, 4 bits", "stock, 8 bits", "stock, stock config, 4 bits"),
    }:
        assert refusals[way].startswith("OSError: Error no file named model.safetensors"), way
    for way in ("no trust", "trust not asked", "AutoModel", "4 bits, trust not asked"):
        assert refusals[way].startswith("ValueError") and "trust_remote_code=True" in refusals[way], way  # noqa: PT018


def test_it_opens_quantised(refusing: Exported) -> None:
    whole, small = (refusing.elsewhere[key] for key in ("logits", "8 bits"))
    assert not torch.equal(small.float(), whole)
    # rounding may send a token to another expert, which changes single numbers much
    assert torch.cosine_similarity(small.float().flatten(), whole.flatten(), 0) > 0.98


def test_what_transformers_saves_of_it_is_protected_too(refusing: Exported) -> None:
    """Under the common file names the shape of one weight stops the stock class."""
    elsewhere = refusing.elsewhere
    assert torch.equal(elsewhere["again"], elsewhere["logits"])
    for refusal in elsewhere["refusals again"]:
        assert refusal.startswith("RuntimeError: You set `ignore_mismatched_sizes` to `False`")


def test_weights_under_the_common_names_are_opened_too(exported: dict[str, Exported], tmp_path: Path) -> None:
    """As the first exports held them."""
    case = exported["llava"]
    folder = _copy(case.folder, tmp_path / "copy")
    (folder / "radapt.safetensors").rename(folder / "model.safetensors")
    kept = json.loads((folder / "config.json").read_text())["radapt"]
    del kept["weights"]
    _edit(folder / "config.json", radapt=kept)
    assert torch.equal(_loss(load_model(folder)), _loss(case.ours))


@pytest.mark.parametrize("name", FEW)
def test_inputs_are_made_from_the_folder_alone(exported: dict[str, Exported], name: str) -> None:
    case = exported[name]
    made = case.elsewhere["inputs"]
    made.pop("labels", None)  # PaliGemma's processor makes them too
    for key, value in made.items():
        assert torch.equal(value, case.inputs[key]), key
    if name not in PROCESSORS:
        assert set(made) == set(case.inputs)
    else:
        assert case.elsewhere["template"] == case.ours.tokenizer.chat_template
        processor = json.loads((case.folder / "processor_config.json").read_text())
        assert processor["processor_class"] == PROCESSORS[name]


def _loss(model: LVLM) -> torch.Tensor:
    with torch.no_grad():
        return model.loss(model.pixels([_image()]), [PROMPT], [TARGET])


@pytest.mark.parametrize("name", [*FEW, "all set", "filter alone", "sharded"])
def test_load_model_opens_it(exported: dict[str, Exported], name: str) -> None:
    case = exported[name]
    back = load_model(case.folder)
    assert type(back) is type(case.ours)
    assert type(back.hf) is type(case.ours.hf)  # the folder's own code was not run
    assert back.radapt == case.variant.config
    assert torch.equal(_loss(back), _loss(case.ours))
    batch = back.pixels([_image()])
    assert back.generate(batch, [PROMPT]) == case.ours.generate(batch, [PROMPT])
    assert back.hf.generation_config.eos_token_id == case.ours.hf.generation_config.eos_token_id
    with back.undefended(), case.ours.undefended():
        assert torch.equal(_loss(back), _loss(case.ours))
    assert not torch.equal(_loss(back), _loss(load_model(case.base)))


def test_opening_it_is_quiet(exported: dict[str, Exported]) -> None:
    with quiet():
        load_model(exported["llava"].folder)


def test_it_can_be_exported_and_adapted_again(exported: dict[str, Exported], tmp_path: Path) -> None:
    back = load_model(exported["llava"].folder)
    export_model(back, tmp_path / "again")
    for file in ("radapt.safetensors", "modeling_radapt.py", "processor_config.json", "tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (exported["llava"].folder / file).read_bytes(), file
    save_adapter(back, tmp_path / "adapter")
    assert torch.equal(_loss(load_model(tmp_path / "adapter")), _loss(back))


def test_geometry_and_base_are_kept(tmp_path: Path) -> None:
    base = tiny_checkpoints.save_llava(tmp_path / "base")
    export_model(robustify(load_model(base, geometry="pad")), tmp_path / "out")
    assert load_model(tmp_path / "out").geometry == "pad"
    # the written image processor pads by itself
    assert load_model(tmp_path / "out", geometry="stock").geometry == "pad"
    assert default_preset(str(tmp_path / "out")) == "native"
    _edit(tmp_path / "out" / "radapt_export.json", base="tiny-llava")
    assert default_preset(str(tmp_path / "out")) == "scenes"


def test_shards(exported: dict[str, Exported]) -> None:
    folder = exported["sharded"].folder
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    assert (folder / "radapt.safetensors.index.json").is_file()
    assert not list(folder.glob("model.safetensors*"))


@pytest.mark.parametrize("name", FEW)
def test_the_code_in_the_folder(exported: dict[str, Exported], name: str) -> None:
    files = {path.name: path.read_text() for path in exported[name].folder.glob("*.py")}
    assert files["radapt_defences_radapt_modules.py"] == inspect.getsource(modules)
    assert f"import {FAMILIES[name].stock} as StockModel" in files["modeling_radapt.py"]
    for file, source in files.items():
        compile(source, file, "exec")
        assert "import lvlm_radapt" not in source
        assert "from lvlm_radapt" not in source
        assert "\nif TYPE_CHECKING" not in source


def test_weights_without_an_anchor_are_no_weak_defence(exported: dict[str, Exported]) -> None:
    """transformers only warns of a missing key; the anchor is then not a number, and so is every answer."""
    case = exported["llava"]
    assert torch.load(case.folder.parent / "anchorless.out")["logits"].isnan().all()
    with pytest.raises(UserError, match=r"its weights hold no radapt_mix\.anchor"):
        load_model(case.folder.parent / "anchorless")


def _copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _cut(folder: Path) -> None:
    path = folder / "radapt.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _no_anchor(folder: Path) -> None:
    path = folder / "config.json"
    _edit(path, radapt=json.loads(path.read_text())["radapt"] | {"anchor": None})


def _weights(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "radapt.safetensors"
    weights = {key: value for key, value in (load_file(path) | changes).items() if value is not None}
    save_file(weights, path, metadata={"format": "pt"})


def _other_shape(folder: Path) -> None:
    path = folder / "config.json"
    patches = {"module": "model.vision_tower.embeddings.patch_embedding", "shape": [32, 3, 15, 14]}
    _edit(path, radapt=json.loads(path.read_text())["radapt"] | {"patches": patches})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda f: (f / "radapt_export.json").write_text("{"), r"radapt_export\.json is damaged: it is no JSON"),
    "another format": (lambda f: _edit(f / "radapt_export.json", format="x"), "does not say that it is an lvlm-radapt"),
    "a later version": (lambda f: _edit(f / "radapt_export.json", version=2), "format version 2, this program reads 1"),
    "another geometry": (lambda f: _edit(f / "radapt_export.json", geometry="x"), "damaged: field geometry"),
    "no defence": (lambda f: _edit(f / "config.json", radapt=None), r"config\.json is damaged: field radapt: "),
    "no anchor's place": (_no_anchor, "alpha is 0.7 and there is no one anchor"),
    "another shape": (_other_shape, "weights hold no .*patch_embedding.weight of the size"),
    "an unknown model": (lambda f: _edit(f / "radapt_export.json", model_type="gpt"), "model_type 'gpt' is not supp"),
    "weights cut off": (_cut, "cut short or damaged"),
    "a weight missing": (lambda f: _weights(f, **{"lm_head.weight": None}), r"misses weights lm_head\.weight"),
    "a foreign weight": (lambda f: _weights(f, odd=torch.zeros(3)), "holds unknown weights odd"),
    "no generation settings": (lambda f: (f / "generation_config.json").write_text("{"), "generation_config"),
    "weights missing": (
        lambda f: (f / "radapt.safetensors").unlink(),
        r"no weights there, no file radapt\.safetensors$",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_one_line(exported: dict[str, Exported], tmp_path: Path, name: str) -> None:
    change, message = DAMAGE[name]
    folder = _copy(exported["llava"].folder, tmp_path / "copy")
    change(folder)
    with one_line(message):
        load_model(folder)


@pytest.mark.parametrize("write", [export_model, fold_model])
def test_what_cannot_be_written(tmp_path: Path, write: Callable[[LVLM, Path], None]) -> None:
    model = load_model(tiny_checkpoints.save_qwen(tmp_path / "base"))
    with pytest.raises(UserError, match="has no R-Adapt in it: call robustify"):
        write(model, tmp_path / "out")
    robustify(model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="full is not empty: name a new folder"):
        write(model, tmp_path / "full")
    model.hf.quantization_method = "bitsandbytes"
    with pytest.raises(UserError, match="opened with quantised weights"):
        write(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "full"]


@pytest.mark.parametrize("write", [export_model, fold_model, save_adapter])
def test_other_users_may_read_what_the_umask_lets_them_read(tmp_path: Path, write: Callable[..., None]) -> None:
    """A server in a container is another user; safetensors lets only the owner read."""
    model = robustify(load_model(tiny_checkpoints.save_qwen(tmp_path / "base")))
    shards = {} if write is save_adapter else {"max_shard_size": 50_000}
    for mask in (0o022, 0o077):
        out, before = tmp_path / f"{mask:o}", os.umask(mask)
        try:
            write(model, out, **shards)
        finally:
            os.umask(before)
        files = [path for path in out.rglob("*") if path.is_file()]
        assert len(list(out.glob("*.safetensors"))) >= (2 if shards else 1)
        assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}
        assert out.stat().st_mode & 0o777 == 0o777 & ~mask


QWENS = ("qwen2", "qwen2.5")


def _logits(hf: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return hf(**inputs).logits


@pytest.mark.parametrize(("alpha", "mix"), [(0.7, "interpolate"), (1.0, "interpolate"), (-0.4, "add")])
@pytest.mark.parametrize("name", QWENS)
def test_a_folded_anchor_is_the_injected_one(tmp_path: Path, name: str, alpha: float, mix: Any) -> None:
    family = FAMILIES[name]
    family.save(tmp_path / "base")
    model = robustify(load_model(tmp_path / "base"), RAdaptConfig(cutoff=None, alpha=alpha, mix=mix))
    fold_model(model, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.py"))
    assert not is_export(tmp_path / "out")
    plain, info = getattr(transformers, family.stock).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    inputs = family.inputs(model, _image(112, 140), PROMPT)
    expected = _logits(model.hf, inputs)
    torch.testing.assert_close(_logits(plain.eval(), inputs), expected, rtol=1e-5, atol=1e-5)
    with model.undefended():
        assert (_logits(model.hf, inputs) - expected).abs().max() > 0.05
    # what was in memory is as it was
    assert torch.equal(_logits(model.hf, inputs), expected)
    assert load_model(tmp_path / "out").radapt is None


@pytest.mark.parametrize("name", QWENS)
def test_a_filter_in_front_of_the_folded_model(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    family.save(tmp_path / "base")
    model = robustify(load_model(tmp_path / "base"), RAdaptConfig(cutoff=25.0, cutoff_unit="image", alpha=0.7))
    fold_model(model, tmp_path / "out")
    ahead = runpy.run_path(str(tmp_path / "out" / "radapt_filter.py"))
    plain = getattr(transformers, family.stock).from_pretrained(tmp_path / "out").eval()
    image = _image(150, 97)
    inputs = family.inputs(model, image, PROMPT)
    # exact: the unrounded pixels, normalised by hand
    array = torch.from_numpy(ahead["filter_array"](image)).permute(2, 0, 1)[None]
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (model.image_mean, model.image_std)
    )
    rows = images_to_rows((array / 255 - mean) / std, 14, 2).float()
    expected = _logits(model.hf, inputs)
    torch.testing.assert_close(_logits(plain, {**inputs, "pixel_values": rows}), expected, rtol=1e-4, atol=1e-4)
    assert (_logits(plain, inputs) - expected).abs().max() > 0.05  # without the filter it is another model
    # rounded: the processor takes the image as it is, each level within half of the exact one
    eight_bit = ahead["filter_image"](image)
    assert (eight_bit.height, eight_bit.width) == model.canvas(image) == model.canvas(eight_bit)
    seen = model.pixels([eight_bit]).x[0].double() * 255
    assert torch.equal(seen.round().byte(), torch.from_numpy(np.asarray(eight_bit).copy()).permute(2, 0, 1))
    assert (seen - array[0].clamp(0, 255)).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("boundary", ["reflect", "periodic"])
@pytest.mark.parametrize("unit", ["px224", "image"])
def test_the_standalone_filter_is_the_towers(monkeypatch: pytest.MonkeyPatch, unit: str, boundary: str) -> None:
    for name, value in {"CUTOFF": 33.0, "UNIT": unit, "BOUNDARY": boundary, "MAX_PIXELS": 30_000}.items():
        monkeypatch.setattr(filter_template, name, value)
    for size in ((84, 56), (300, 200), (28, 28)):
        array = filter_template.filter_array(_image(*size))
        canvas = _image(*size).resize(array.shape[1::-1], Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(canvas, dtype=np.float64)).permute(2, 0, 1)
        expected = GaussianFilter(33.0, unit, boundary)(pixels)
        np.testing.assert_allclose(array.transpose(2, 0, 1), expected.numpy(), rtol=0, atol=1e-9)
        assert np.abs(array - np.asarray(canvas)).max() > 10


@settings(max_examples=200, deadline=None)
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), area=st.sampled_from([28_000, 1_003_520, 12_845_056]))
def test_the_standalone_filters_canvas_is_the_processors(height: int, width: int, area: int) -> None:
    limit, filter_template.MAX_PIXELS = filter_template.MAX_PIXELS, area
    try:
        if max(height, width) > 200 * min(height, width):
            with pytest.raises(ValueError, match="too elongated"):
                filter_template.canvas_size(height, width)
            return
        expected = smart_resize(height, width, factor=28, min_pixels=3136, max_pixels=area)
        assert filter_template.canvas_size(height, width) == expected
    finally:
        filter_template.MAX_PIXELS = limit


def test_the_standalone_filter_needs_numpy_and_pil_alone(tmp_path: Path) -> None:
    fold_model(robustify(load_model(tiny_checkpoints.save_qwen(tmp_path / "base"))), tmp_path / "out")
    _image().save(tmp_path / "image.png")
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'lvlm_radapt'): sys.modules[name] = None\n"
        "from PIL import Image\nfrom radapt_filter import filter_image\n"
        "filter_image(Image.open('image.png')).save('filtered.png')\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "out")}
    )
    filtered = np.asarray(Image.open(tmp_path / "filtered.png"))
    assert filtered.shape == (84, 56, 3)
    assert filtered.std() < np.asarray(_image()).std()


def test_a_constant_anchor_folds_into_any_family(tmp_path: Path) -> None:
    model = load_model(tiny_checkpoints.save_llava(tmp_path / "base"))
    inject(model.hf, RAdaptConfig(cutoff=None, alpha=0.6), Anchor(torch.randn(1, 32)))
    fold_model(model, tmp_path / "out")
    plain = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    inputs = FAMILIES["llava"].inputs(model, _image(), PROMPT)
    torch.testing.assert_close(_logits(plain, inputs), _logits(model.hf, inputs), rtol=1e-5, atol=1e-5)


STOCKS = [(name, "stock") for name in ("llava", "qwen2", "qwen2.5", "qwen3", "gemma3", "paligemma")]


@pytest.mark.parametrize(("name", "geometry"), [*STOCKS, ("llava", "pad")])
def test_a_filter_alone_is_stock_weights_and_a_processor(tmp_path: Path, name: str, geometry: Any) -> None:
    family = FAMILIES[name]
    family.save(tmp_path / "base")
    model = robustify(load_model(tmp_path / "base", geometry=geometry), RAdaptConfig(cutoff=25.0, alpha=0))
    fold_model(model, tmp_path / "out")
    plain = getattr(transformers, family.stock).from_pretrained(tmp_path / "out")
    base = getattr(transformers, family.stock).from_pretrained(tmp_path / "base").state_dict()
    assert all(torch.equal(value, base[key]) for key, value in plain.state_dict().items())
    ahead = runpy.run_path(str(tmp_path / "out" / "radapt_filter.py"))
    for size in ((150, 97), (60, 200), (112, 112)):
        image = _image(*size)
        canvas = model.pixels([image]).x[0]
        laid = torch.from_numpy(np.asarray(ahead["on_canvas"](image)).copy()).permute(2, 0, 1)
        assert torch.equal(laid, (canvas * 255).round().byte())
        filtered = GaussianFilter(25.0, "px224", "reflect")(canvas.double())
        processor = ahead["FilteredProcessor"](model.image_processor)
        assert processor.image_mean == model.image_processor.image_mean  # all else is the processor's own
        seen = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        if name == "llava":
            assert (seen[0].double() - 255 * filtered.clamp(0, 1)).abs().max() <= 0.5 + 1e-3
        again = model.pixels([ahead["filter_image"](image)]).x[0]
        assert (again - filtered.clamp(0, 1)).abs().max() * 255 <= 0.5 + 1e-3


def by_channel(pixel_values: torch.Tensor) -> torch.Tensor:
    """[3, ...] of images [B, 3, H, W] or of rows of patches, as a Qwen has them."""
    images = pixel_values if pixel_values.dim() == 4 else pixel_values.unflatten(-1, (3, -1))
    return images.transpose(0, 1).flatten(1)


@pytest.mark.usefixtures("folder_code")
@pytest.mark.skipif(
    getattr(transformers.AutoImageProcessor, "is_dummy", False),
    reason="this transformers opens no image processor without torchvision",
)
@pytest.mark.parametrize(("name", "geometry"), [*STOCKS, ("llava", "pad")])
def test_the_image_processor_in_a_folded_folder_filters(tmp_path: Path, name: str, geometry: Any) -> None:
    """As the tower of the defended model does, at full precision; and it never opens as one that does not filter."""
    family, folder = FAMILIES[name], tmp_path / "folded"
    family.save(tmp_path / "base")
    model = robustify(load_model(tmp_path / "base", geometry=geometry), RAdaptConfig(cutoff=25.0, alpha=0))
    fold_model(model, folder)
    opened = [transformers.AutoImageProcessor, *([] if family.processor else [transformers.AutoProcessor])]
    for auto in opened:
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            auto.from_pretrained(folder, trust_remote_code=False)
        processor = auto.from_pretrained(folder, trust_remote_code=True)
        images = getattr(processor, "image_processor", processor)
        plain = getattr(transformers, family.stock).from_pretrained(folder).eval()
        for size in ((150, 97), (60, 200), (112, 112)):
            inputs = family.inputs(model, _image(*size), PROMPT)
            if geometry == "pad":  # which the stock processor does not
                inputs["pixel_values"] = model.normalise(model.pixels([_image(*size)]).x)
            seen = images(_image(*size), return_tensors="pt")["pixel_values"]
            expected = _logits(model.hf, inputs)
            made = _logits(plain, {**inputs, "pixel_values": seen})
            torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
            assert (_logits(plain, inputs) - expected).abs().max() > 1e-2  # without the filter it is another model
        for rescaled in (True, False):  # a server may rescale and normalise on the GPU
            raw = images(_image(*size), do_normalize=False, do_rescale=rescaled, return_tensors="pt")["pixel_values"]
            mean, std = (torch.tensor(values)[:, None] for values in (model.image_mean, model.image_std))
            levels = 255 * (by_channel(seen) * std + mean)
            torch.testing.assert_close(by_channel(raw) * (255 if rescaled else 1), levels, rtol=0, atol=0.01)
        with pytest.raises(ValueError, match="filters by itself"):
            runpy.run_path(str(folder / "radapt_filter.py"))["FilteredProcessor"](processor)
        images.save_pretrained(tmp_path / "again")  # with its code
        again = transformers.AutoImageProcessor.from_pretrained(tmp_path / "again", trust_remote_code=True)
        assert torch.equal(again(_image(*size), return_tensors="pt")["pixel_values"], seen)
    assert torch.equal(_loss(load_model(folder)), _loss(load_model(tmp_path / "base", geometry=geometry)))


@pytest.mark.parametrize("name", FEW)
def test_who_needs_torchvision_is_known(exported: dict[str, Exported], name: str) -> None:
    case = exported[name]
    assert torchvision_user(case.ours) == PROCESSORS.get(name)


def test_a_filter_is_not_put_in_front_of_a_processor_that_counts_frames(tmp_path: Path) -> None:
    model = robustify(load_model(tiny_checkpoints.save_glm(tmp_path / "base")), RAdaptConfig(alpha=0))
    with one_line("the filter cannot be put in front of a Glm4vImageProcessorPil: use --export"):
        fold_model(model, tmp_path / "out")


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 400), st.integers(20, 400), st.sampled_from([None, (41, 41)]), st.booleans())
def test_the_standalone_canvas_is_clips(height: int, width: int, crop: tuple[int, int] | None, edge: bool) -> None:
    stock = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 48} if edge else {"height": 48, "width": 56}, do_center_crop=crop is not None,
        crop_size={"height": 41, "width": 41}, do_rescale=False, do_normalize=False,
    )  # fmt: skip
    image = _image(height, width)
    numbers = {"CANVAS": "crop", "EDGE": 48 if edge else 0, "SIZE": (48, 56), "CROP": crop or (0, 0)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in numbers.items():
            patch.setattr(filter_template, name, value)
        ours = np.asarray(filter_template.on_canvas(image))
    np.testing.assert_array_equal(ours.transpose(2, 0, 1), np.asarray(stock(image)["pixel_values"][0]))


def test_what_cannot_be_folded(tmp_path: Path) -> None:
    llava = tiny_checkpoints.save_llava(tmp_path / "llava")
    qwen = tiny_checkpoints.save_qwen(tmp_path / "qwen")
    no_canvas = {
        name: (robustify(load_model(FAMILIES[name].save(tmp_path / name)), RAdaptConfig(alpha=0)), f"front of a {kind}")
        for name, kind in (("llava-next", "LlavaNextImageProc"), ("mistral3", "PixtralIm"), ("gemma4", "Gemma4Im"))
        if name in FAMILIES
    }
    no_bias = robustify(load_model(qwen))
    no_bias.hf.model.visual.blocks[0].attn.proj.bias = None
    for model, message in (
        (robustify(load_model(llava)), "a row for each of 17 tokens, .*: use --export"),
        *no_canvas.values(),
        (no_bias, r"blocks\.0\.attn\.proj has no bias"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            fold_model(model, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folding_keeps_the_anchor_of_a_saved_adapter(tmp_path: Path) -> None:
    model = robustify(load_model(tiny_checkpoints.save_qwen(tmp_path / "base")), RAdaptConfig(cutoff=None))
    save_adapter(model, tmp_path / "adapter")
    fold_model(load_model(tmp_path / "adapter"), tmp_path / "out")
    key = next(
        k for k in load_file(tmp_path / "out" / "model.safetensors") if k.endswith("visual.blocks.0.attn.proj.bias")
    )
    anchor = injected_anchor(model.hf)
    assert anchor is not None
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[key], anchor.values[0])


def test_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    qwen, llava = tiny_checkpoints.save_qwen(tmp_path / "qwen"), tiny_checkpoints.save_llava(tmp_path / "llava")
    assert "--export and --fold write different folders: choose one" in cli.refused(
        "robustify", qwen, "--out", tmp_path / "x", "--export", "--fold"
    )
    out = cli.done("robustify", qwen, "--out", tmp_path / "export", "--export")
    assert f"AutoModelForImageTextToText.from_pretrained('{tmp_path / 'export'}', trust_remote_code=True)" in out
    assert load_model(tmp_path / "export").radapt == RAdaptConfig()
    out = cli.done("robustify", qwen, "--out", tmp_path / "fold", "--fold")
    assert "NOT in the weights" in out
    assert out.count("AutoProcessor needs torchvision here: Qwen2_5_VLProcessor takes videos too") == 1
    assert f"AutoProcessor.from_pretrained('{tmp_path / 'fold'}', trust_remote_code=True)" in out
    assert "torchvision" not in cli.done("robustify", llava, "--out", tmp_path / "plain", "--fold", "--alpha", 0)
    assert str(tmp_path / "fold" / "radapt_filter.py") in out
    assert "use --export" in cli.refused("robustify", llava, "--out", tmp_path / "x", "--fold")
    assert not (tmp_path / "x").exists()


def test_an_adapter_s_own_defence_is_written(cli: Cli, tmp_path: Path) -> None:
    qwen, adapter = tiny_checkpoints.save_qwen(tmp_path / "qwen"), tmp_path / "adapter"
    config = RAdaptConfig(cutoff=25.0, alpha=0.4)
    model = robustify(load_model(qwen), config)
    save_adapter(model, adapter)
    fold_model(model, tmp_path / "folded")

    out = cli.done("robustify", adapter, "--out", tmp_path / "export", "--export")
    assert "(cutoff 25) and the white anchor (alpha 0.4, interpolate) inside" in out
    assert load_model(tmp_path / "export").radapt == config
    assert torch.equal(_loss(load_model(tmp_path / "export")), _loss(model))
    for source in (adapter, tmp_path / "export"):
        out_folder = tmp_path / f"fold-{source.name}"
        out = cli.done("robustify", source, "--out", out_folder, "--fold")
        assert "The filter (cutoff 25) is NOT in the weights" in out
        assert (out_folder / "radapt_filter.py").read_bytes() == (tmp_path / "folded" / "radapt_filter.py").read_bytes()
        assert torch.equal(_loss(load_model(out_folder)), _loss(load_model(tmp_path / "folded")))
        for flags, said in (
            (["--export", "--cutoff", "40"], f"has its settings already: leave --cutoff out, or robustify {qwen} anew"),
            (["--fold", "--no-filter", "--alpha", "1"], "leave --alpha and --no-filter out"),
            (["--mix", "add"], "leave --mix out"),
            ([], "is robustified already: use it as it is, or write it whole with --export or --fold"),
        ):
            assert said in cli.refused("robustify", source, "--out", tmp_path / "x", *flags)
    assert not (tmp_path / "x").exists()
