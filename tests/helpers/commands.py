"""The command line in real processes, which can be killed for real and have faults built in.

They are forked from a server that has everything imported, so that one costs a second and not ten.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "lvlm_radapt.cli",
        "lvlm_radapt.experiments.demo",
        "lvlm_radapt.models.llava",
        "eval_tasks.api",
        "torch.distributed",
        "transformers.models.llava.modeling_llava",
        "transformers.models.clip.modeling_clip",
        "transformers.models.llama.modeling_llama",
        "matplotlib.pyplot",
    ]
)

Fault = Mapping[str, Any]
"""What goes wrong: {"signal": number, "at_fsync": k} when the process flushes a file for the k-th time, "at_rename"
when it is about to rename one (with "done": True, has just done so), {"slow": seconds a flush}, {"largest_file":
bytes}, {"largest_batch": images}, {"not_a_number": prompts that hold this text}. {"renames": file} counts renames, a
byte each.
{"saving": True} has training save itself at every step, {"short": True} leaves the demo one task, model and budget."""


def evaluation(model: str, data: Path, out: Path, *more: str) -> list[str]:
    """The words of an evaluation of 8 samples in 4 chunks that takes a few seconds."""
    words = ["eval", model, "--task", "vqav2", "--data", str(data), "--attack", "e2e", "--eps", "8/255", "--steps", "2"]
    sizes = ["--samples", "8", "--chunk-size", "2", "--batch-size", "2", "--device", "cpu"]
    return [*words, *sizes, "--out", str(out), *more]


class Command:
    """A running `lvlm-radapt WORDS`; stdout and stderr go to files in `logs`."""

    _started = 0

    def __init__(self, words: Sequence[str], logs: Path, fault: Fault | None = None, **environment: str) -> None:
        logs.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:  # bits depend on threads, and a server's are those of its start
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")  # as `join` has it, before torch is imported
            forkserver.ensure_running()
        Command._started += 1
        self._log = logs / f"{Command._started}"
        self._process: ForkServerProcess = _CONTEXT.Process(
            target=_work, args=(list(words), str(self._log), dict(fault or {}), environment)
        )
        self._process.start()

    def wait(self, seconds: float = 120) -> int:
        """The exit code, minus the signal's number where one killed it."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"still running: {self.err}")
        return self._process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self._process.pid, number)

    @property
    def out(self) -> str:
        return Path(f"{self._log}.out").read_text() if Path(f"{self._log}.out").exists() else ""

    @property
    def err(self) -> str:
        return Path(f"{self._log}.err").read_text() if Path(f"{self._log}.err").exists() else ""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(words: Sequence[str], logs: Path, size: int, faults: Mapping[int, Fault] | None = None) -> list[Command]:
    """`size` processes of one command, as a launcher starts them; `faults` by rank."""
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        Command(words, logs, (faults or {}).get(rank), RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(size)
    ]


def contents(out: Path) -> dict[str, Any]:
    """What must be equal of two runs: all but the time they took, and the checksums over that."""
    metrics = json.loads((out / "metrics.json").read_bytes()) | {"checksum": ""}
    samples = [json.loads(line) | {"checksum": ""} for line in (out / "samples.jsonl").read_bytes().splitlines()]
    images = {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.glob("*/*.png"))}
    return {
        "metrics": {**metrics, "seconds": 0, "audit": {**metrics["audit"], "seconds": 0}},
        "samples": [{**sample, "seconds": 0} for sample in samples],
        "images": images,
    }


def _work(words: list[str], log: str, fault: dict[str, Any], environment: dict[str, str]) -> None:
    for name, number in (("out", 1), ("err", 2)):
        with open(f"{log}.{name}", "wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.update(environment)
    sys.argv = ["lvlm-radapt", *words]

    import torch

    from eval_tasks.run import processes
    from lvlm_radapt import cli

    torch.set_num_threads(1)
    processes.PULSE, processes.PATIENCE = 0.2, 4.0
    _build_in(fault)
    try:
        cli.main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _build_in(fault: dict[str, Any]) -> None:
    flush, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fault.get("at_fsync"):
            os.kill(os.getpid(), fault["signal"])
        time.sleep(fault.get("slow", 0))
        flush(handle)

    os.fsync = fsync
    for name in ("rename", "replace"):
        setattr(os, name, _counted_rename(getattr(os, name), fault))
    if fault.get("saving"):
        from lvlm_radapt.training import finetune, learned_anchor, state

        finetune.SAVED_EVERY = 1
        for module in (finetune, learned_anchor):
            module.StateFile = lambda *words, **more: state.StateFile(*words, **more | {"every": 0.0})
    if fault.get("short"):
        from lvlm_radapt.experiments import demo

        demo.TASKS, demo.BUDGETS = ("vqav2",), (4,)
        demo.MODELS = {demo.BASE: demo.MODELS[demo.BASE]}
    if "largest_file" in fault:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["largest_file"], fault["largest_file"]))
    if "largest_batch" in fault or "not_a_number" in fault:
        import torch

        from lvlm_radapt.models.llava import LlavaLVLM

        whole = LlavaLVLM.loss

        def loss(self: Any, batch: Any, prompts: Sequence[str], targets: Sequence[str]) -> torch.Tensor:
            if len(prompts) > fault.get("largest_batch", len(prompts)):
                raise torch.OutOfMemoryError("CUDA out of memory")
            holes = torch.tensor([fault.get("not_a_number", "\n\n\n") in prompt for prompt in prompts])
            return torch.where(holes, torch.nan, whole(self, batch, prompts, targets))

        LlavaLVLM.loss = loss


_renames = 0


def _counted_rename(whole: Any, fault: dict[str, Any]) -> Any:
    def rename(*words: Any, **more: Any) -> None:
        global _renames
        _renames += 1
        now = _renames == fault.get("at_rename")
        if "renames" in fault:
            with open(fault["renames"], "ab") as file:
                file.write(b".")
        if now and not fault.get("done"):
            os.kill(os.getpid(), fault["signal"])
        whole(*words, **more)
        if now:
            os.kill(os.getpid(), fault["signal"])

    return rename
