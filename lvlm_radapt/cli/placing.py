"""Where and in what precision a model is loaded, and the protocol that fits it."""

from __future__ import annotations

from typing import Any

from lvlm_radapt.cli.group import Processes
from lvlm_radapt.cli.options import Bits, Dtype, Spread
from lvlm_radapt.utils.errors import UserError


def device_named(name: str) -> str:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name!r} is no device: use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {name}: no CUDA device is available here, use --device cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices here, from cuda:0 on")
    if Processes.group is not None and name == "cuda":
        from eval_tasks.run.processes import local_rank

        # a launcher may show every process one GPU alone
        return f"cuda:{local_rank() % torch.cuda.device_count()}"
    return name


def place_of(
    device: str,
    dtype: Dtype,
    quantize: Bits | None,
    device_map: Spread | None,
    *,
    model: str | None = None,
    max_pixels: int | None = None,
) -> dict[str, Any]:
    """The keywords of `load_model` behind these flags. model: the one to open, which may know its own precision."""
    import torch

    from lvlm_radapt.loading.load import stored_dtype

    if device_map is not None and device != "auto":
        raise UserError("--device and --device-map exclude each other: leave one out")
    if device_map is not None and Processes.group is not None:
        raise UserError("--device-map spreads one model over all GPUs: run it as a single process, without a launcher")
    place = "cpu" if device_map is not None else device_named(device)
    known = torch.float32
    if dtype != "auto":
        known = getattr(torch, dtype)
    elif model is not None:
        known = stored_dtype(model, device_named("auto") if device_map is not None else place)
    return {
        "device": place,
        "dtype": known,
        "quantize": quantize,
        "device_map": device_map,
        **({} if max_pixels is None else {"max_pixels": max_pixels}),
    }


def place_flags(device: str, dtype: Dtype, quantize: Bits | None = None, device_map: Spread | None = None) -> str:
    """The flags that open a model where these did, as the next command is to have them; with a space in front."""
    given = {
        "--device": None if device == "auto" else device,
        "--device-map": device_map,
        "--dtype": None if dtype == "auto" else dtype,
        "--quantize": quantize,
    }
    return "".join(f" {flag} {value}" for flag, value in given.items() if value)


def default_preset(model: str) -> str:
    """`scenes` for the embedded models, their adapters and exports, `native` for everything else."""
    from lvlm_radapt.loading.adapter_files import base_name
    from lvlm_radapt.loading.export_files import exported_from
    from lvlm_radapt.loading.locate import EMBEDDED

    return "scenes" if exported_from(base_name(model)) in EMBEDDED else "native"
