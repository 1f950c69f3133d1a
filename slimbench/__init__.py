"""slimbench: what token reducers cost and keep in whole-slide models.

    import slimbench

    class Norm(slimbench.Pruner):
        def score(self, tokens, context):
            return tokens.x.norm(dim=1)

    slimbench.sweep(reducers=["cropr", "norm.py:Norm"], rates="0.5-0.9", out="out")

The names below are the public interface; they load on first use, so `import slimbench` needs no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimbench.api import sweep as sweep
    from slimbench.block_encoder import BlockEncoder as BlockEncoder
    from slimbench.block_encoder import Pack as Pack
    from slimbench.context import Context as Context
    from slimbench.encoder import Encoded as Encoded
    from slimbench.encoder import Plan as Plan
    from slimbench.encoder import SlideEncoder as SlideEncoder
    from slimbench.encoder import SlideInput as SlideInput
    from slimbench.errors import SlimbenchError as SlimbenchError
    from slimbench.reducer import Merger as Merger
    from slimbench.reducer import Pooler as Pooler
    from slimbench.reducer import Pruner as Pruner
    from slimbench.reducer import Reducer as Reducer
    from slimbench.reducer import Reduction as Reduction
    from slimbench.statistics.estimates import Metric as Metric
    from slimbench.task import Evidence as Evidence
    from slimbench.task import Task as Task
    from slimbench.task import TaskResult as TaskResult
    from slimbench.tokens import Tokens as Tokens

_PUBLIC = {
    "BlockEncoder": "slimbench.block_encoder",
    "Context": "slimbench.context",
    "Encoded": "slimbench.encoder",
    "Evidence": "slimbench.task",
    "Merger": "slimbench.reducer",
    "Metric": "slimbench.statistics.estimates",
    "Pack": "slimbench.block_encoder",
    "Plan": "slimbench.encoder",
    "Pooler": "slimbench.reducer",
    "Pruner": "slimbench.reducer",
    "Reducer": "slimbench.reducer",
    "Reduction": "slimbench.reducer",
    "SlideEncoder": "slimbench.encoder",
    "SlideInput": "slimbench.encoder",
    "SlimbenchError": "slimbench.errors",
    "Task": "slimbench.task",
    "TaskResult": "slimbench.task",
    "Tokens": "slimbench.tokens",
    "sweep": "slimbench.api",
}

__all__ = sorted(_PUBLIC)  # noqa: PLE0605  (one list of names, not two)

if not (Path(__file__).parent / "reducers").is_dir():
    raise ImportError(
        f"{Path(__file__).parent / 'reducers'} is a text file, not a link: this checkout was made without "
        "symbolic links. Run `git config core.symlinks true && git checkout -- slimbench`, or install a wheel."
    )


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'slimbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC))
