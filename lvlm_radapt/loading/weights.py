"""Weight files as people hold them: safetensors or torch pickles, whole or in shards, read tensor by tensor.

Tensors stay views of the files (memory-mapped), so a 7B checkpoint is in memory only once: where the model
puts it.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from lvlm_radapt.utils.errors import UserError
from lvlm_radapt.utils.json_files import check_regular, read_bytes, read_json
from lvlm_radapt.utils.names import is_one_part, is_utf8

_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_ZIP = b"PK\x03\x04"
_SNAPSHOT = re.compile(
    r"/models--[^/]+/snapshots/([0-9a-f]{40})/"
)  # where the hub's library keeps a repository's files


def weight_files(source: str, name: str, *, names: Sequence[str] = _FILES) -> list[Path]:
    """The files that hold the weights of the checkpoint `source` (a folder or a hub id), shards as their index
    lists them. names: of the file or the index, the first one there is. UserError when there are none or a shard is
    missing."""
    for file in names:
        path = checkpoint_file(source, file)
        if path is None:
            continue
        if not file.endswith(".json"):
            return [path]
        shards = _shards(path)
        paths = [checkpoint_file(source, shard) for shard in shards]
        lost = [shard for shard, found in zip(shards, paths, strict=True) if found is None]
        if lost:
            raise UserError(f"{name}: the shard {lost[0]} that {file} names is not there: download it")
        return [found for found in paths if found is not None]
    raise UserError(f"{name}: no weights there, no file {' or '.join(names)}")


def check_weight_files(source: str, name: str) -> None:
    """UserError that names the first weight file of the checkpoint `source` that is cut short or damaged. Nothing is
    said of files that are not there."""
    try:
        files = weight_files(source, name)
    except UserError:
        return
    for path in files:
        next(read_tensors(path), None)  # the header tells the whole length


def check_indices(source: str) -> None:
    """UserError where an index of weights in the folder `source` names files that do not lie in it: transformers would
    read them. Nothing is asked of the hub, which serves no files but a repository's own."""
    for index in (Path(source) / file for file in _FILES if file.endswith(".json")):
        if index.is_file():
            _shards(index)


def checkpoint_file(source: str, file: str) -> Path | None:
    """A file of a folder or of a hub repository (downloaded if need be); None where it is not."""
    try:
        found = cached_file(
            source,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)


def revision_of(source: str) -> str | None:
    """The hub's commit of the checkpoint `source` as it lies in the cache, by the place of its config.json there; None
    for what does not come from the hub."""
    path = checkpoint_file(source, "config.json")
    found = None if path is None else _SNAPSHOT.search(path.absolute().as_posix())
    return None if found is None else found[1]


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) of everything in one weight file. UserError, one line, when it is cut short or damaged, or
    holds anything but tensors: pickles are opened with `weights_only=True`."""
    check_regular(path)
    if path.suffix == ".safetensors":
        if not is_utf8(str(path)):
            raise UserError(f"{path} cannot be read under this path, which is not UTF-8: rename the file or its folder")
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  (no mapping)
                    yield key, file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is cut short or damaged: download it again ({_one_line(error)})") from error
        return
    yield from _tensors_of(read_pickle(path), path)


def read_pickle(path: Path) -> Any:
    """What a torch pickle holds, tensors on the CPU. UserError as for `read_tensors`."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            mapped = file.read(len(_ZIP)) == _ZIP  # the format before torch 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds more than tensors, which is never opened: save its state dict alone"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is cut short or damaged: download it again ({_one_line(error)})") from error


def _tensors_of(content: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict (names and tensors): save the model's state_dict()")
    for key, value in content.items():
        yield str(key), value


def _shards(index: Path) -> list[str]:
    try:
        places = json.loads(read_bytes(index))["weight_map"]
        shards = sorted({str(file) for file in places.values()})
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is damaged: it is no index of weight shards") from error
    if not shards or not all(map(is_one_part, shards)):
        raise UserError(f"{index} is damaged: it must name shards that lie beside it")
    return shards


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


def checkpoint_dtype(source: str) -> torch.dtype:
    """The precision that a checkpoint's config.json names, its language model's for one; float32 where it names none
    that models are computed in."""
    path = checkpoint_file(source, "config.json")
    config = {} if path is None else read_json(path)
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        named = part.get("dtype", part.get("torch_dtype"))
        if named in ("float32", "bfloat16", "float16"):
            found: torch.dtype = getattr(torch, named)
            return found
    return torch.float32
