"""How much memory a run takes at its peak, beyond what was there before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_tensor_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors at the peak of `run()` that did not exist before it.

    On CUDA the allocator's own figure. On the CPU the storages alive after each operation: the same on
    every machine, and blind to what an operation allocates and frees inside itself
    (slimbench.measure.process has the resident set).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Live() as live:
        run()
    return live.peak


class _Live(TorchDispatchMode):
    """Follows the storages that operations make until nobody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {s._cdata for s in map(_storage, tree_leaves((args, kwargs))) if s is not None}
        out = func(*args, **(kwargs or {}))
        made = [s for s in map(_storage, tree_leaves(out)) if s is not None and s._cdata not in given]
        if made:
            self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
            self._held |= {s._cdata: (StorageWeakRef(s), s.nbytes()) for s in made}
            self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return out


def _storage(value: Any) -> Any:
    return value.untyped_storage() if isinstance(value, torch.Tensor) else None
