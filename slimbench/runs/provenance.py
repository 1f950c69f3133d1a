"""Where a number came from: code, versions, machine, command. Every record carries it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import slimbench

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pyarrow",
    "h5py",
    "safetensors",
    "transformers",
    "timm",
)
PLUGIN_GROUPS = ("slimbench.reducers", "slimbench.encoders", "slimbench.tasks", "slimbench.text")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
CHANGES_NO_NUMBER = frozenset({"cli", "leaderboard", "results", "__pycache__"})


def provenance() -> dict[str, Any]:
    """Everything but the cell itself that a number depends on, as JSON; torch is asked only if it is loaded.

    source    hash of slimbench's own code; `--rerun stale` compares it
    commit    of the checkout that slimbench runs from, with `dirty`; None outside a checkout
    plugins   {package: version} of the third-party packages that offer plugins
    threads   of torch and of each linear algebra library: results are equal to the last digit for equal ones
    """
    commit, dirty = _commit()
    return {
        "slimbench": importlib.metadata.version("slimbench"),
        "source": source_hash(),
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "plugins": plugin_packages(),
        "machine": machine(),
        "threads": _threads(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


@functools.cache
def source_hash() -> str:
    """16 hex digits over the Python files of slimbench that a number can depend on, as they are now."""
    root = Path(slimbench.__file__).parent
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(set(folders) - CHANGES_NO_NUMBER)
        for name in sorted(files):
            if name.endswith(".py"):
                path = Path(folder) / name
                digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def plugin_packages() -> dict[str, str]:
    """{package: version} of the installed packages that offer slimbench plugins."""
    found = {}
    for group in PLUGIN_GROUPS:
        for entry in importlib.metadata.entry_points(group=group):
            if entry.dist is not None:
                found[entry.dist.name] = entry.dist.version
    return dict(sorted(found.items()))


def machine() -> dict[str, Any]:
    """Processor, the flags that decide about bf16, cores this process may use, memory, GPUs."""
    model, flags = _processor()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": model,
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
    }


def cores() -> int:
    """Cores that this process may use, also where Slurm counts them without binding them."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(here, int(given)) if given.isdigit() and int(given) else here


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _commit() -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it) of the checkout that holds the running package."""
    root = Path(slimbench.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None, None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()


def _processor() -> tuple[str, frozenset[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value
    }
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", platform.machine()), frozenset(flags.split())


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _threads() -> dict[str, int]:
    threads = {}
    torch = sys.modules.get("torch")
    if torch is not None:
        threads["torch"] = torch.get_num_threads()
    if "numpy" in sys.modules:
        import threadpoolctl

        for pool in threadpoolctl.threadpool_info():
            threads[f"{pool['internal_api']} {pool.get('version') or ''}".strip()] = pool["num_threads"]
    return threads
