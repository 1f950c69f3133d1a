"""One thread for small linear algebra."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import threadpoolctl


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for BLAS and torch, as a context or a decorator.

    Small products lose by more (115 CPU seconds against 9 on a busy machine, as waiting threads spin), and
    the last digits of their sums depend on the number.
    """
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    if torch:
        torch.set_num_threads(1)
    try:
        with threadpoolctl.threadpool_limits(1):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)
