"""`slimbench doctor`: what this machine and this installation can do."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("doctor", short_help="What works here.")(doctor)


def doctor() -> None:
    """Look at this installation and machine, and say what is missing and what is used.

    Exits with 2 if something is broken that a sweep needs.

    \b
    Example:
      slimbench doctor
    """
    broken = 0
    for name, check in CHECKS.items():
        try:
            good, line = check()
        except Exception as error:  # noqa: BLE001  (whatever is wrong with an installation is what is asked)
            good, line = False, f"{type(error).__name__}: {error}"
        broken += not good
        print(f"{'ok' if good else 'BROKEN':<7} {name:<12} {' '.join(line.split())}", flush=True)
    if broken:
        raise typer.Exit(2)


def _python() -> tuple[bool, str]:
    from slimbench.runs.provenance import machine, provenance

    found, here = provenance(), machine()
    commit = (
        f", commit {found['commit'][:10]}{' (changed)' if found['dirty'] else ''}" if found["commit"] else ""
    )
    flags = f" ({', '.join(here['flags'])})" if here["flags"] else ""
    return True, (
        f"slimbench {found['slimbench']}{commit}, Python {found['python']}, {here['cpu']}{flags}, "
        f"{here['cores']} cores, {here['memory_gib']} GiB"
    )


def _torch() -> tuple[bool, str]:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return True, f"{torch.__version__}, {', '.join(devices) or 'no CUDA device: the CPU is used'}"


def _torchvision() -> tuple[bool, str]:
    """transformers and timm import it; one that does not fit torch breaks both with a misleading message."""
    done = subprocess.run(
        [sys.executable, "-c", "import torchvision; print(torchvision.__version__)"],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return True, done.stdout.strip()
    if "No module named 'torchvision'" in done.stderr:
        return True, "not installed; the text tower hf does without, timm does not"
    why = done.stderr.strip().splitlines()[-1]
    return False, f"{why}; it does not fit torch: pip install --force-reinstall torch torchvision"


def _attention() -> tuple[bool, str]:
    import torch

    from slimbench import registry

    encoder = registry.encoders.build("slim-tiny", input_dim=8)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    used = (f"{name} {encoder.attention_backend(device, dtype)}" for name, dtype in dtypes.items())
    return True, f"on {device}: {', '.join(used)}"


def _bf16() -> tuple[bool, str]:
    import torch

    if torch.cuda.is_available():
        return True, "on CUDA" if torch.cuda.is_bf16_supported() else "not on this GPU: use --precision fp32"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if supported is not None and supported():
        return True, "AVX-512 bf16: --precision bf16 is worth trying"
    return True, "no AVX-512 bf16: a bf16 product is up to 80 times slower here, so stay with fp32"


def _libraries() -> tuple[bool, str]:
    for name in ("transformers", "sklearn", "pandas", "pyarrow.parquet", "h5py", "safetensors.torch"):
        importlib.import_module(name)
    import threadpoolctl

    pools = [
        f"{p['internal_api']} {p.get('version') or ''} x{p['num_threads']}"
        for p in threadpoolctl.threadpool_info()
    ]
    return True, f"all import; {', '.join(pools)}"


def _caches() -> tuple[bool, str]:
    from slimbench.files import cache_folder

    hub = os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
    sizes = [f"{path} ({_size(Path(path)) / 2**20:.0f} MiB)" for path in (str(cache_folder()), hub)]
    return True, f"cohorts and texts {sizes[0]}, models {sizes[1]}"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "machine": _python,
    "torch": _torch,
    "torchvision": _torchvision,
    "attention": _attention,
    "bf16": _bf16,
    "libraries": _libraries,
    "caches": _caches,
}
