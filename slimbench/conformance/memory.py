"""The promise about growth, judged by the largest tensor that an operation makes: what tells N from N x N
on any machine, without a clock."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slimbench.conformance.trial import Trial, require

GROWTH = (2048, 8192)  # tokens between which memory and time are compared
MOST_MEMORY = 1.3  # exponent of N; 1 is linear, 2 is an N x N matrix


class LargestTensor(TorchDispatchMode):
    """Inside its `with`, `bytes` is the largest storage that any torch operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result


def memory(trial: Trial) -> str:
    """Memory grows about linearly with the tokens: no N x N matrix. Time is told beside it, not judged."""
    reducer, largest, spent = trial.build(), [], []
    for n in GROWTH:
        tokens = trial.slide(n)
        with torch.no_grad():
            with LargestTensor() as seen:
                trial.run("memory", tokens, n // 2, reducer=reducer)
            began = time.process_time()
            trial.run("memory", tokens, n // 2, reducer=reducer)
        largest.append(seen.bytes / 2**20)
        spent.append((time.process_time() - began) * 1000)
    power, of_time = (math.log(high / low, GROWTH[1] / GROWTH[0]) for low, high in (largest, spent))
    told = (
        f"largest tensor {largest[0]:.2f} -> {largest[1]:.2f} MiB from {GROWTH[0]} to {GROWTH[1]} tokens, "
        f"N^{power:.1f}; {spent[0]:.1f} -> {spent[1]:.1f} CPU ms, N^{of_time:.1f}"
    )
    require(power <= MOST_MEMORY, tokens, n // 2, f"{told}; work in strips or windows")
    return told
