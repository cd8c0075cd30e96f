"""What a run was made with: versions, commit and hardware, for run.json."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("lvlm-radapt", "torch", "transformers", "numpy", "pillow")


def environment() -> dict[str, Any]:
    """Package versions (None: not installed), git commit (None outside a clone) and hardware, for JSON."""
    return {
        "python": platform.python_version(),
        # torch names its build, as 2.15.0+cu132; the metadata of the same package may say 2.15.0
        "packages": {name: _version(name) for name in _PACKAGES} | {"torch": str(torch.__version__)},
        "git": _git(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    root = Path(__file__).resolve().parents[2]
    # Only the project's own clone: an installed package may lie inside a repository of somebody else's.
    if not (root / ".git").exists():
        return None
    commit = _run_git(root, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "changed": bool(_run_git(root, "status", "--porcelain", "--untracked-files=no"))}


def _run_git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, or not a healthy clone
        return None
    return done.stdout.strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
